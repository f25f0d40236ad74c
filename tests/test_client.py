"""`qtask.Client`, over the socket of a real gateway and straight into Redis."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from qtask import Client, NotFound, QTaskError, Refused, Task, Unavailable
from qtask.client import Accepted
from qtask.client.requests import Answer
from qtask.errors import ConfigError
from qtask.store import keys
from qtask.timing import parse_instant
from tests.chaos.proxy import Proxy
from tests.clients import CODES, IMPOSSIBLE, MIXED, SHORTHANDS, UNWRITABLE, accepted, codes, titles
from tests.gateway_process import HOUR, Connection, Gateway, stored, task
from tests.redis_server import RedisServer, free_port


@pytest.fixture(scope="module")
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """Emptied once: all tests share it, and the gateway."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="module")
def gateway(redis: Redis, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(redis_server.url, tmp_path_factory.mktemp("client")) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(gateway: Gateway, redis_server: RedisServer) -> Iterator[Proxy]:
    """Stands before both, and cuts connections when it is told to."""
    running = Proxy({"gateway": gateway.port, "redis": redis_server.port})
    yield running
    running.close()


@pytest.fixture(params=["socket", "redis"])
def client(request: pytest.FixtureRequest, gateway: Gateway, redis_server: RedisServer) -> Iterator[Client]:
    """One over the socket, and one straight into Redis."""
    with Client(gateway.url if request.param == "socket" else redis_server.url) as made:
        yield made


@pytest.fixture
def over_socket(gateway: Gateway) -> Iterator[Client]:
    with Client(gateway.url) as made:
        yield made


@pytest.fixture
def over_redis(redis_server: RedisServer) -> Iterator[Client]:
    with Client(redis_server.url) as made:
        yield made


def now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + microseconds / 1e6


# --- one, and many --------------------------------------------------------------------------------------------------


def test_one_task_stands_in_redis_when_it_is_answered(client: Client, redis: Redis) -> None:
    before = now(redis)
    answer = client.send(task("one", 90.5, n=7))
    assert before + 90.5 <= answer.due + 1e-5 and answer.due <= now(redis) + 90.5 + 1e-5
    assert not answer.duplicate
    assert redis.zscore(keys.SCHEDULE, answer.id) == pytest.approx(answer.due, abs=1e-5)
    assert stored(redis, answer.id) == task("one", 90.5, n=7)


def test_a_task_object_is_sent_as_a_dict_is(client: Client, redis: Redis) -> None:
    answer = client.send(msgspec.convert(task("an object"), Task))
    assert stored(redis, answer.id) == task("an object")


def test_a_queue_of_another_name_gets_its_tasks(redis_server: RedisServer, redis: Redis) -> None:
    with Client(redis_server.url, queue="other") as client:
        answer = client.send(task())
    assert redis.hget(keys.job(answer.id), "origin") == b"other"


def test_a_refused_task_is_an_error_that_names_the_field(client: Client) -> None:
    with pytest.raises(Refused, match=r"settings\.time: a delay") as caught:
        client.send(task(delay=-1))
    assert (caught.value.code, caught.value.field) == ("invalid_value", "settings.time")


def test_many_are_answered_in_order_the_refused_among_them(client: Client, redis: Redis) -> None:
    answers = client.send_many(MIXED)
    assert codes(answers) == CODES
    assert titles(redis, [answers[1], answers[4]]) == ["first", "second"]


def test_nothing_is_answered_by_nothing(client: Client) -> None:
    assert client.send_many([]) == []


@pytest.mark.parametrize("wrong", [None, [task()], "text", 5])
def test_what_is_no_dict_is_refused_in_its_place(client: Client, wrong: Any) -> None:
    first, second, third = client.send_many([task(), wrong, task()])
    assert isinstance(second, Refused) and second.code == "wrong_type"
    accepted([first, third])


def test_a_generator_is_taken_as_answers_are(client: Client, redis: Redis) -> None:
    taken = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for taken in range(1, 10_001):
            yield task(f"number {taken}", -1)  # refused, so that it costs little

    answers = client.send_iter(source())
    assert taken == 0
    assert isinstance(next(answers), Refused)
    assert 1 <= taken <= 2_500, "not all of it is taken before the first answer"
    assert sum(1 for _ in answers) == 9_999


def test_5_000_tasks_are_answered_in_order(client: Client, redis: Redis) -> None:
    answers = client.send_many(task(f"number {n}") for n in range(5_000))
    assert titles(redis, answers) == [f"number {n}" for n in range(5_000)]
    assert len({answer.id for answer in accepted(answers)}) == 5_000


def test_tasks_of_a_slow_source_are_not_held_back(client: Client, redis: Redis) -> None:
    held: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for _ in range(4):
            held.append(redis.zcard(keys.SCHEDULE))
            yield task("slow")
            time.sleep(0.06)

    accepted(client.send_many(source()))
    assert held[-1] > held[0]


def test_a_caller_who_is_slow_with_the_answers_is_not_taken_for_a_silent_gateway(gateway: Gateway) -> None:
    with Client(gateway.url, timeout=0.7) as client:
        for answer in client.send_iter([task(), task()]):
            accepted([answer])
            time.sleep(0.8)


def test_answers_are_told_apart_from_those_of_a_loop_that_goes_on(client: Client, redis: Redis) -> None:
    outer: list[Answer] = []
    inner: list[Answer] = []
    for answer in client.send_iter(task(f"outer {n}") for n in range(3_000)):
        if len(outer) % 1_000 == 0:  # most of the others are still on their way
            inner.append(client.send(task(f"inner {len(inner)}")))
        outer.append(answer)
    assert titles(redis, outer) == [f"outer {n}" for n in range(3_000)]
    assert titles(redis, inner) == ["inner 0", "inner 1", "inner 2"]


def test_a_loop_that_is_left_early_leaves_no_answers_behind(client: Client, redis: Redis) -> None:
    for _ in client.send_iter(task("left") for _ in range(50)):
        break
    assert titles(redis, [client.send(task("next"))]) == ["next"]


def test_an_error_of_the_source_comes_through_and_leaves_the_client_well(client: Client, redis: Redis) -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield task("before")
        raise KeyError("the source's own")

    with pytest.raises(KeyError, match="the source's own"):
        client.send_many(source())
    assert titles(redis, [client.send(task("after"))]) == ["after"]


# --- shorthands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORTHANDS)
def test_a_shorthand_makes_this_dict(client: Client, redis: Redis, name: str) -> None:
    shorthand, wanted = SHORTHANDS[name]
    assert stored(redis, shorthand(client).id) == wanted


def test_a_title_is_cut_where_a_link_is_long(client: Client, redis: Redis) -> None:
    answer = client.http("http://127.0.0.1:9/" + "x" * 1_000, delay=HOUR)
    assert len(stored(redis, answer.id)["title"]) == 500


def test_an_argument_that_is_misspelt_is_an_error(client: Client) -> None:
    with pytest.raises(TypeError, match="dealy"):
        client.socket("127.0.0.1:9", 1, dealy=5)  # type: ignore[call-arg]


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [UTC, datetime.now().astimezone().tzinfo])
def test_a_datetime_with_its_zone_is_the_due_instant(client: Client, zone: Any) -> None:
    at = datetime.now(zone) + timedelta(hours=1)
    assert client.socket("127.0.0.1:9", 1, at=at).due == pytest.approx(at.timestamp(), abs=1e-5)


