"""The Python client over the socket of a gateway and directly on Redis, with real ones."""

from __future__ import annotations

import inspect
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

import qtask
from qtask import AsyncClient, Client, NotFound, QTaskError, Refused, Unavailable
from qtask.client.protocol import Accepted
from qtask.destinations.parsing import read_task
from qtask.model.errors import ConfigError
from qtask.store import keys
from tests.support.answering import answer_line, answering
from tests.support.gateway_process import HOUR, Gateway, scheduled, stored, task, title_of_id
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.shorthands import HTTP, SHORTHANDS
from tests.support.waiting import until

LiveJob = Callable[[str], str]


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


def ok(answer: Any) -> Accepted:
    assert isinstance(answer, Accepted), answer
    return answer


# --- sending ------------------------------------------------------------------------------------------------------


def test_task_is_in_redis_when_it_is_accepted(client: Client, redis: Redis) -> None:
    before = time.time()
    accepted = client.send(task("one", delay=90.25))
    assert stored(redis, accepted.id) == task("one", delay=90.25)
    assert redis.zscore(keys.SCHEDULE, accepted.id) == accepted.due
    assert before - 1 < accepted.due - 90.25 < time.time() + 1
    assert ok(client.send(read_task(msgspec.json.encode(task("two"))))).id != accepted.id


def test_refused_task_raises_and_the_client_continues(client: Client, redis: Redis) -> None:
    with pytest.raises(Refused, match="delay in seconds") as refused:
        client.send(task(delay=-1))
    assert (refused.value.code, refused.value.field) == ("invalid_value", "settings.time")
    assert client.send(task("after")).id in scheduled(redis)


@pytest.mark.parametrize(
    "wrong", [None, 7, "text", [], [task(), task()], {"title": object()}, {"title": float("nan")}, {1: 2}, {}]
)
def test_value_that_is_not_a_task_is_refused(client: Client, redis: Redis, wrong: Any) -> None:
    with pytest.raises(Refused):
        client.send(wrong)
    answers = client.send_many([task("a"), wrong, task("b")])
    assert [isinstance(answer, Refused) for answer in answers] == [False, True, False]
    assert sorted(title_of_id(redis, scheduled(redis)).values()) == ["a", "b"]


def test_batch_is_answered_in_order_including_refusals(client: Client, redis: Redis) -> None:
    texts = [{"title": object()} if n % 10 == 4 else task(str(n), delay=-1 if n % 10 == 7 else 60) for n in range(100)]
    answers = client.send_many(texts)
    assert [isinstance(answer, Refused) for answer in answers] == [n % 10 in (4, 7) for n in range(100)]
    for n, answer in enumerate(answers):
        if isinstance(answer, Accepted):
            assert stored(redis, answer.id)["title"] == str(n)
        else:
            assert answer.code == ("wrong_type" if n % 10 == 4 else "invalid_value")
    assert client.send_many([]) == []


def test_five_thousand_tasks_are_pipelined_in_order(client: Client, redis: Redis) -> None:
    answers = client.send_many(task(str(n)) for n in range(5_000))
    title_of = title_of_id(redis, [ok(answer).id for answer in answers])
    assert [title_of[ok(answer).id] for answer in answers] == [str(n) for n in range(5_000)]


def test_large_tasks_are_accepted(client: Client, redis: Redis) -> None:
    answers = client.send_many(task(str(n), text="x" * 1_000_000) for n in range(8))
    assert [stored(redis, ok(answer).id)["title"] for answer in answers] == [str(n) for n in range(8)]
    with pytest.raises(Refused) as refused:
        client.send(task(text="x" * 1_048_576))
    assert refused.value.code == "too_large"
    assert ok(client.send(task()))


def test_answers_arrive_while_tasks_are_still_produced(client: Client, redis: Redis) -> None:
    made: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            made.append(len(made))
            yield task(str(made[-1]))

    answers = client.send_iter(endless())
    for n in range(3_000):
        assert stored(redis, ok(next(answers)).id)["title"] == str(n)
        assert len(made) - n <= 2_100
    assert ok(client.send(task("meanwhile")))
    for n in range(3_000, 3_100):
        assert stored(redis, ok(next(answers)).id)["title"] == str(n)


