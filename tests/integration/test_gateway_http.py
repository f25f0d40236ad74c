"""HTTP of the gateway: submitting, reading, limits, and answers while Redis is away."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.store import keys
from tests.support.gateway_process import HOUR, Gateway, scheduled, stored, task, title_of_id
from tests.support.http_response import Response
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

PATHS = ["/tasks/P7DVFCP--0--", "/graphs/P7DVFCP--0--", "/health"]


class Browser:
    """One HTTP connection, kept alive; a context manager. It fails after waiting for 20 seconds."""

    def __init__(self, gateway: Gateway) -> None:
        self.connection = HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def request(self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, **headers: str) -> Response:
        chunked = not (body is None or isinstance(body, bytes))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, named, encode_chunked=chunked)
        return self.response()

    def response(self) -> Response:
        response = self.connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, response.read())

    def post(self, text: Any) -> Response:
        """Submits a dict (or any JSON value)."""
        return self.request("POST", "/tasks", json.dumps(text).encode(), Content_Type="application/json")

    def post_raw(self, body: bytes | Iterable[bytes], content_type: str = "application/json") -> Response:
        return self.request("POST", "/tasks", body, Content_Type=content_type)

    def get(self, path: str) -> Response:
        return self.request("GET", path)


@pytest.fixture(scope="module")
def strict(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """A gateway with small limits."""
    with Gateway(redis_server.url, folder, MAX_BYTES=1_000, MAX_CONNECTIONS=3, IDLE_SECONDS=0.4) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def browser(gateway: Gateway) -> Iterator[Browser]:
    with Browser(gateway) as opened:
        yield opened


# --- submitting ---------------------------------------------------------------------------------------------------


def test_dict_is_in_redis_when_it_is_accepted(browser: Browser, redis: Redis) -> None:
    for n in range(50):
        response = browser.post(task(str(n)))
        assert response.status == 202
        assert set(response.json) == {"ok", "id", "due"}
        assert stored(redis, response.json["id"]) == task(str(n))
        assert redis.zscore(keys.SCHEDULE, response.json["id"]) == response.json["due"]


def test_invalid_dict_is_refused_with_the_reason(browser: Browser, redis: Redis) -> None:
    response = browser.post(task(delay=-1))
    assert (response.status, response.code) == (400, "invalid_value")
    assert response.json["error"]["field"] == "settings.time"
    for body in (b"", b"   ", b'{"title":', b"\xff", b'"text"', b"[1,", b"[]]"):
        response = browser.post_raw(body)
        assert response.status == 400, body
        assert response.code in ("invalid_json", "wrong_type"), body
    assert scheduled(redis) == []


def test_array_is_answered_with_an_array(browser: Browser, redis: Redis) -> None:
    response = browser.post([task("a"), {**task(), "title": ""}, 7, task("b")])
    assert response.status == 202
    assert [answer["ok"] for answer in response.json] == [True, False, False, True]
    assert [answer["error"]["code"] for answer in response.json[1:3]] == ["invalid_value", "wrong_type"]
    assert [stored(redis, response.json[n]["id"])["title"] for n in (0, 3)] == ["a", "b"]
    assert (browser.post([]).status, browser.post([]).json) == (202, [])


def test_array_of_the_maximum_length_is_accepted_and_a_longer_one_refused(browser: Browser, redis: Redis) -> None:
    response = browser.post([task(str(n)) for n in range(10_000)])
    title_of = title_of_id(redis, [answer["id"] for answer in response.json])
    assert [title_of[answer["id"]] for answer in response.json] == [str(n) for n in range(10_000)]
    response = browser.post([0] * 10_001)
    assert (response.status, response.code) == (413, "too_large")
    assert redis.zcard(keys.SCHEDULE) == 10_000


def test_body_may_be_chunked(browser: Browser, redis: Redis) -> None:
    text = json.dumps(task("in chunks"), indent=4).encode()
    response = browser.post_raw(text[start : start + 7] for start in range(0, len(text), 7))
    assert response.status == 202
    assert stored(redis, response.json["id"])["title"] == "in chunks"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", " application/json "])
def test_any_json_content_type_is_accepted(browser: Browser, redis: Redis, content_type: str) -> None:
    assert browser.post_raw(json.dumps(task()).encode(), content_type).status == 202


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_content_types_that_web_pages_may_send_are_refused(browser: Browser, redis: Redis, content_type: str) -> None:
    response = browser.post_raw(json.dumps(task()).encode(), content_type)
    assert (response.status, response.code) == (415, "wrong_protocol")
    assert "Content-Type: application/json" in response.json["error"]["message"]
    assert scheduled(redis) == []


def test_many_clients_are_served_at_once(gateway: Gateway, redis: Redis) -> None:
    def talk(name: int) -> list[str]:
        with Browser(gateway) as browser:
            return [browser.post(task(f"{name}-{n}")).json["id"] for n in range(20)]

    with ThreadPoolExecutor(20) as pool:
        ids = [task_id for one in pool.map(talk, range(20)) for task_id in one]
    titles = {f"{name}-{n}" for name in range(20) for n in range(20)}
    assert set(title_of_id(redis, ids).values()) == titles


# --- reading ------------------------------------------------------------------------------------------------------


def test_task_is_shown(browser: Browser, redis: Redis) -> None:
    accepted = browser.post(task("look at me", text="é")).json
    response = browser.get(f"/tasks/{accepted['id']}")
    assert response.status == 200
    shown = response.json
    assert shown["id"] == accepted["id"]
    assert shown["state"] == "scheduled"
    assert shown["due"] == accepted["due"]
    assert shown["accepted"] == pytest.approx(accepted["due"] - HOUR, abs=1)
    assert shown["task"] == task("look at me", text="é")
    assert shown["outcomes"] == []


@pytest.mark.parametrize("name", ["P7DVFCP--0--", "x" * 1_000, "%00", "%ff", "..", "%C3%A9", "a%2Fb", "*"])
def test_unknown_task_is_not_found(browser: Browser, redis: Redis, name: str) -> None:
    response = browser.get(f"/tasks/{name}")
    assert (response.status, response.code) == (404, "not_found")


@pytest.mark.parametrize(
    ("picture", "kind"), [(b"\x89PNG\r\n\x1a\n\x00\xff", "image/png"), (b"<?xml ?><svg/>", "image/svg+xml")]
)
def test_graph_is_fetched(browser: Browser, redis: Redis, picture: bytes, kind: str) -> None:
    redis.set(keys.graph("P7DVFCP--0--"), picture)
    response = browser.get("/graphs/P7DVFCP--0--")
    assert (response.status, response.headers["content-type"], response.body) == (200, kind, picture)
    missing = browser.get("/graphs/other")
    assert (missing.status, missing.code) == (404, "not_found")
    assert "a day" in missing.json["error"]["message"]


def test_health_is_ok_while_redis_answers(browser: Browser, redis: Redis) -> None:
    response = browser.get("/health")
    assert (response.status, response.json) == (200, {"ok": True})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *(("GET", path, 404) for path in ("/", "/task", "/tasks/a/b", "/favicon.ico", "//", "/graphs")),
        ("GET", "/tasks", 405),
        ("GET", "/tasks/", 405),
        ("PUT", "/tasks", 405),
        ("POST", "/health", 405),
        ("PATCH", "/tasks/P7DVFCP--0--", 405),
        ("GET", "/tasks/P7DVFCP--0--/retry", 405),
        ("POST", "/tasks/P7DVFCP--0--/cancel", 404),
    ],
)
def test_unknown_path_or_method_is_answered_in_json(browser: Browser, method: str, path: str, status: int) -> None:
    response = browser.request(method, path)
    assert (response.status, response.code) == (status, "not_found")
    assert ("allow" in response.headers) == (status == 405)
    assert browser.get("/health").status == 200


def test_connection_serves_many_requests(browser: Browser, redis: Redis) -> None:
    own = None
    for n in range(5):
        assert browser.post(task(str(n))).status == 202
        assert browser.get("/nowhere").status == 404
        assert browser.post_raw(b"{").status == 400
        assert own in (None, browser.connection.sock)
        own = browser.connection.sock
    assert own is not None


# --- limits -------------------------------------------------------------------------------------------------------


def test_too_large_dict_is_refused(strict: Gateway, redis: Redis) -> None:
    with Browser(strict) as browser:
        assert browser.post(task("t", text="x" * 700)).status == 202
        response = browser.post(task("t", text="x" * 1_001))
        assert (response.status, response.code) == (413, "too_large")
        response = browser.post([task("a"), task("b", text="x" * 1_001)])
        assert response.status == 202
        assert [answer["ok"] for answer in response.json] == [True, False]


@pytest.mark.parametrize("chunked", [False, True])
def test_client_of_a_too_large_body_can_read_the_refusal(strict: Gateway, chunked: bool) -> None:
    body = b"[" + b" " * 5_000_000
    with Browser(strict) as browser:
        response = browser.post_raw([body] if chunked else body)
        assert (response.status, response.code) == (413, "too_large")
        assert "16000 bytes" in response.json["error"]["message"]
        assert browser.get("/health").status == 200


BEGINNINGS = {
    "nothing": b"",
    "half a request": b"GET /health HTTP/1.1\r\nHost:",
    "half a body": b"POST /tasks HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
}


@pytest.mark.parametrize("begun", BEGINNINGS)
def test_silent_client_gets_a_timeout_answer(strict: Gateway, begun: str) -> None:
    with Browser(strict) as browser:
        browser.connection.connect()
        browser.connection.sock.sendall(BEGINNINGS[begun])
        answer = browser.connection.sock.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "idle"


def test_idle_connection_is_closed_after_its_requests(strict: Gateway) -> None:
    with Browser(strict) as browser:
        assert browser.get("/health").status == 200
        assert browser.connection.sock.recv(1_000) == b""


def test_connection_above_the_limit_is_refused(strict: Gateway) -> None:
    browsers = [Browser(strict) for _ in range(4)]
    try:
        *first, last = browsers
        for browser in first:
            assert browser.get("/health").status == 200
        response = last.get("/health")
        assert (response.status, response.code, response.headers["retry-after"]) == (503, "too_many", "1")
    finally:
        for browser in browsers:
            browser.connection.close()
    with Browser(strict) as browser:
        until(lambda: browser.get("/health").status == 200)


def test_json_lines_on_the_http_port_are_answered_with_the_right_port(gateway: Gateway, redis: Redis) -> None:
    with socket.create_connection(("127.0.0.1", gateway.http_port), 30) as connection:
        connection.sendall(json.dumps(task()).encode() + b"\n")
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    error = json.loads(body)["error"]
    assert error["code"] == "wrong_protocol" and str(gateway.port) in error["message"]
    assert scheduled(redis) == []


def test_disconnect_during_a_body_has_no_effect(gateway: Gateway, redis: Redis) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", gateway.http_port), 30) as connection:
            connection.sendall(BEGINNINGS["half a body"])
    with Browser(gateway) as browser:
        assert browser.post(task()).status == 202
    assert redis.zcard(keys.SCHEDULE) == 1
    assert "Traceback" not in gateway.log


# --- Redis away ---------------------------------------------------------------------------------------------------


def unavailable(response: Response) -> bool:
    return (response.status, response.headers.get("retry-after"), response.code) == (503, "1", "unavailable")


@pytest.mark.parametrize("trouble", ["killed", "hangs"])
def test_everything_is_unavailable_while_redis_is_away_and_recovers(tmp_path: Path, trouble: str) -> None:
    server = RedisServer(tmp_path)

    def ask(number: int) -> Response:
        with Browser(running) as browser:
            if number < len(PATHS):
                return browser.get(PATHS[number])
            return browser.post(task() if number == len(PATHS) else [task(), task()])

    try:
        with Gateway(server.url, tmp_path) as running, ThreadPoolExecutor(5) as pool:
            assert [response.status for response in pool.map(ask, range(5))] == [404, 404, 200, 202, 202]
            if trouble == "killed":
                server.kill()
            else:
                server.signal(signal.SIGSTOP)
            assert [unavailable(response) for response in pool.map(ask, range(5))] == [True] * 5
            if trouble == "killed":
                server.start()
            else:
                server.signal(signal.SIGCONT)
            until(lambda: [response.status for response in pool.map(ask, range(5))] == [404, 404, 200, 202, 202])
            assert "Traceback" not in running.log
    finally:
        server.kill()


# --- stopping -----------------------------------------------------------------------------------------------------


def test_stopping_gateway_answers_requests_in_progress(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> None:
    responses: list[Response] = []

    def post(browser: Browser) -> None:
        responses.append(browser.post(task("last")))

    with Gateway(redis_server.url, tmp_path) as gateway, Browser(gateway) as idle, Browser(gateway) as browser:
        assert idle.get("/health").status == browser.get("/health").status == 200
        redis.client_pause(500)
        posting = threading.Thread(target=post, args=(browser,))
        posting.start()
        time.sleep(0.1)  # until the request is in progress; Redis executes it only later
        assert gateway.process.stop() == 0
        posting.join(30)
        assert not gateway.events("stopped_early")
        assert idle.connection.sock.recv(1_000) == b""
    (response,) = responses
    assert response.status == 202
    assert stored(redis, response.json["id"])["title"] == "last"
    with closing(socket.socket()) as probe:
        assert probe.connect_ex(("127.0.0.1", gateway.http_port)) != 0