def test_unix_seconds_are_the_due_instant(client: Client) -> None:
    at = time.time() + HOUR
    assert client.socket("127.0.0.1:9", 1, at=at).due == pytest.approx(at, abs=1e-5)


def test_without_a_delay_a_task_is_due_at_once(client: Client, redis: Redis) -> None:
    before = now(redis)
    assert before - 1e-5 <= client.socket("127.0.0.1:9", 1).due <= now(redis) + 1e-5


def test_a_datetime_as_expiry_keeps_its_instant(client: Client, redis: Redis) -> None:
    expires = datetime.now(UTC) + timedelta(hours=2)
    answer = client.socket("127.0.0.1:9", 1, delay=HOUR, expires=expires)
    text = stored(redis, answer.id)["settings"]["expires"]
    assert parse_instant(text) == pytest.approx(expires.timestamp(), abs=1e-5)


@pytest.mark.parametrize(("arguments", "field"), IMPOSSIBLE)
def test_an_argument_that_cannot_be_is_refused(client: Client, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        client.socket("127.0.0.1:9", 1, **arguments)
    assert (caught.value.code, caught.value.field) == ("invalid_value", field)


# --- ids that the client chose --------------------------------------------------------------------------------------


def test_a_second_task_with_an_id_is_answered_with_the_first(client: Client, redis: Redis) -> None:
    chosen = f"order-{time.monotonic_ns()}"
    first = client.socket("127.0.0.1:9", "first", delay=HOUR, id=chosen)
    second = client.socket("127.0.0.1:9", "second", delay=2 * HOUR, id=chosen)
    assert first == Accepted(chosen, first.due, duplicate=False)
    assert second == Accepted(chosen, first.due, duplicate=True)
    assert stored(redis, chosen)["settings"]["data"] == "first"


def test_duplicates_within_one_batch_are_told(client: Client) -> None:
    chosen = f"twice-{time.monotonic_ns()}"
    one = task()
    one["settings"]["id"] = chosen
    answers = accepted(client.send_many([one, task(), one]))
    assert [(answer.id == chosen, answer.duplicate) for answer in answers] == [
        (True, False),
        (False, False),
        (True, True),
    ]


# --- lost in the middle ---------------------------------------------------------------------------------------------


def test_a_connection_cut_in_the_middle_says_how_much_is_not_known(proxy: Proxy, redis: Redis) -> None:
    taken = 0
    answers: list[Answer] = []

    def source() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for taken in range(1, 3_001):
            yield task(f"cut {taken}")

    with Client(f"socket://127.0.0.1:{proxy.ports['gateway']}") as client:
        client.send(task())
        proxy.cut("gateway", 1, 0.5)
        with pytest.raises(Unavailable, match=r"the connection to the gateway .* is lost: ") as caught:
            answers.extend(client.send_iter(source()))
        assert answers and len(answers) < taken
        words = (
            f"{taken - len(answers)} tasks have no answer: whether they were accepted is not known, and nothing is sent"
        )
        assert words in str(caught.value)
        assert titles(redis, answers) == [f"cut {n}" for n in range(1, len(answers) + 1)]
        assert titles(redis, [client.send(task("afterwards"))]) == ["afterwards"]


@pytest.mark.parametrize("server", ["gateway", "redis"])
def test_a_task_whose_answer_was_lost_may_be_sent_again_under_its_id(proxy: Proxy, redis: Redis, server: str) -> None:
    scheme = "socket" if server == "gateway" else "redis"
    one = task("once")
    one["settings"]["id"] = f"lost-{server}"
    with Client(f"{scheme}://127.0.0.1:{proxy.ports[server]}") as client:
        client.send(task())  # what it asks a new connection is over
        proxy.cut(server, 0, 0.3)
        with pytest.raises(Unavailable, match="1 task has no answer: whether it was accepted is not known"):
            client.send(one)
        assert stored(redis, f"lost-{server}") == one
        assert client.send(one).duplicate


def test_a_gateway_that_hangs_is_waited_for_no_longer_than_told(gateway: Gateway, redis: Redis) -> None:
    with Client(gateway.url, timeout=1) as client:
        client.send(task())
        gateway.process.signal(signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match=r"no answer within 1 s; 2 tasks have no answer"):
                client.send_many([task(), UNWRITABLE, task()])
        finally:
            gateway.process.signal(signal.SIGCONT)
        assert titles(redis, [client.send(task("afterwards"))]) == ["afterwards"]


def test_a_connection_that_the_gateway_has_ended_is_replaced(redis_server: RedisServer, tmp_path: Path) -> None:
    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.5) as impatient, Client(impatient.url) as client:
        client.send(task())
        with Connection(impatient.port) as later:  # it falls silent after the client did, and is ended no sooner
            assert later.answer()["error"]["code"] == "idle"
        accepted(client.send_many([task(), task()]))