def test_task_does_not_wait_for_slowly_produced_ones(client: Client, redis: Redis) -> None:
    def slow() -> Iterator[dict[str, Any]]:
        for n in range(3):
            yield task(str(n))
            time.sleep(0.02)
            until(lambda: len(scheduled(redis)) >= n)  # noqa: B023  # each is accepted while the next is made

    assert len(client.send_many(slow())) == 3


@pytest.mark.slow
def test_slow_consumer_of_answers_loses_nothing(url: str, redis: Redis) -> None:
    with Client(url, timeout=1.5) as client:
        answers = client.send_iter(task(str(n)) for n in range(1_000))
        for n in range(1_000):
            if n in (1, 500):
                time.sleep(1.6)  # longer than the client waits for an answer
            assert ok(next(answers))
        assert next(answers, None) is None


def test_calls_may_be_nested(client: Client, redis: Redis) -> None:
    for n, outer in enumerate(client.send_iter(task(f"outer {n}") for n in range(1_000))):
        if n % 250 == 0:
            inner = client.send(task(f"inner {n}"))
            assert stored(redis, inner.id)["title"] == f"inner {n}"
        assert stored(redis, ok(outer).id)["title"] == f"outer {n}"


def test_abandoned_call_does_not_affect_the_next(client: Client, redis: Redis) -> None:
    for _ in client.send_iter(task("abandoned") for _ in range(1_000)):
        break
    for n in range(3):
        assert stored(redis, client.send(task(str(n))).id)["title"] == str(n)


def test_exception_of_a_generator_is_raised_and_the_client_continues(client: Client, redis: Redis) -> None:
    def failing() -> Iterator[dict[str, Any]]:
        yield task()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.send_many(failing())
    assert stored(redis, client.send(task("after")).id)["title"] == "after"


def test_closed_client_opens_again(client: Client, redis: Redis) -> None:
    client.close()
    assert ok(client.send(task()))
    client.close()
    client.close()
    assert ok(client.send(task()))


# --- shorthands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHORTHANDS)
def test_shorthand_makes_its_dict(client: Client, redis: Redis, name: str) -> None:
    submit, expected = SHORTHANDS[name]
    assert stored(redis, submit(client).id) == expected


def test_without_an_instant_a_task_is_due_at_once(client: Client, redis: Redis) -> None:
    seconds, microseconds = redis.time()
    accepted = client.http(HTTP)
    assert 0 <= accepted.due - (seconds + microseconds / 1e6) < 5


def test_instant_may_have_any_zone(client: Client, redis: Redis) -> None:
    instant = datetime.now(UTC) + timedelta(days=1, microseconds=123_456)
    for at in (instant, instant.astimezone(timezone(timedelta(hours=-9, minutes=-30))), instant.timestamp()):
        assert client.pipe("p", 1, at=at).due == pytest.approx(instant.timestamp(), abs=1e-6)


def test_ambiguous_instant_is_refused(client: Client, redis: Redis) -> None:
    with pytest.raises(Refused, match="zone"):
        client.http(HTTP, at=datetime(2099, 1, 1))  # without a zone, which is the error
    with pytest.raises(Refused, match="not both"):
        client.socket("127.0.0.1:9", 1, delay=0, at=datetime.now(UTC))
    with pytest.raises(Refused, match="delay in seconds"):
        client.pipe("p", 1, delay=timedelta(seconds=-1))
    assert scheduled(redis) == []


# --- addresses ----------------------------------------------------------------------------------------------------


