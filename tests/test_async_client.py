"""`qtask.AsyncClient`, over the socket of a real gateway and straight into Redis."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask import AsyncClient, Client, NotFound, QTaskError, Refused, Unavailable
from qtask.client import Accepted
from qtask.client.requests import Answer
from qtask.errors import ConfigError
from qtask.store import keys
from tests.chaos.proxy import Proxy
from tests.clients import CODES, IMPOSSIBLE, MIXED, SHORTHANDS, UNWRITABLE, accepted, codes, titles
from tests.gateway_process import HOUR, Connection, Gateway, stored, task
from tests.redis_server import RedisServer, free_port

Steps = Callable[[AsyncClient], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """Emptied once: all tests share it, and the gateway."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="module")
def gateway(redis: Redis, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(redis_server.url, tmp_path_factory.mktemp("async-client")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(gateway: Gateway, redis_server: RedisServer) -> Iterator[Proxy]:
    """Stands before both, and cuts connections when it is told to."""
    running = Proxy({"gateway": gateway.port, "redis": redis_server.port})
    yield running
    running.close()


@pytest.fixture(params=["socket", "redis"])
def url(request: pytest.FixtureRequest, gateway: Gateway, redis_server: RedisServer) -> str:
    """Address of the gateway, and of its Redis."""
    return gateway.url if request.param == "socket" else redis_server.url


def run(url: str, steps: Steps, **options: Any) -> Any:
    """Runs steps with a client, in an event loop of their own, and returns what they return."""

    async def with_client() -> Any:
        async with AsyncClient(url, **options) as client, asyncio.timeout(20):
            return await steps(client)

    return asyncio.run(with_client())


async def taken(answers: Any, into: list[Answer]) -> None:
    """Takes answers one by one, so that those before an error are kept."""
    async for answer in answers:
        into.append(answer)  # noqa: PERF401  # a comprehension would keep nothing


# --- one, and many --------------------------------------------------------------------------------------------------


def test_one_task_stands_in_redis_when_it_is_answered(url: str, redis: Redis) -> None:
    answer = run(url, lambda client: client.send(task("one", 90.5, n=7)))
    assert stored(redis, answer.id) == task("one", 90.5, n=7)
    assert redis.zscore(keys.SCHEDULE, answer.id) == pytest.approx(answer.due, abs=1e-5)


def test_a_refused_task_is_an_error_that_names_the_field(url: str) -> None:
    with pytest.raises(Refused, match=r"settings\.time: a delay"):
        run(url, lambda client: client.send(task(delay=-1)))


def test_many_are_answered_in_order_the_refused_among_them(url: str, redis: Redis) -> None:
    answers = run(url, lambda client: client.send_many(MIXED))
    assert codes(answers) == CODES
    assert titles(redis, [answers[1], answers[4]]) == ["first", "second"]


def test_where_all_are_refused_nothing_is_waited_for(url: str) -> None:
    assert codes(run(url, lambda client: client.send_many([UNWRITABLE, UNWRITABLE]))) == ["wrong_type"] * 2
    assert run(url, lambda client: client.send_many([])) == []


def test_a_generator_is_taken_as_answers_are(url: str) -> None:
    made = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal made
        while made < 2_000:
            made += 1
            yield task(delay=-1)

    async def steps(client: AsyncClient) -> int:
        answers = client.send_iter(source())
        assert made == 0
        assert isinstance(await anext(answers), Refused)
        assert 1 <= made <= 500, "not all of it is taken before the first answer"
        return len([answer async for answer in answers])

    assert run(url, steps) == 1_999


def test_5_000_tasks_are_answered_in_order(url: str, redis: Redis) -> None:
    answers = run(url, lambda client: client.send_many(task(f"number {n}") for n in range(5_000)))
    assert titles(redis, answers) == [f"number {n}" for n in range(5_000)]


def test_a_loop_over_answers_may_send_others_meanwhile(url: str, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> tuple[list[Answer], list[Answer]]:
        outer: list[Answer] = []
        inner: list[Answer] = []
        async for answer in client.send_iter(task(f"outer {n}") for n in range(3)):
            outer.append(answer)
            inner.append(await client.send(task(f"inner {len(inner)}")))
        return outer, inner

    outer, inner = run(url, steps)
    assert titles(redis, outer) == ["outer 0", "outer 1", "outer 2"]
    assert titles(redis, inner) == ["inner 0", "inner 1", "inner 2"]


def test_a_loop_that_is_left_early_leaves_no_answers_behind(url: str, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> Accepted:
        async for _ in client.send_iter(task("left") for _ in range(50)):
            break
        return await client.send(task("next"))

    assert titles(redis, [run(url, steps)]) == ["next"]


def test_many_coroutines_share_a_client(url: str, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> list[list[Answer]]:
        return await asyncio.gather(
            *(client.send_many([task(f"{who} {n}") for n in range(40)]) for who in range(20)),
            *(client.send_many([task(f"{who} 0"), task(delay=-1)]) for who in range(20, 60)),
        )

    answers = run(url, steps)
    for who in range(20):
        assert titles(redis, answers[who]) == [f"{who} {n}" for n in range(40)]
    for who in range(20, 60):
        assert codes(answers[who]) == ["ok", "invalid_value"]
        assert titles(redis, answers[who][:1]) == [f"{who} 0"]


def test_a_call_that_is_given_up_leaves_no_answers_behind(gateway: Gateway, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> Accepted:
        await client.send(task())
        gateway.process.signal(signal.SIGSTOP)
        try:
            call = asyncio.create_task(client.send(task("given up")))
            waiting = asyncio.create_task(client.send(task("next in turn")))
            await asyncio.sleep(0.1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        finally:
            gateway.process.signal(signal.SIGCONT)
        return await waiting

    assert titles(redis, [run(gateway.url, steps)]) == ["next in turn"]


# --- shorthands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORTHANDS)
def test_a_shorthand_makes_this_dict(url: str, redis: Redis, name: str) -> None:
    shorthand, wanted = SHORTHANDS[name]
    assert stored(redis, run(url, shorthand).id) == wanted


@pytest.mark.parametrize(("arguments", "field"), IMPOSSIBLE)
def test_an_argument_that_cannot_be_is_refused(url: str, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        run(url, lambda client: client.socket("127.0.0.1:9", 1, **arguments))
    assert (caught.value.code, caught.value.field) == ("invalid_value", field)


def test_a_second_task_with_an_id_is_answered_with_the_first(url: str, redis: Redis) -> None:
    chosen = f"order-{time.monotonic_ns()}"

    async def steps(client: AsyncClient) -> list[Accepted]:
        return [await client.socket("127.0.0.1:9", n, delay=HOUR * n, id=chosen) for n in (1, 2)]

    first, second = run(url, steps)
    assert first == Accepted(chosen, first.due, duplicate=False)
    assert second == Accepted(chosen, first.due, duplicate=True)
    assert stored(redis, chosen)["settings"]["data"] == 1


def test_it_has_the_methods_of_the_plain_client() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if not name.startswith("_")}

    assert methods(AsyncClient) == methods(Client)


# --- lost in the middle ---------------------------------------------------------------------------------------------


def test_a_connection_cut_in_the_middle_says_how_much_is_not_known(proxy: Proxy, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> list[Answer]:
        await client.send(task())
        answers: list[Answer] = []
        tasks = [task(f"cut {n}") for n in range(1_200)]
        await taken(client.send_iter(tasks[:500]), answers)
        proxy.cut("gateway", 0, 0.5)
        words = r"is lost: .*; 500 tasks have no answer: whether they were accepted is not known"
        with pytest.raises(Unavailable, match=words):
            await taken(client.send_iter(tasks[500:]), answers)
        return [*answers, await client.send(task("afterwards"))]

    answers = run(f"socket://127.0.0.1:{proxy.ports['gateway']}", steps)
    assert titles(redis, answers) == [*(f"cut {n}" for n in range(500)), "afterwards"]


@pytest.mark.parametrize("server", ["gateway", "redis"])
def test_a_task_whose_answer_was_lost_may_be_sent_again_under_its_id(proxy: Proxy, redis: Redis, server: str) -> None:
    scheme = "socket" if server == "gateway" else "redis"
    one = task("once")
    one["settings"]["id"] = chosen = f"lost-{time.monotonic_ns()}"

    async def steps(client: AsyncClient) -> Accepted:
        await client.send(task())  # what it asks a new connection is over
        proxy.cut(server, 0, 0.3)
        with pytest.raises(Unavailable, match="1 task has no answer: whether it was accepted is not known"):
            await client.send(one)
        assert stored(redis, chosen) == one
        return await client.send(one)

    assert run(f"{scheme}://127.0.0.1:{proxy.ports[server]}", steps).duplicate


def test_a_gateway_that_hangs_is_waited_for_no_longer_than_told(gateway: Gateway, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> Accepted:
        await client.send(task())
        gateway.process.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="no answer within 1 s; 2 tasks have no answer"):
                await client.send_many([task(), UNWRITABLE, task()])
        finally:
            gateway.process.signal(signal.SIGCONT)
        return await client.send(task("afterwards"))

    assert titles(redis, [run(gateway.url, steps, timeout=1)]) == ["afterwards"]


def test_a_connection_that_the_gateway_has_ended_is_replaced(redis_server: RedisServer, tmp_path: Path) -> None:
    async def steps(client: AsyncClient) -> list[Answer]:
        await client.send(task())
        with Connection(impatient.port) as later:  # it falls silent after the client did, and is ended no sooner
            end = await asyncio.to_thread(later.answer)
        assert end["error"]["code"] == "idle"
        return await client.send_many([task(), task()])

    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.5) as impatient:
        accepted(run(impatient.url, steps))


def test_a_closed_client_opens_another_connection(url: str) -> None:
    async def steps(client: AsyncClient) -> list[Answer]:
        first = await client.send(task())
        await client.close()
        await client.close()
        return [first, await client.send(task())]

    accepted(run(url, steps))


def test_where_nobody_listens_it_says_what_to_do() -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"no gateway answers on 127.0.0.1:{port}: .*`qtask up`.*QTASK_URL"):
        run(f"socket://127.0.0.1:{port}", lambda client: client.send(task()))


def test_another_service_on_the_port_is_named(redis_server: RedisServer) -> None:
    with pytest.raises(Unavailable, match=r"the answer is not QTask's: .*; is another service on this port"):
        run(f"socket://127.0.0.1:{redis_server.port}", lambda client: client.send(task()))


CALLS: list[Steps] = [
    lambda client: client.show("x"),
    lambda client: client.list("dead"),
    lambda client: client.cancel("x"),
]


@pytest.mark.parametrize("call", [lambda client: client.send(task()), *CALLS])
def test_where_no_redis_is_it_says_so_and_keeps_the_password(call: Steps) -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"no Redis answers at redis://127.0.0.1:{port}/0: ") as caught:
        run(f"redis://:secret@127.0.0.1:{port}/0", call)
    assert "secret" not in str(caught.value)


# --- addresses, and looking at tasks --------------------------------------------------------------------------------


def test_the_environment_names_the_address(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_URL", gateway.url)
    assert AsyncClient().url == gateway.url
    monkeypatch.delenv("QTASK_URL")
    assert AsyncClient().url == "socket://127.0.0.1:5123"


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:5124", "socket://127.0.0.1:port", "redis://h:port"])
def test_an_address_that_cannot_be_is_an_error_at_once(wrong: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(wrong))):
        AsyncClient(wrong)


def test_a_task_is_shown_listed_and_cancelled(redis_server: RedisServer, redis: Redis) -> None:
    async def steps(client: AsyncClient) -> None:
        answers = accepted(await client.send_many(task(f"looked at {n}", n + 1) for n in range(3)))
        records = await asyncio.gather(*(client.show(answer.id) for answer in answers))
        assert [record.title for record in records] == ["looked at 0", "looked at 1", "looked at 2"]
        assert [record.id for record in await client.list("scheduled", limit=3)] == [one.id for one in answers]
        assert await client.cancel(answers[1].id) == "scheduled"
        gone: list[Callable[[str], Awaitable[Any]]] = [client.show, client.cancel]
        for call in gone:
            with pytest.raises(NotFound, match=answers[1].id):
                await call(answers[1].id)

    redis.delete(keys.SCHEDULE)
    run(redis_server.url, steps)


@pytest.mark.parametrize("call", CALLS)
def test_over_the_socket_there_is_nothing_to_look_at(gateway: Gateway, call: Steps) -> None:
    with pytest.raises(QTaskError, match="only accepts tasks; give the client a redis:// address"):
        run(gateway.url, call)