def test_a_source_that_is_silent_for_longer_than_the_gateway_waits_goes_on(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.3) as impatient, Client(impatient.url) as client:

        def source() -> Iterator[dict[str, Any]]:
            yield task("before")
            time.sleep(0.06)
            yield task("with it")
            with Connection(impatient.port) as later:
                assert later.answer()["error"]["code"] == "idle"
            yield from (UNWRITABLE, task("after"))

        first, second, third, fourth = client.send_many(source())
    assert codes([third]) == ["wrong_type"]
    assert titles(redis, [first, second, fourth]) == ["before", "with it", "after"]


def test_a_caller_who_is_silent_for_longer_than_the_gateway_waits_goes_on(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    answers: list[Answer] = []
    large = "x" * 30_000  # so that a few of them are all that is sent at once
    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.3) as impatient, Client(impatient.url) as client:
        for answer in client.send_iter(task(f"large {n}", text=large) for n in range(30)):
            if not answers:
                with Connection(impatient.port) as later:
                    assert later.answer()["error"]["code"] == "idle"
            answers.append(answer)
    assert titles(redis, answers) == [f"large {n}" for n in range(30)]


def test_a_closed_client_opens_another_connection(client: Client) -> None:
    client.send(task())
    client.close()
    client.close()
    accepted([client.send(task())])