def test_address_is_read_from_the_environment(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_URL", url)
    with Client() as client:
        assert client.url == url
        assert client.send(task()).id in scheduled(redis)
    with Client(f"socket://127.0.0.1:{free_port()}") as other, pytest.raises(Unavailable):
        other.send(task())
    monkeypatch.delenv("QTASK_URL")
    assert Client().url == "socket://127.0.0.1:5123"


WRONG_ADDRESSES = [
    *("", "127.0.0.1:5123", "ftp://127.0.0.1:5123", "socket://h:port", "redis://h:port"),
    *("http://h:port", "http://", "http://127.0.0.1:5124/?a"),
]


@pytest.mark.parametrize("wrong", WRONG_ADDRESSES)
def test_wrong_address_is_refused_at_once(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_URL", "nonsense")
    with pytest.raises(ConfigError, match=r"is not (an|the) address"):
        Client(wrong)


def test_tasks_go_to_the_named_queue(redis_server: RedisServer, redis: Redis) -> None:
    with Client(redis_server.url, queue="other") as client:
        accepted = client.send(task())
        assert redis.hget(keys.job(accepted.id), "origin") == b"other"
        assert client.show(accepted.id).queue == "other"


# --- reading ------------------------------------------------------------------------------------------------------


def test_over_redis_tasks_are_shown_listed_and_cancelled(redis_server: RedisServer, redis: Redis) -> None:
    with Client(redis_server.url) as client:
        first, second = (ok(answer) for answer in client.send_many([task("b", delay=200), task("a", delay=100)]))
        assert client.show(first.id).title == "b"
        assert client.show(first.id).due == first.due
        assert [record.id for record in client.list("scheduled")] == [second.id, first.id]
        assert [record.id for record in client.list("scheduled", limit=1)] == [second.id]
        assert client.list("dead") == []
        assert client.cancel(first.id) == "scheduled"
        assert scheduled(redis) == [second.id]
        for missing in (client.show, client.cancel):
            with pytest.raises(NotFound, match=first.id):
                missing(first.id)


@pytest.mark.parametrize("url", ["http", "redis"], indirect=True)
def test_task_is_shown_cancelled_and_retried(client: Client, live_job: LiveJob, redis: Redis) -> None:
    given = task("b", delay=200)
    accepted = client.send(given)
    shown = client.show(accepted.id)
    assert (shown.id, shown.state, shown.title, shown.due) == (accepted.id, "scheduled", "b", accepted.due)
    assert shown.task == given
    assert "'title': 'b'" in repr(shown)
    assert client.cancel(accepted.id) == "scheduled"
    for missing in (client.show, client.cancel):
        with pytest.raises(NotFound, match=accepted.id):
            missing(accepted.id)
    dead, queued = live_job("failed"), live_job("queued")
    assert client.retry([dead, queued, "unknown"]) == [dead]
    assert client.show(dead).state == "queued"
    with pytest.raises(QTaskError, match="right now"):
        client.cancel(live_job("started"))


def test_unsupported_call_names_an_address_that_supports_it(gateway: Gateway) -> None:
    with Client(gateway.url) as by_socket, Client(gateway.http_url) as by_http:
        on_tasks = (by_socket.show, by_socket.cancel, by_socket.forget, by_socket.retry, by_socket.remove)
        on_flows = (by_socket.flow, by_socket.pause_flow, by_socket.resume_flow, by_socket.reset_flow)
        for by_id in (*on_tasks, *on_flows, by_socket.remove_flow, by_socket.set_flow):
            with pytest.raises(QTaskError, match=r"such as http://127.0.0.1:5124\) or a redis:// address"):
                by_id("x")
        for client in (by_socket, by_http):
            for call in (lambda: client.list("scheduled"), client.find_dead):  # noqa: B023
                with pytest.raises(QTaskError, match=f"{client.url} cannot do this; it needs a redis:// address"):
                    call()


@pytest.fixture
def live_job(redis: Redis) -> LiveJob:
    """Makes tasks in a given RQ status, as they would be after or during a delivery."""

    def make(status: str) -> str:
        task_id = f"{status}-1"
        data = '["qtask.do",0,[' + json.dumps(task()) + "],{}]"
        redis.hset(keys.job(task_id), mapping={"data": data, "origin": "qtask", "status": status, "attempt": 1})
        if status == "failed":
            redis.zadd(keys.failed("qtask"), {task_id: keys.FOREVER_SECONDS + 1})
        return task_id

    return make


# --- no gateway or Redis ------------------------------------------------------------------------------------------


def test_without_a_gateway_or_redis_it_is_unavailable() -> None:
    port = free_port()
    with Client(f"socket://127.0.0.1:{port}") as client, pytest.raises(Unavailable, match="qtask up") as away:
        client.send(task())
    assert f"127.0.0.1:{port}" in str(away.value)
    with Client(f"http://127.0.0.1:{port}") as client:
        for call in (lambda: client.send(task()), lambda: client.show("x"), lambda: client.cancel("x")):
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: .*refused.* `qtask up`") as away:
                call()
            assert "HTTPConnection" not in str(away.value)
    with Client(f"redis://127.0.0.1:{port}/0") as client:
        for asked in (
            lambda: client.send(task()),
            lambda: client.show("x"),
            lambda: client.cancel("x"),
            lambda: client.list("dead"),
            lambda: client.find_dead(title="x"),
        ):
            with pytest.raises(Unavailable, match="Redis does not answer"):
                asked()
        assert isinstance(client.send_many([{"title": 1}])[0], Refused), "invalid tasks need no Redis"


def test_lost_connection_reports_tasks_with_unknown_state() -> None:
    with answering(answer_line(0), answer_line(1), None) as url, Client(url) as client:
        with pytest.raises(
            Unavailable, match="whether the 3 tasks without an answer were accepted is not known"
        ) as lost:
            client.send_many([task(), task(), task(), {"title": object()}, task(), task()])
        assert [answer.id for answer in lost.value.answers] == ["id-0", "id-1"]
        answers = client.send_iter(task() for _ in range(3))
        assert [ok(next(answers)).id for _ in range(2)] == ["id-0", "id-1"]
        with pytest.raises(Unavailable, match="whether the task without an answer was accepted is not known"):
            next(answers)
        assert client.send(task()).id == "id-0", "the next call opens a new connection"


def test_killed_gateway_is_reported(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> None:
    with Gateway(redis_server.url, tmp_path) as doomed, Client(doomed.url) as client:
        answers = client.send_iter(task(str(n)) for n in range(100_000))
        ids = [ok(next(answers)).id for _ in range(1_000)]
        doomed.process.kill()
        with pytest.raises(Unavailable, match="not known"):
            ids.extend(ok(answer).id for answer in answers)
        assert list(title_of_id(redis, ids).values()) and len(title_of_id(redis, ids)) == len(ids)
        with pytest.raises(Unavailable, match="no gateway answers"):
            client.send(task())


def test_silent_gateway_causes_a_timeout() -> None:
    silence = r"nothing came within 0\.2 s; whether the task without an answer was"
    with answering() as url, Client(url, timeout=0.2) as client, pytest.raises(Unavailable, match=silence):
        client.send(task())


def test_other_service_is_recognised() -> None:
    for said, words in ((b"220 mail.example ESMTP\r\n", "another service"), (answer_line(0) * 2, "an unexpected line")):
        with answering(said) as url, Client(url) as client, pytest.raises(Unavailable, match=words):
            client.send_many([task()])


def test_gateway_without_redis_is_unavailable(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    with Gateway(server.url, tmp_path) as gateway, Client(gateway.url) as client:
        with pytest.raises(Unavailable, match="send it again"):
            client.send(task())
        (answer,) = client.send_many([task()])
        assert isinstance(answer, Refused) and answer.code == "unavailable"
        server.start()
        try:
            assert ok(client.send(task()))
        finally:
            server.kill()


def test_restarted_redis_is_used_again(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        with Client(server.url) as client:
            assert ok(client.send(task()))
            server.kill()
            for _ in range(2):
                with pytest.raises(Unavailable, match="whether the task without an answer was accepted is not known"):
                    client.send(task())
            server.start()
            assert ok(client.send(task()))
    finally:
        server.kill()


def test_client_reconnects_after_the_gateway_closed_an_idle_connection(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    with Gateway(redis_server.url, tmp_path, IDLE_SECONDS=0.1) as gateway, Client(gateway.url) as client:
        for n in range(2):
            assert stored(redis, client.send(task(str(n))).id)["title"] == str(n)
            time.sleep(0.3)  # the gateway sends `idle` and closes


def test_gateway_at_its_connection_limit_is_unavailable(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    with Gateway(redis_server.url, tmp_path, MAX_CONNECTIONS=1) as gateway, Client(gateway.url) as first:
        assert ok(first.send(task()))
        with Client(gateway.url) as second:
            with pytest.raises(Unavailable, match="connections are served at once"):
                second.send(task())
            first.close()

            def accepted() -> bool:
                try:
                    return bool(second.send(task()).id)
                except Unavailable:
                    return False

            until(accepted)


def test_socket_client_does_not_import_redis_or_rq(gateway: Gateway, redis: Redis) -> None:
    program = (
        "import sys, qtask\n"
        f"with qtask.Client({gateway.url!r}) as client: client.http('http://127.0.0.1:9/', delay={HOUR})\n"
        "print([name for name in ('redis', 'rq', 'pycurl', 'matplotlib', 'uvicorn') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
    assert len(scheduled(redis)) == 1


def test_second_task_with_an_id_is_answered_with_the_first(client: Client) -> None:
    first = client.http("http://127.0.0.1:9/hook", delay=60, id="order-7")
    again = client.http("http://127.0.0.1:9/hook", delay=90, id="order-7")
    assert (first.id, first.duplicate) == ("order-7", False)
    assert again == Accepted("order-7", first.due, True)
    assert client.http("http://127.0.0.1:9/hook", delay=60, id="order-8").duplicate is False


# --- names of arguments -------------------------------------------------------------------------------------------

WRONG_WORDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "http": (lambda client: client.http(HTTP, dealy=3600), r"http\(\) got .* 'dealy'; did you mean 'delay'\?"),
    "http, far": (lambda client: client.http(HTTP, cron="* * * * *"), r"'cron'; it takes at, data, delay, "),
    "http, as requests": (lambda client: client.http(HTTP, auth=("a", "b"), json=1), r"http\(\) got .* 'auth'"),
    "socket": (lambda client: client.socket("127.0.0.1:9", 1, timeot=1), "'timeot'; did you mean 'timeout'"),
    "udp": (lambda client: client.udp("127.0.0.1:9", 1, expire=1), "'expire'; did you mean 'expires'"),
    "pipe": (lambda client: client.pipe("p", 1, retries=1), "'retries'; did you mean 'retry'"),
    "redis": (lambda client: client.redis("redis://h/", feilds={}), "'feilds'; did you mean 'fields'"),
    "websocket": (lambda client: client.websocket("ws://h/", answr=True), "'answr'; did you mean 'answer'"),
    "graph": (lambda client: client.graph(titel="t"), "'titel'; did you mean 'title'"),
    "send": (lambda client: client.send(task(), dealy=1), r"send\(\) got an unexpected .* 'dealy'; it takes task"),
    "send_many": (lambda client: client.send_many([], task=1), "'task'; did you mean 'tasks'"),
    "send_iter": (lambda client: client.send_iter([], task=1), "'task'; did you mean 'tasks'"),
    "show": (lambda client: client.show(id="x"), "'id'; did you mean 'task_id'"),
    "list": (lambda client: client.list("dead", limits=1), "'limits'; did you mean 'limit'"),
    "cancel": (lambda client: client.cancel(task="x"), "'task'; did you mean 'task_id'"),
    "forget": (lambda client: client.forget(task="x"), "'task'; did you mean 'task_id'"),
    "find_dead": (lambda client: client.find_dead(links="x"), "'links'; did you mean 'link'"),
    "retry": (lambda client: client.retry(idss=[]), "'idss'; did you mean 'ids'"),
    "remove": (lambda client: client.remove(idss=[]), "'idss'; did you mean 'ids'"),
    "flows": (lambda client: client.flows(limits=1), "'limits'; did you mean 'limit'"),
    "flow": (lambda client: client.flow(kee="x"), "'kee'; did you mean 'key'"),
    "set_flow": (lambda client: client.set_flow("x", paralel=1), "'paralel'; did you mean 'parallel'"),
    "pause_flow": (lambda client: client.pause_flow(kee="x"), "'kee'; did you mean 'key'"),
    "resume_flow": (lambda client: client.resume_flow(kee="x"), "'kee'; did you mean 'key'"),
    "reset_flow": (lambda client: client.reset_flow(kee="x"), "'kee'; did you mean 'key'"),
    "remove_flow": (lambda client: client.remove_flow(kee="x"), "'kee'; did you mean 'key'"),
    "queues": (lambda client: client.queues(nam="x"), r"queues\(\) got an unexpected keyword argument 'nam'"),
    "pause_queue": (lambda client: client.pause_queue(nam="x"), "'nam'; did you mean 'name'"),
    "resume_queue": (lambda client: client.resume_queue(nam="x"), "'nam'; did you mean 'name'"),
    "purge_queue": (lambda client: client.purge_queue(nam="x"), "'nam'; did you mean 'name'"),
    "itself": (lambda client: type(client)(client.url, timout=1), "Client.* 'timout'; did you mean 'timeout'"),
}


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("name", WRONG_WORDS)
def test_unknown_argument_is_refused_with_the_nearest_name(kind: type[Any], name: str) -> None:
    call, message = WRONG_WORDS[name]
    client = kind(f"socket://127.0.0.1:{free_port()}")
    with pytest.raises(TypeError, match=message):
        call(client)


def test_every_method_is_tested_with_an_unknown_argument() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, callable) if not name.startswith("_")}
    assert methods - {"close"} <= {name.partition(",")[0] for name in WRONG_WORDS}


def test_package_lists_its_names() -> None:
    assert set(qtask.__all__) <= set(dir(qtask))
    assert "__version__" in dir(qtask)


# --- addresses of HTTP --------------------------------------------------------------------------------------------


def test_http_address_may_have_a_path_and_its_password_is_hidden(redis_server: RedisServer, redis: Redis) -> None:
    def behave(exchange: Exchange) -> None:
        asked.append((exchange.request.target, exchange.request.header("Authorization")))
        exchange.answer(202, b'{"ok":true,"id":"a","due":1.5}', {"Content-Type": "application/json"})

    asked: list[tuple[str, str]] = []
    with Receiver(behave) as receiver:
        url = receiver.url.replace("http://", "http://ada:S3cret@").rstrip("/") + "/behind/a/proxy/"
        with Client(url) as client:
            assert client.send(task()) == Accepted("a", 1.5)
            with pytest.raises(QTaskError) as cannot:
                client.list("dead")
    assert asked == [("/behind/a/proxy/tasks", "Basic YWRhOlMzY3JldA==")]
    gone = f"http://ada:S3cret@127.0.0.1:{free_port()}"
    with Client(gone) as client, pytest.raises(Unavailable, match="no gateway answers") as away:
        client.send(task())
    assert "S3cret" not in f"{cannot.value} {away.value}"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"hello":1}'])
def test_other_service_on_the_http_port_is_recognised(body: bytes) -> None:
    with Receiver(lambda exchange: exchange.answer(200, body)) as receiver, Client(receiver.url) as client:
        for call in (lambda: client.send(task()), lambda: client.show("x"), lambda: client.cancel("x")):
            with pytest.raises(Unavailable, match="another service"):
                call()


def hang_up(exchange: Exchange) -> None:
    exchange.connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("behave", "why"), [(hang_up, "Remote end closed"), (lambda exchange: None, r"nothing came within 0\.5 s; ")]
)
def test_lost_http_answer_reports_tasks_with_unknown_state(behave: Callable[[Exchange], None], why: str) -> None:
    not_known = "whether the 2 tasks without an answer were accepted is not known"
    receiver = Receiver(behave)
    with receiver, Client(receiver.url, timeout=0.5) as client, pytest.raises(Unavailable, match=f"{why}.*{not_known}"):
        client.send_many([task(), {"title": object()}, task()])


def test_http_client_does_not_import_redis(gateway: Gateway, redis: Redis) -> None:
    program = (
        "import sys, qtask\n"
        f"with qtask.Client({gateway.http_url!r}) as client:\n"
        f"    task_id = client.http('http://127.0.0.1:9/', delay={HOUR}).id\n"
        "    assert client.show(task_id).task['title'] == 'http http://127.0.0.1:9/'\n"
        "print([name for name in ('redis', 'rq', 'pycurl', 'matplotlib', 'uvicorn') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"
