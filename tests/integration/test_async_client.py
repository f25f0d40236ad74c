"""The Python client for asyncio: the same as the synchronous one, and used by many coroutines at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask import AsyncClient, Client, NotFound, QTaskError, Refused, Unavailable
from qtask.client.protocol import Accepted
from qtask.store import keys
from tests.support.answering import answer_line, answering
from tests.support.gateway_process import Gateway, scheduled, stored, task, title_of_id
from tests.support.redis_server import RedisServer, free_port
from tests.support.shorthands import HTTP, SHORTHANDS

Talk = Callable[[AsyncClient], Awaitable[None]]


def run(url: str, talk: Talk, timeout: float = 30.0) -> None:
    """Runs a coroutine with a client; fails after 30 seconds."""

    async def main() -> None:
        async with asyncio.timeout(60), AsyncClient(url, timeout=timeout) as client:
            await talk(client)

    asyncio.run(main())


def ok(answer: Any) -> Accepted:
    assert isinstance(answer, Accepted), answer
    return answer


def titles(redis: Redis, answers: list[Any]) -> list[str]:
    """The titles that Redis holds for the ids of answers, in order."""
    title_of = title_of_id(redis, [ok(answer).id for answer in answers])
    return [title_of[answer.id] for answer in answers]


def test_async_client_has_the_same_methods_and_arguments_as_the_client() -> None:
    def public(kind: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            name: [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]
            for name, method in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert public(AsyncClient) == public(Client)
    assert inspect.signature(AsyncClient).parameters == inspect.signature(Client).parameters


# --- sending ------------------------------------------------------------------------------------------------------


def test_task_is_in_redis_when_it_is_accepted(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        accepted = await client.send(task("one", delay=90.25))
        assert stored(redis, accepted.id) == task("one", delay=90.25)
        assert redis.zscore(keys.SCHEDULE, accepted.id) == accepted.due
        with pytest.raises(Refused, match="delay in seconds"):
            await client.send(task(delay=-1))
        assert stored(redis, (await client.send(task("two"))).id)["title"] == "two"

    run(url, talk)


def test_batch_is_answered_in_order_including_refusals(url: str, redis: Redis) -> None:
    wrong = {3: {"title": object()}, 5: task(delay=-1), 6: [task()], 8: None}

    async def talk(client: AsyncClient) -> None:
        answers = await client.send_many(wrong.get(n, task(str(n))) for n in range(10))
        assert [n for n, answer in enumerate(answers) if isinstance(answer, Refused)] == list(wrong)
        assert titles(redis, [answer for answer in answers if isinstance(answer, Accepted)]) == list("012479")
        assert await client.send_many([]) == []

    run(url, talk)


def test_five_thousand_tasks_are_pipelined_in_order(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        answers = await client.send_many(task(str(n)) for n in range(5_000))
        assert titles(redis, answers) == [str(n) for n in range(5_000)]

    run(url, talk)


def test_large_tasks_are_accepted(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        answers = await client.send_many(task(str(n), text="x" * 1_000_000) for n in range(8))
        assert titles(redis, answers) == [str(n) for n in range(8)]

    run(url, talk)


def test_answers_arrive_while_tasks_are_still_produced(url: str, redis: Redis) -> None:
    async def endless() -> AsyncIterator[dict[str, Any]]:
        n = 0
        while True:
            yield task(str(n))
            n += 1

    async def talk(client: AsyncClient) -> None:
        answers = client.send_iter(endless())
        assert titles(redis, [await anext(answers) for _ in range(3_000)]) == [str(n) for n in range(3_000)]
        inner = await client.send(task("meanwhile"))
        assert stored(redis, inner.id)["title"] == "meanwhile"
        assert titles(redis, [await anext(answers) for _ in range(10)]) == [str(n) for n in range(3_000, 3_010)]

    run(url, talk)


def test_many_coroutines_share_one_client(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        async def one(name: str) -> None:
            for n in range(10):
                accepted = await client.send(task(f"{name}-{n}"))
                assert stored(redis, accepted.id)["title"] == f"{name}-{n}"

        async def many(name: str) -> None:
            answers = await client.send_many(task(f"{name}-{n}") for n in range(1_000))
            assert titles(redis, answers) == [f"{name}-{n}" for n in range(1_000)]

        async def wrong() -> None:
            for _ in range(10):
                with pytest.raises(Refused):
                    await client.send(task(delay=-1))

        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(one(f"one{n}"))
            for n in range(3):
                group.create_task(many(f"many{n}"))
            group.create_task(wrong())
        assert len(scheduled(redis)) == 3_200

    run(url, talk)


def test_cancelled_or_abandoned_calls_do_not_affect_others(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        for n in range(20):
            doomed = asyncio.gather(client.send_many(task("doomed") for _ in range(50)))
            await asyncio.sleep(0.0005 * n)
            doomed.cancel()
            await asyncio.wait({doomed})
            async for _ in client.send_iter(task("abandoned") for _ in range(50)):
                break
            accepted = await client.send(task(str(n)))
            assert stored(redis, accepted.id)["title"] == str(n)

    run(url, talk)


def test_client_can_be_used_in_successive_event_loops(url: str, redis: Redis) -> None:
    client = AsyncClient(url)

    async def talk(title: str, close: bool) -> None:
        accepted = await client.send(task(title))
        assert stored(redis, accepted.id)["title"] == title
        if close:
            await client.close()

    asyncio.run(talk("first", close=False))
    asyncio.run(talk("second", close=True))
    asyncio.run(talk("third", close=True))


# --- shorthands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORTHANDS)
def test_shorthand_makes_its_dict(url: str, redis: Redis, name: str) -> None:
    submit, expected = SHORTHANDS[name]

    async def talk(client: AsyncClient) -> None:
        accepted = await submit(client)
        assert stored(redis, accepted.id) == expected

    run(url, talk)


def test_ambiguous_instant_is_refused(url: str, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(Refused, match="zone"):
            await client.http(HTTP, at=datetime(2099, 1, 1))
        with pytest.raises(Refused, match="not both"):
            await client.pipe("p", 1, delay=timedelta(0), at=datetime.now(UTC))

    run(url, talk)
    assert scheduled(redis) == []


# --- addresses and reading ----------------------------------------------------------------------------------------


def test_address_is_read_from_the_environment(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_URL", url)

    async def main() -> None:
        async with AsyncClient() as client:
            assert client.url == url
            assert (await client.send(task())).id in scheduled(redis)

    asyncio.run(main())


def test_over_redis_tasks_are_shown_listed_and_cancelled(redis_server: RedisServer, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        first, second = map(ok, await client.send_many([task("b", delay=200), task("a", delay=100)]))
        assert (await client.show(first.id)).title == "b"
        assert [record.id for record in await client.list("scheduled")] == [second.id, first.id]
        assert [record.id for record in await client.list("scheduled", limit=1)] == [second.id]
        assert await client.cancel(first.id) == "scheduled"
        for missing in (client.show, client.cancel):
            with pytest.raises(NotFound):
                await missing(first.id)
        shown = await asyncio.gather(*(client.show(second.id) for _ in range(30)))
        assert {record.id for record in shown} == {second.id}

    run(redis_server.url, talk)


def test_over_http_tasks_are_shown_cancelled_and_retried(gateway: Gateway, redis: Redis) -> None:
    async def talk(client: AsyncClient) -> None:
        accepted = await client.send(task("b", delay=200))
        shown = await asyncio.gather(*(client.show(accepted.id) for _ in range(30)))
        assert {(record.id, record.state, record.due) for record in shown} == {(accepted.id, "scheduled", accepted.due)}
        assert shown[0].task == task("b", delay=200)
        assert await client.retry([accepted.id, "unknown"]) == []
        assert await client.cancel(accepted.id) == "scheduled"
        for missing in (client.show, client.cancel):
            with pytest.raises(NotFound):
                await missing(accepted.id)
        with pytest.raises(QTaskError, match="it needs a redis:// address"):
            await client.find_dead()

    run(gateway.http_url, talk)


def test_unsupported_call_over_a_socket_names_what_is_needed(gateway: Gateway) -> None:
    async def talk(client: AsyncClient) -> None:
        for call in (client.show("x"), client.find_dead()):
            with pytest.raises(QTaskError, match="redis:// address"):
                await call

    run(gateway.url, talk)


# --- no gateway or Redis ------------------------------------------------------------------------------------------


def test_without_a_gateway_or_redis_it_is_unavailable() -> None:
    async def to_gateway(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="qtask up"):
            await client.send(task())

    async def to_redis(client: AsyncClient) -> None:
        asked = (client.show("x"), client.cancel("x"), client.list("dead"), client.find_dead(title="x"))
        for call in (client.send(task()), *asked):
            with pytest.raises(Unavailable, match="Redis does not answer"):
                await call
        assert isinstance((await client.send_many([{"title": 1}]))[0], Refused), "invalid tasks need no Redis"

    port = free_port()
    run(f"socket://127.0.0.1:{port}", to_gateway)
    run(f"redis://127.0.0.1:{port}/0", to_redis)


def test_lost_connection_reports_tasks_with_unknown_state() -> None:
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="the 3 tasks without an answer were accepted is not known") as lost:
            await client.send_many([task(), task(), task(), {"title": object()}, task(), task()])
        assert [answer.id for answer in lost.value.answers] == ["id-0", "id-1"]
        results = await asyncio.gather(*(client.send(task()) for _ in range(5)), return_exceptions=True)
        assert [ok(result).id for result in results[:2]] == ["id-0", "id-1"]
        for result in results[2:]:
            assert isinstance(result, Unavailable)
            assert "whether the task without an answer was accepted is not known" in str(result)
        assert (await client.send(task())).id == "id-0", "the next call opens a new connection"

    with answering(answer_line(0), answer_line(1), None) as url:
        run(url, talk)


def test_killed_gateway_is_reported(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> None:
    with Gateway(redis_server.url, tmp_path) as doomed:

        async def talk(client: AsyncClient) -> None:
            ids: list[str] = []

            async def send_until_it_dies() -> None:
                async for answer in client.send_iter(task(str(n)) for n in range(100_000)):
                    ids.append(ok(answer).id)
                    if len(ids) == 1_000:
                        doomed.process.kill()

            with pytest.raises(Unavailable, match="not known"):
                await send_until_it_dies()
            assert len(ids) >= 1_000 and len(title_of_id(redis, ids)) == len(ids)
            with pytest.raises(Unavailable, match="no gateway answers"):
                await client.send(task())

        run(doomed.url, talk)


@pytest.mark.parametrize("replies", [(), (answer_line(0),)])
def test_gateway_that_stops_answering_causes_a_timeout(replies: tuple[bytes, ...]) -> None:
    async def talk(client: AsyncClient) -> None:
        for _ in replies:
            await client.send(task())
        with pytest.raises(Unavailable, match=r"nothing came within 0\.2 s; whether the 2 tasks without an answer"):
            await client.send_many([task(), task()])

    with answering(*replies) as url:
        run(url, talk, timeout=0.2)


def test_gateway_that_does_not_read_causes_a_timeout() -> None:
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="not known"):
            await client.send_many(task(text="x" * 1_000_000) for _ in range(100))

    with answering() as url:
        run(url, talk, timeout=0.3)


def test_other_service_is_recognised() -> None:
    async def talk(client: AsyncClient) -> None:
        with pytest.raises(Unavailable, match="another service"):
            await client.send(task())

    with answering(b"220 mail.example ESMTP\r\n") as url:
        run(url, talk)


def test_restarted_redis_is_used_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)

    async def talk(client: AsyncClient) -> None:
        assert ok(await client.send(task()))
        server.kill()
        for _ in range(2):
            with pytest.raises(Unavailable, match="whether the task without an answer was accepted is not known"):
                await client.send(task())
        server.start()
        assert ok(await client.send(task()))

    try:
        run(server.url, talk)
    finally:
        server.kill()


def test_client_reconnects_after_the_gateway_closed_an_idle_connection(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    async def talk(client: AsyncClient) -> None:
        for n in range(2):
            accepted = await client.send(task(str(n)))
            assert stored(redis, accepted.id)["title"] == str(n)
            await asyncio.sleep(0.3)  # the gateway sends `idle` and closes

    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.1) as gateway:
        run(gateway.url, talk)


def test_gateway_at_its_connection_limit_is_unavailable(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    with Gateway(redis_server.url, tmp_path, MAX_CONNECTIONS=1) as gateway, Client(gateway.url) as first:
        assert ok(first.send(task()))

        async def talk(client: AsyncClient) -> None:
            with pytest.raises(Unavailable, match="connections are served at once"):
                await client.send(task())

        run(gateway.url, talk)