def test_where_nobody_listens_it_says_what_to_do() -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"no gateway answers on 127.0.0.1:{port}: .*`qtask up`.*QTASK_URL"):
        Client(f"socket://127.0.0.1:{port}").send(task())


def test_where_no_redis_is_it_says_so_and_keeps_the_password() -> None:
    port = free_port()
    client = Client(f"redis://:secret@127.0.0.1:{port}/0")
    calls: list[Callable[[], Any]] = [
        lambda: client.send(task()),
        lambda: client.show("x"),
        lambda: client.list("dead"),
        lambda: client.cancel("x"),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match=f"no Redis answers at redis://127.0.0.1:{port}/0: ") as caught:
            call()
        assert "secret" not in str(caught.value)


def test_another_service_on_the_port_is_named(redis_server: RedisServer) -> None:
    words = r"the answer is not QTask's: .*; is another service on this port"
    with Client(f"socket://127.0.0.1:{redis_server.port}") as client, pytest.raises(Unavailable, match=words):
        client.send(task())


def test_what_is_not_the_fault_of_a_task_does_not_refuse_it(tmp_path: Path) -> None:
    """Redis away: among many, the task has a code of its own. No room for a connection: nothing was taken."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    with Gateway(url, tmp_path, HOLD_SECONDS=0, MAX_CONNECTIONS=1) as alone, Client(alone.url) as client:
        with pytest.raises(Unavailable):
            client.send(task())
        assert codes(client.send_many([task(), task(delay=-1)])) == ["unavailable", "invalid_value"]
        with Client(alone.url) as second, pytest.raises(Unavailable, match=r"took none of the tasks .* are taken"):
            second.send_many([task(), task()])


# --- addresses ------------------------------------------------------------------------------------------------------


def test_the_environment_names_the_address(gateway: Gateway, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_URL", gateway.url)
    with Client() as client:
        assert client.url == gateway.url
        assert titles(redis, [client.send(task("by the environment"))]) == ["by the environment"]
    assert Client("socket://127.0.0.1:1").url == "socket://127.0.0.1:1"
    monkeypatch.delenv("QTASK_URL")
    assert Client().url == "socket://127.0.0.1:5123"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5124", "127.0.0.1:5123", "socket://127.0.0.1:port", "redis://h:port"]
)
def test_an_address_that_cannot_be_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(url))):
        Client(url)


# --- looking at tasks -----------------------------------------------------------------------------------------------


def test_a_task_is_shown_listed_and_cancelled(over_redis: Client, redis: Redis) -> None:
    answer = over_redis.socket("127.0.0.1:9", {"n": 1}, delay=1, title="to be cancelled")
    record = over_redis.show(answer.id)
    assert (record.id, record.state, record.title, record.queue) == (answer.id, "scheduled", "to be cancelled", "qtask")
    assert record.due == pytest.approx(answer.due, abs=1e-5)
    assert json.loads(bytes(record.task)) == stored(redis, answer.id)
    assert answer.id in [one.id for one in over_redis.list("scheduled", limit=100)]
    assert len(over_redis.list("scheduled", limit=2)) == 2
    assert over_redis.list("dead") == []
    assert over_redis.cancel(answer.id) == "scheduled"
    for call in (over_redis.show, over_redis.cancel):
        with pytest.raises(NotFound, match=answer.id):
            call(answer.id)
    assert redis.zscore(keys.SCHEDULE, answer.id) is None


def test_over_the_socket_there_is_nothing_to_look_at(over_socket: Client) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: over_socket.show("x"),
        lambda: over_socket.list("dead"),
        lambda: over_socket.cancel("x"),
    ]
    for call in calls:
        with pytest.raises(QTaskError, match="only accepts tasks; give the client a redis:// address"):
            call()
