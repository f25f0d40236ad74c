"""The gateway's socket: the bytes of the original client, lines, arrays, limits, and hostile clients."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.store import keys
from tests.support.command import qtask
from tests.support.gateway_process import HOUR, Connection, Gateway, line_of, scheduled, stored, task, title_of_id
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until


@pytest.fixture(scope="module")
def strict(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """A gateway with small limits."""
    with Gateway(redis_server.url, folder, MAX_BYTES=1_000, MAX_CONNECTIONS=4, IDLE_SECONDS=0.4) as running:
        yield running


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that may be stopped and killed, and that loses no writes."""
    server = RedisServer(tmp_path_factory.mktemp("own-redis"), "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def shaky(own_redis: RedisServer, folder: Path) -> Iterator[Gateway]:
    """A gateway on the Redis that may be stopped and killed."""
    with Gateway(own_redis.url, folder) as running:
        yield running


def redis_now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + microseconds / 1e6


def scheduled_titles(redis: Redis) -> list[str]:
    return sorted(title_of_id(redis, scheduled(redis)).values())


def code(answer: Any) -> str:
    """The code of a refusal, or `ok`."""
    assert set(answer) == ({"ok", "id", "due"} if answer["ok"] else {"ok", "error"}), answer
    return "ok" if answer["ok"] else str(answer["error"]["code"])


def in_packets(connection: Connection, text: bytes, count: int) -> None:
    """Sends a text in several packets."""
    size = len(text) // count + 1
    for start in range(0, len(text), size):
        connection.send(text[start : start + size])
        time.sleep(0.02)


# --- the original client ------------------------------------------------------------------------------------------

LAYOUTS = {
    "indented": json.dumps(task("original"), indent=4).encode(),
    "on one line": json.dumps(task("original")).encode(),
    "with Windows line breaks": json.dumps(task("original"), indent=2).replace("\n", "\r\n").encode(),
    "with a byte order mark": b"\xef\xbb\xbf" + json.dumps(task("original"), indent=1).encode(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dict_in_three_packets_is_accepted_without_reading_the_answer(
    gateway: Gateway, redis: Redis, layout: str
) -> None:
    connection = Connection(gateway.port)
    in_packets(connection, LAYOUTS[layout], 3)
    connection.close()
    until(lambda: redis.zcard(keys.SCHEDULE) == 1)
    (task_id,) = scheduled(redis)
    assert stored(redis, task_id) == task("original")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_closed_client_gets_one_answer(gateway: Gateway, redis: Redis, layout: str) -> None:
    with Connection(gateway.port) as connection:
        in_packets(connection, LAYOUTS[layout], 3)
        connection.end()
        (answer,) = connection.rest()
    assert stored(redis, answer["id"]) == task("original")


def test_client_that_sends_nothing_gets_nothing(gateway: Gateway) -> None:
    with Connection(gateway.port) as connection:
        connection.end()
        assert connection.rest() == []


def test_incomplete_dict_is_refused_at_the_end_of_input(gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        connection.send(LAYOUTS["indented"][:-5])
        connection.end()
        (answer,) = connection.rest()
    assert code(answer) == "invalid_json"
    assert redis.zcard(keys.SCHEDULE) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_complete_dict_is_accepted_when_the_connection_is_reset(gateway: Gateway, redis: Redis, layout: str) -> None:
    connection = Connection(gateway.port)
    connection.send(LAYOUTS[layout])
    connection.reset()
    until(lambda: redis.zcard(keys.SCHEDULE) == 1)


def test_complete_lines_are_accepted_when_the_connection_is_reset(gateway: Gateway, redis: Redis) -> None:
    connection = Connection(gateway.port)
    connection.send(b"".join(line_of(task(f"{n:03}")) for n in range(100)) + LAYOUTS["indented"][:-5])
    connection.reset()
    until(lambda: redis.zcard(keys.SCHEDULE) == 100)
    with Connection(gateway.port) as connection:  # the incomplete line must not be accepted later
        assert connection.ask([]) == []
    assert scheduled_titles(redis) == [f"{n:03}" for n in range(100)]


# --- lines --------------------------------------------------------------------------------------------------------


def test_answer_holds_the_id_and_the_due_instant(gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        before = redis_now(redis)
        answer = connection.ask(task(delay=1234.5))
        after = redis_now(redis)
        assert set(answer) == {"ok", "id", "due"}
        assert before <= answer["due"] - 1234.5 <= after
        assert redis.zscore(keys.SCHEDULE, answer["id"]) == answer["due"]
        instant = {**task(), "settings": {"at": after + 0.25 + HOUR, "data": 1}}
        assert connection.ask(instant)["due"] == pytest.approx(after + 0.25 + HOUR, abs=1e-6)


def test_task_is_in_redis_when_it_is_answered(gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        for n in range(100):
            answer = connection.ask(task(str(n)))
            assert stored(redis, answer["id"])["title"] == str(n)


def test_pipelined_lines_are_answered_in_order(gateway: Gateway, redis: Redis) -> None:
    texts = [task(str(n), delay=-1 if n % 7 == 3 else HOUR) for n in range(3_000)]
    with Connection(gateway.port) as connection:
        sender = threading.Thread(target=connection.send, args=(b"".join(map(line_of, texts)),))
        sender.start()
        answers = [connection.answer() for _ in texts]
        sender.join()
        assert connection.ask(task("last"))["ok"]
    assert [code(answer) for answer in answers] == ["invalid_value" if n % 7 == 3 else "ok" for n in range(3_000)]
    title_of = title_of_id(redis, (answer["id"] for answer in answers if answer["ok"]))
    for n, answer in enumerate(answers):
        if answer["ok"]:
            assert title_of[answer["id"]] == str(n)
        else:
            assert answer["error"]["field"] == "settings.time"


def test_all_lines_of_a_half_closed_client_are_answered(gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        data = b"".join(line_of(task(str(n))) for n in range(20_000)).rstrip()

        def send() -> None:
            connection.send(data)
            connection.end()

        sender = threading.Thread(target=send)
        sender.start()
        answers = connection.rest()
        sender.join()
    assert [code(answer) for answer in answers] == ["ok"] * 20_000
    assert redis.zcard(keys.SCHEDULE) == 20_000


def test_invalid_line_does_not_affect_others(gateway: Gateway, redis: Redis) -> None:
    broken = [b'{"title": "unfinished"\n', b"\xff\xfe\n", b"\n", b"nonsense\n"]
    with Connection(gateway.port) as connection:
        connection.send(line_of(task("first")) + b"".join(broken) + line_of(task("last")))
        answers = [connection.answer() for _ in range(5)]
    assert [code(answer) for answer in answers] == ["ok", "invalid_json", "invalid_json", "invalid_json", "ok"]
    assert scheduled_titles(redis) == ["first", "last"]


# --- arrays -------------------------------------------------------------------------------------------------------


def test_array_is_answered_with_an_array(gateway: Gateway, redis: Redis) -> None:
    batch = [task("a"), {**task(), "title": ""}, 7, task("b"), [task("c")], task("d", delay=-1)]
    with Connection(gateway.port) as connection:
        connection.send(line_of(batch) + line_of(task("after")))
        answers, after = connection.answer(), connection.answer()
        assert connection.ask([]) == []
    assert [code(answer) for answer in answers] == [
        *("ok", "invalid_value", "wrong_type", "ok", "wrong_type", "invalid_value")
    ]
    assert [answer["error"]["field"] for answer in answers if not answer["ok"]] == ["title", "", "", "settings.time"]
    assert [stored(redis, answers[position]["id"])["title"] for position in (0, 3)] == ["a", "b"]
    assert stored(redis, after["id"])["title"] == "after"


def test_array_of_the_maximum_length_is_accepted_and_a_longer_one_refused(gateway: Gateway, redis: Redis) -> None:
    with Connection(gateway.port) as connection:
        answers = connection.ask([task(str(n)) for n in range(10_000)])
        refused = connection.ask([0] * 10_001)
        assert connection.ask(task("after"))["ok"]
    assert [code(answer) for answer in answers] == ["ok"] * 10_000
    title_of = title_of_id(redis, (answer["id"] for answer in answers))
    assert [title_of[answer["id"]] for answer in answers] == [str(n) for n in range(10_000)]
    assert code(refused) == "too_large" and "10000" in refused["error"]["message"]
    assert redis.zcard(keys.SCHEDULE) == 10_001


def test_array_over_several_lines_is_one_text(gateway: Gateway) -> None:
    with Connection(gateway.port) as connection:
        connection.send(json.dumps([task("a"), task("b")], indent=2).encode())
        assert [answer["ok"] for answer in connection.answer()] == [True, True]


@pytest.mark.parametrize("text", [b"[1,", b"[1 2]", b"[}"])
def test_invalid_array_gets_one_refusal(gateway: Gateway, text: bytes) -> None:
    with Connection(gateway.port) as connection:
        connection.send(text)
        connection.end()
        (answer,) = connection.rest()
    assert code(answer) == "invalid_json"


# --- limits -------------------------------------------------------------------------------------------------------


def test_too_large_dict_is_refused_and_the_connection_stays_open(strict: Gateway, redis: Redis) -> None:
    room = 1_000 - len(line_of(task("t", text="")).rstrip())
    with Connection(strict.port) as connection:
        assert connection.ask(task("t", text="x" * room))["ok"]
        for size in (1_001, 15_000):
            answer = connection.ask(task("t", text="x" * (room + size - 1_000)))
            assert code(answer) == "too_large" and "1000 bytes" in answer["error"]["message"]
        inside = connection.ask([task("a"), task("b", text="x" * 1_001)])
        assert [code(answer) for answer in inside] == ["ok", "too_large"]
        assert connection.ask(task())["ok"]
    assert redis.zcard(keys.SCHEDULE) == 3


@pytest.mark.parametrize("text", [b'{"title": "' + b"x" * 5_000_000, b"[" * 5_000_000, b"x" * 5_000_000])
def test_client_of_an_endless_text_can_read_the_refusal(strict: Gateway, text: bytes) -> None:
    with Connection(strict.port) as connection:
        connection.send(text)  # far more than is read: the client reads only after it has sent all
        (answer,) = connection.rest()
    assert code(answer) == "too_large" and "16000 bytes" in answer["error"]["message"]


def test_too_deeply_nested_dict_is_refused(strict: Gateway) -> None:
    def nested(depth: int) -> dict[str, Any]:
        data: Any = 1
        for _ in range(depth - 2):  # the dict itself and its settings are levels, too
            data = [data]
        return {**task(), "settings": {"time": HOUR, "data": data}}

    with Connection(strict.port) as connection:
        assert connection.ask(nested(64))["ok"]
        assert code(connection.ask(nested(65))) == "too_deep"
        assert [code(answer) for answer in connection.ask([nested(64), nested(65)])] == ["ok", "too_deep"]
        assert connection.ask(task())["ok"]


@pytest.mark.parametrize("begun", [b"", b'{"title": "unfin', b"[", line_of(task())])
def test_silent_connection_is_notified_and_closed(strict: Gateway, begun: bytes) -> None:
    with Connection(strict.port) as connection:
        connection.send(begun)
        *answers, last = connection.rest()
    assert [code(answer) for answer in answers] == (["ok"] if begun.endswith(b"\n") else [])
    assert code(last) == "idle" and "0.4 s" in last["error"]["message"]


def test_slowly_sending_client_is_not_silent(strict: Gateway) -> None:
    with Connection(strict.port) as connection:
        for byte in line_of(task()):
            connection.send(bytes([byte]))
            time.sleep(0.01)  # in total longer than the silence that ends a connection
        assert connection.answer()["ok"]


def test_connection_above_the_limit_is_refused_and_others_are_served(strict: Gateway) -> None:
    def too_many() -> bool:
        with Connection(strict.port) as connection:
            connection.send(line_of(task()))
            answers = connection.rest()
        if code(answers[0]) == "too_many":
            assert len(answers) == 1 and "4 connections" in answers[0]["error"]["message"]
            return True
        return False

    with open_connections(strict.port, 4) as connections:
        for _ in range(3):
            assert too_many()
        assert [code(connection.ask(task())) for connection in connections] == ["ok"] * 4
        connections.pop().close()
        until(lambda: not too_many(), what="the place of the one that left")


def test_http_request_is_answered_in_http(gateway: Gateway, redis: Redis) -> None:
    for method, body in (("GET", None), ("POST", line_of(task()) * 3)):
        client = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        client.request(method, "/tasks", body)
        response = client.getresponse()
        answer = json.loads(response.read())
        assert response.status == 400
        assert code(answer) == "wrong_protocol" and str(gateway.http_port) in answer["error"]["message"]
        client.close()
    assert redis.zcard(keys.SCHEDULE) == 0


@pytest.mark.parametrize("method", ["GET", "POST", "post", "PROPFIND", "QUERY", "M-SEARCH", "x_y"])
@pytest.mark.parametrize("before", [b"", b"\r\n\n", b"\xef\xbb\xbf"])
def test_lines_in_the_post_of_a_web_page_are_not_tasks(
    gateway: Gateway, redis: Redis, method: str, before: bytes
) -> None:
    head = f"{method} / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n\r\n".encode()
    with Connection(gateway.port) as connection:
        connection.send(before + head + line_of(task()) * 3)
        connection.end()
        answer = connection.socket.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b"X-Content-Type-Options: nosniff" in answer
    assert code(json.loads(answer.partition(b"\r\n\r\n")[2])) == "wrong_protocol"
    assert redis.zcard(keys.SCHEDULE) == 0


@pytest.mark.parametrize(
    ("beginning", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "got TLS; connect without TLS"),
        (b"\x16\x03", "got TLS"),
        ("\ufeff[]".encode("utf-16-le"), "got UTF-16; send UTF-8"),
        ("\ufeff[]".encode("utf-32-be"), "got UTF-32; send UTF-8"),
        (b"\x1f\x8b\x08\x00", "got gzip; send it uncompressed"),
        (b"\x00\x01\x02\x03", "got binary data"),
    ],
)
def test_lines_after_binary_data_are_not_tasks(gateway: Gateway, redis: Redis, beginning: bytes, words: str) -> None:
    """A TLS session ticket, which a web page can choose, may contain a line of JSON."""
    with Connection(gateway.port) as connection:
        connection.send(beginning + b"\n" + line_of(task()))
        (answer,) = connection.rest()
    assert words in answer["error"]["message"]
    assert redis.zcard(keys.SCHEDULE) == 0


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b" \n\xef\xbb\xbf", b"\xef\xbb\xbf\r\n "])
def test_byte_order_mark_before_each_text_is_ignored(gateway: Gateway, redis: Redis, before: bytes) -> None:
    texts = [line_of(task()), line_of([task()]), line_of(task())]
    with Connection(gateway.port) as connection:
        for byte in b"".join(before + text for text in texts) + b"\xef\xbb\xbf":
            connection.send(bytes([byte]))
        connection.end()
        first, second, third, *rest = connection.rest()
    assert [code(first), code(second[0]), code(third)] == ["ok"] * 3
    assert [code(answer) for answer in rest] in ([], ["invalid_json"])


# --- hostile clients ----------------------------------------------------------------------------------------------


@contextmanager
def open_connections(port: int, count: int) -> Iterator[list[Connection]]:
    connections = [Connection(port) for _ in range(count)]
    try:
        for connection in connections:
            assert connection.ask([]) == []
        yield connections
    finally:
        for connection in connections:
            connection.close()


class HostileClient:
    """Repeats an action against a gateway in a thread until the end of the context."""

    def __init__(self, gateway: Gateway, does: Callable[[Connection, Callable[[], bool]], None]) -> None:
        self._over = threading.Event()
        self._connection = Connection(gateway.port, receive_buffer=4_096)
        self._thread = threading.Thread(target=self._run, args=(does,), daemon=True)
        self.rounds = 0

    def _run(self, does: Callable[[Connection, Callable[[], bool]], None]) -> None:
        with suppress(OSError):  # the gateway may close the connection
            does(self._connection, self._continues)

    def _continues(self) -> bool:
        self.rounds += 1
        return not self._over.is_set()

    def __enter__(self) -> HostileClient:
        self._thread.start()
        until(lambda: self.rounds > 3 or not self._thread.is_alive(), what="the hostile client to start")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._connection.socket.settimeout(0.1)
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._connection.close()


def dribble(connection: Connection, continues: Callable[[], bool]) -> None:
    for byte in line_of(task("x" * 400)) * 100:
        if not continues():
            return
        connection.send(bytes([byte]))
        time.sleep(0.001)


def never_read(connection: Connection, continues: Callable[[], bool]) -> None:
    lines = line_of(task("unread")) * 100
    for _ in range(1_000):
        if not continues():
            return
        connection.send(lines)


def send_arrays(connection: Connection, continues: Callable[[], bool]) -> None:
    line = line_of([task("array", n=[[]] * 40)] * 1_000)
    while continues():
        connection.send(line)


def send_a_line_without_end(connection: Connection, continues: Callable[[], bool]) -> None:
    connection.send(b'{"title":"')
    for _ in range(1_024):
        if not continues():
            return
        connection.send(b"x" * 1_024)


def send_garbage(connection: Connection, continues: Callable[[], bool]) -> None:
    connection.socket.settimeout(0.05)
    while continues():
        connection.send(os.urandom(20_000))
        with suppress(TimeoutError):
            connection.socket.recv(65_536)


@pytest.mark.parametrize("behave", [dribble, never_read, send_arrays, send_a_line_without_end, send_garbage])
def test_slow_or_hostile_client_does_not_delay_answers_to_others(
    gateway: Gateway, redis: Redis, behave: Callable[[Connection, Callable[[], bool]], None]
) -> None:
    before = gateway.memory()
    with HostileClient(gateway, behave), Connection(gateway.port) as connection:
        for n in range(15):
            answer = connection.ask(task(str(n)))
            assert stored(redis, answer["id"])["title"] == str(n)
    assert gateway.memory() - before < 100_000_000


def test_many_idle_connections_do_not_delay_answers(gateway: Gateway) -> None:
    with open_connections(gateway.port, 200), Connection(gateway.port) as connection:
        for n in range(15):
            assert connection.ask(task(str(n)))["ok"]


def test_client_that_reads_no_answers_is_disconnected(strict: Gateway) -> None:
    connection = Connection(strict.port, receive_buffer=4_096)
    with suppress(ConnectionError):  # it may be disconnected before it has sent everything
        connection.send(line_of(task("unread")) * 100_000)
        until(lambda: connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
    connection.close()
    with Connection(strict.port) as other:
        assert other.ask(task())["ok"]


# --- Redis away ---------------------------------------------------------------------------------------------------


def test_backlog_above_the_gateway_limit_is_answered_with_a_slow_redis(shaky: Gateway, own_redis: RedisServer) -> None:
    """Four clients, each with more than one may have unanswered, share the limit; no request is forgotten."""
    redis = own_redis.client()
    redis.flushall()
    answers: list[list[Any]] = [[] for _ in range(4)]

    def talk(name: int) -> None:
        with Connection(shaky.port) as connection:
            data = b"".join(line_of(task(f"{name}-{n}")) for n in range(2_500))
            sender = threading.Thread(target=connection.send, args=(data,))
            sender.start()
            answers[name] = [connection.answer() for _ in range(2_500)]
            sender.join()

    clients = [threading.Thread(target=talk, args=(name,)) for name in range(4)]
    redis.client_pause(800)
    for client in clients:  # the first fills the limit of one client, the last the limit of all
        client.start()
        time.sleep(0.15)
    while clients[0].is_alive():
        redis.client_pause(20)  # so that the limit is reached again before more is answered
    for client in clients:
        client.join(60)
    assert [[code(answer) for answer in one] for one in answers] == [["ok"] * 2_500] * 4
    assert redis.zcard(keys.SCHEDULE) == 10_000


def test_hanging_redis_makes_the_gateway_unavailable_and_never_ok(shaky: Gateway, own_redis: RedisServer) -> None:
    redis = own_redis.client()
    redis.flushall()
    with Connection(shaky.port) as connection, Connection(shaky.port) as other:
        own_redis.signal(signal.SIGSTOP)
        try:
            connection.send(line_of(task()))
            other.send(line_of([task(), task()]))
            assert code(connection.answer()) == "unavailable"
            assert [code(answer) for answer in other.answer()] == ["unavailable"] * 2
        finally:
            own_redis.signal(signal.SIGCONT)
        answer = connection.ask(task("after"))
    assert stored(redis, answer["id"])["title"] == "after"


def test_killed_redis_makes_the_gateway_unavailable_until_it_is_back(shaky: Gateway, own_redis: RedisServer) -> None:
    own_redis.client().flushall()
    over = threading.Event()
    answers: list[Any] = []

    def talk() -> None:
        with Connection(shaky.port) as connection:
            while not over.is_set():
                answers.append(connection.ask(task(str(len(answers)))))
                time.sleep(0.001)

    client = threading.Thread(target=talk)
    client.start()
    try:
        for _ in range(2):
            seen = len(answers)
            until(lambda: "ok" in map(code, answers[seen:]), what="tasks that are accepted")  # noqa: B023
            own_redis.kill()
            seen = len(answers)
            until(lambda: "unavailable" in map(code, answers[seen:]), what="a refusal")  # noqa: B023
            own_redis.start()
        until(lambda: code(answers[-1]) == "ok", what="tasks that are accepted again")
    finally:
        over.set()
        client.join(60)
    assert {code(answer) for answer in answers} == {"ok", "unavailable"}
    hints = {answer["error"]["message"] for answer in answers if not answer["ok"]}
    assert all("send it again" in hint for hint in hints), hints
    accepted = {answer["id"]: str(n) for n, answer in enumerate(answers) if answer["ok"]}
    assert title_of_id(own_redis.client(), accepted) == accepted


# --- start and stop -----------------------------------------------------------------------------------------------


def test_stopping_gateway_answers_what_it_has_read(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> None:
    answers: list[list[Any]] = [[] for _ in range(5)]

    def talk(name: int, port: int) -> None:
        ended = threading.Event()

        def send(connection: Connection) -> None:
            with suppress(OSError):
                for n in range(1_000_000):
                    if ended.is_set():
                        return
                    connection.send(line_of(task(f"{name}-{n}")))

        with Connection(port) as connection:
            sender = threading.Thread(target=send, args=(connection,))
            sender.start()
            answers[name] = connection.rest()
            ended.set()
            sender.join()

    with Gateway(redis_server.url, tmp_path) as gateway, Connection(gateway.port):  # and one that sends nothing
        clients = [threading.Thread(target=talk, args=(name, gateway.port)) for name in range(5)]
        for client in clients:
            client.start()
        until(lambda: redis.zcard(keys.SCHEDULE) > 1_000)
        assert gateway.process.stop() == 0
        for client in clients:
            client.join(60)
        assert gateway.events("stopped") and not gateway.events("stopped_early"), gateway.log
    accepted = {answer["id"]: f"{name}-{n}" for name, one in enumerate(answers) for n, answer in enumerate(one)}
    assert min(map(len, answers)) > 0
    assert title_of_id(redis, accepted) == accepted
    assert redis.zcard(keys.SCHEDULE) == len(accepted), "each task in Redis was answered"


def test_second_signal_does_not_wait(own_redis: RedisServer, tmp_path: Path) -> None:
    with Gateway(own_redis.url, tmp_path) as gateway, Connection(gateway.port) as connection:
        own_redis.signal(signal.SIGSTOP)
        try:
            connection.send(line_of(task()))
            gateway.process.signal(signal.SIGTERM)
            until(lambda: gateway.events("stopping"))
            gateway.process.signal(signal.SIGTERM)
            assert gateway.process.stop(6) == 1  # the grace is 8 s
        finally:
            own_redis.signal(signal.SIGCONT)


@pytest.mark.parametrize("taken", ["--port", "--http-port"])
def test_port_in_use_ends_the_gateway_with_a_clear_error(redis_server: RedisServer, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {"--port": free_port(), "--http-port": free_port(), taken: port}
        arguments = [str(part) for pair in ports.items() for part in pair]
        ended = qtask("gateway", "--redis", redis_server.url, "--log-format", "json", *arguments)
    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    error = json.loads(last)["error"]
    assert f"127.0.0.1 port {port}" in error and "choose another with --port or --http-port" in error
    assert "Traceback" not in ended.stderr


def test_gateway_starts_before_its_redis(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    with Gateway(server.url, tmp_path) as gateway, Connection(gateway.port) as connection:
        assert code(connection.ask(task())) == "unavailable"
        server.start()
        try:
            until(lambda: code(connection.ask(task())) == "ok")
        finally:
            server.kill()


def test_gateways_logged_no_exceptions_in_this_file(gateway: Gateway, strict: Gateway, shaky: Gateway) -> None:
    for one in (gateway, strict, shaky):
        assert one.process.running
        assert "Traceback" not in one.log and "exception" not in one.log
