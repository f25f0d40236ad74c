"""Requirements of RFC 9110 to 9112 on HTTP servers, byte by byte: valid forms, invalid requests, and hosts."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.api.hosts import Hosts
from qtask.api.request_checks import is_json, other_codings, split_target
from qtask.model.errors import ConfigError, Refused
from tests.support.gateway_process import Gateway, scheduled, stored, task
from tests.support.http_response import Response
from tests.support.redis_server import RedisServer

TASK = json.dumps(task("raw")).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n" % (len(TASK), TASK)


def request(
    method: str = "POST",
    target: str = "/tasks",
    body: bytes | None = TASK,
    *,
    version: str = "HTTP/1.1",
    host: str | None = "localhost",
    content_type: str | None = "application/json",
    more: str = "",
) -> bytes:
    """A request as bytes, with length and type if it has a body."""
    head = f"{method} {target} {version}\r\n"
    head += "" if host is None else f"Host: {host}\r\n"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
        head += "" if content_type is None else f"Content-Type: {content_type}\r\n"
    return f"{head}{more}\r\n".encode("latin-1") + (body or b"")


def get(target: str, **named: Any) -> bytes:
    return request("GET", target, None, **named)


def ask(gateway: Gateway, data: bytes, count: int = 1, method: str = "POST") -> list[Response]:
    """Sends bytes and reads the given number of answers."""
    with closing(socket.create_connection(("127.0.0.1", gateway.http_port), 10)) as connection:
        connection.sendall(data)
        stream = connection.makefile("rb")
        return [_answer(stream, method) for _ in range(count)]


def _answer(stream: Any, method: str) -> Response:
    status = int(stream.readline().split()[1])
    lines = [line.decode("latin-1") for line in iter(stream.readline, b"\r\n")]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    bare = method == "HEAD" or status in (100, 204)
    return Response(status, headers, b"" if bare else stream.read(int(headers["content-length"])))


def one(gateway: Gateway, data: bytes, method: str = "POST") -> Response:
    """The answer to a request; checks that every one has `nosniff` and allows no other origin to read it."""
    (answer,) = ask(gateway, data, 1, method)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    return answer


# --- forms of a request --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        request(target="/tasks/"),
        request(target="/t%61sks"),
        request(target="/tasks?from=here"),
        request(target="http://localhost/tasks"),
        request(target="HTTP://127.0.0.1:5124/tasks"),
        request(target="http://localhost/tasks", host="evil.example"),
        request(body=None, more="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n") + CHUNKED + b"\r\n",
        request(body=None, more="Content-Type: application/json\r\nTransfer-Encoding: Chunked\r\n")
        + CHUNKED
        + b"Trailer: is dropped\r\n\r\n",
        b"\r\n\r\n" + request(),
        request().replace(b"\r\n", b"\n"),
        request(more="X-Folded: a\r\n b\r\n"),
        request(more=f"Content-Length: {len(TASK)}\r\n"),
        request(more="Expect: something-else\r\n"),
        request(more="Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        request(more="Content-Encoding: identity\r\n"),
        request(version="HTTP/1.0", host=None),
        request(version="HTTP/1.2"),
        request(content_type="application/vnd.example+json"),
        request(content_type='APPLICATION/JSON;charset="utf-8"'),
        request(content_type="application/json; charset=utf-8"),
    ],
)
def test_valid_form_of_a_request_is_accepted(gateway: Gateway, redis: Redis, data: bytes) -> None:
    answer = one(gateway, data)
    assert answer.status == 202, answer
    assert stored(redis, json.loads(answer.body)["id"]) == task("raw")


def test_expect_continue_is_answered_with_100(gateway: Gateway, redis: Redis) -> None:
    first, second = ask(gateway, request(more="Expect: 100-continue\r\n"), 2)
    assert (first.status, second.status) == (100, 202)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(body=b"", more="Expect: 100-continue\r\n").replace(b"Length: 0", b"Length: 99999999"), 413),
        (request(host="evil.example", more="Expect: 100-continue\r\n"), 421),
        (request(content_type="text/plain", more="Expect: 100-continue\r\n"), 415),
    ],
)
def test_expect_continue_is_refused_before_the_body_is_sent(gateway: Gateway, data: bytes, status: int) -> None:
    assert one(gateway, data).status == status


def test_pipelined_requests_are_answered(gateway: Gateway, redis: Redis) -> None:
    data = request() + b"\r\n" + get("/health") + request("GET", "/health", b"not read") + request()
    assert [answer.status for answer in ask(gateway, data, 4)] == [202, 200, 200, 202]
    assert len(scheduled(redis)) == 2


def test_half_closed_client_gets_its_answer(gateway: Gateway, redis: Redis) -> None:
    for _ in range(20):
        with closing(socket.create_connection(("127.0.0.1", gateway.http_port), 10)) as connection:
            connection.sendall(request())
            connection.shutdown(socket.SHUT_WR)
            assert connection.makefile("rb").read().startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize(("target", "status"), [("/health", 200), ("/tasks/none", 404), ("/graphs/none", 404)])
def test_head_is_answered_like_get_without_a_body(gateway: Gateway, redis: Redis, target: str, status: int) -> None:
    head = one(gateway, request("HEAD", target, None), "HEAD")
    assert head.status == status
    assert int(head.headers["content-length"]) == len(one(gateway, get(target)).body)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("/tasks", "POST"),
        ("/tasks/ID", "DELETE, GET, HEAD"),
        ("/health", "GET, HEAD"),
        ("*", "DELETE, GET, HEAD, PATCH, POST, PUT"),
    ],
)
def test_options_and_405_list_all_methods_and_allow_no_other_origin(
    gateway: Gateway, target: str, allowed: str
) -> None:
    asked = "Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    answer = one(gateway, request("OPTIONS", target, None, more=asked))
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allowed, b"")
    if target != "*":
        wrong = one(gateway, request("PATCH", target, None))
        assert (wrong.status, wrong.headers["allow"]) == (405, allowed)


def test_id_is_found_in_any_percent_encoding(gateway: Gateway, redis: Redis) -> None:
    chosen = task("chosen")
    chosen["settings"]["id"] = "charge_7"
    assert one(gateway, request(body=json.dumps(chosen).encode())).status == 202
    for target in ("/tasks/charge_7", "/tasks/charge%5F7", "/tasks/%63harge_7/", "http://localhost/tasks/charge_7"):
        assert json.loads(one(gateway, get(target)).body)["id"] == "charge_7"
    # An encoded slash in an id does not separate path segments.
    assert "'a/b'" in one(gateway, get("/tasks/a%2Fb")).error["message"]


# --- invalid requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (request(host=None), 400, "Missing mandatory Host"),
        (request(more="Host: localhost\r\n"), 400, "multiple Host"),
        (request(host="a b"), 400, "HOST or HOST:PORT is needed, got 'a b'"),
        (request(host="user@localhost"), 400, "HOST or HOST:PORT is needed"),
        (request(more="Content-Length: 3\r\n"), 400, "conflicting Content-Length"),
        (request(body=None, more="Content-Length: -3\r\n"), 400, "bad Content-Length"),
        (request(more="Transfer-Encoding: chunked\r\n"), 400, "Transfer-Encoding and Content-Length"),
        (request(body=None, more="Transfer-Encoding: gzip, chunked\r\n"), 501, "chunked"),
        (request(more="X : a\r\n"), 400, "illegal header line"),
        (request(version="HTTP/2.0"), 505, "HTTP/2.0 is not spoken here"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2.0 is not spoken here"),
        (b"GET /health HTTP/1.1\r\nX: " + b"x" * 500_000, 431, "too long"),
        (b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03", 400, "not TLS"),
        (b"hello\r\n\r\n", 400, "JSON lines are spoken on port"),
        (b"\xef\xbb\xbf" + TASK + b"\n", 400, "JSON lines are spoken on port"),
    ],
)
def test_invalid_request_is_refused_once_and_nothing_is_accepted(
    gateway: Gateway, redis: Redis, data: bytes, status: int, words: str
) -> None:
    with closing(socket.create_connection(("127.0.0.1", gateway.http_port), 10)) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        stream = connection.makefile("rb")
        answer = _answer(stream, "POST")
        assert stream.read() == b""
    assert (answer.status, answer.error["code"]) == (status, "wrong_protocol")
    assert words in answer.error["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert scheduled(redis) == []


@pytest.mark.parametrize("target", ["/tasks", "/tasks/ID/retry"])
@pytest.mark.parametrize("coding", ["gzip", "br", "Identity, GZIP"])
def test_compressed_body_is_refused_with_the_accepted_coding(
    gateway: Gateway, redis: Redis, target: str, coding: str
) -> None:
    answer = one(gateway, request(target=target, body=gzip.compress(TASK), more=f"Content-Encoding: {coding}\r\n"))
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "identity")
    assert answer.error["field"] == "Content-Encoding"
    assert coding.lower().rpartition(" ")[2] in answer.error["message"]
    assert scheduled(redis) == []


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/jsonx", "text/json", "application/json, text/plain"]
)
def test_other_content_type_is_refused_with_the_accepted_one(gateway: Gateway, content_type: str) -> None:
    answer = one(gateway, request(content_type=content_type))
    assert (answer.status, answer.headers["accept"]) == (415, "application/json")


def test_second_content_type_does_not_hide_the_first(gateway: Gateway, redis: Redis) -> None:
    assert one(gateway, request(more="Content-Type: text/plain\r\n")).status == 415
    assert scheduled(redis) == []


# --- arrays --------------------------------------------------------------------------------------------------------


def test_array_without_an_accepted_task_is_a_bad_request(gateway: Gateway, redis: Redis) -> None:
    answer = one(gateway, request(body=b'[{}, 7, {"title": ""}]'))
    assert answer.status == 400
    assert [one["ok"] for one in json.loads(answer.body)] == [False] * 3
    mixed = one(gateway, request(body=b"[{}," + TASK + b"]"))
    assert (mixed.status, [one["ok"] for one in json.loads(mixed.body)]) == (202, [False, True])
    empty = one(gateway, request(body=b"[]"))
    assert (empty.status, empty.body) == (202, b"[]")


def test_unavailable_array_has_retry_after(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        with Gateway(server.url, tmp_path, ACCEPT_RETRY_SECONDS=0) as running:
            server.kill()
            answer = one(running, request(body=b"[{}," + TASK + b"]"))
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert [one["error"]["code"] for one in json.loads(answer.body)] == ["missing_field", "unavailable"]
    finally:
        server.kill()


# --- a byte order mark ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\xef\xbb\xbf \r\n", b" \n\xef\xbb\xbf", b"\n\xef\xbb\xbf\n"])
def test_byte_order_mark_is_ignored(gateway: Gateway, redis: Redis, before: bytes) -> None:
    assert one(gateway, request(body=before + TASK)).status == 202
    assert len(json.loads(one(gateway, request(body=before + b"[" + TASK + b"]")).body)) == 1
    assert len(scheduled(redis)) == 2


# --- the host ------------------------------------------------------------------------------------------------------

OWN = ["localhost", "LOCALHOST:80", "localhost.", "a.localhost:5124", "127.0.0.1:5124", "127.8.9.1", "[::1]:5124", ""]
FOREIGN = [
    "evil.example",
    "evil.example:5124",
    "localhost.evil.example",
    "notlocalhost",
    "0.0.0.0",
    "10.0.0.5",
    "[::2]",
]


@pytest.mark.parametrize("host", OWN)
def test_loopback_gateway_serves_its_own_names(gateway: Gateway, redis: Redis, host: str) -> None:
    assert one(gateway, request(host=host)).status == 202
    assert one(gateway, get("/health", host=host)).status == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_loopback_gateway_serves_no_other_names(gateway: Gateway, redis: Redis, host: str) -> None:
    for data in (
        request(host=host),
        request(target=f"http://{host}/tasks"),
        get("/health", host=host),
        get("/tasks/ID", host=host),
        request("DELETE", "/tasks/ID", None, host=host),
        request("OPTIONS", "*", None, host=host),
    ):
        answer = one(gateway, data)
        assert (answer.status, answer.error["code"], answer.error["field"]) == (421, "wrong_host", "Host")
        assert "allowed_hosts" in answer.error["message"]
    assert scheduled(redis) == []


@pytest.fixture(scope="module")
def everywhere(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """A gateway on all addresses with configured host names."""
    with Gateway(redis_server.url, folder, HOST="0.0.0.0", ALLOWED_HOSTS="qtask.example, *.internal") as running:
        yield running


def test_public_gateway_serves_configured_names_and_addresses(everywhere: Gateway, redis: Redis) -> None:
    for host in (*OWN, "qtask.example:5124", "QTASK.example", "a.b.internal", "10.0.0.5:5124", "[fd00::2]"):
        assert one(everywhere, request(host=host)).status == 202, host
    for host in ("evil.example", "internal", "a.qtask.example", "localhost.evil.example"):
        assert one(everywhere, request(host=host)).status == 421, host


def test_public_gateway_without_configured_names_serves_every_name() -> None:
    hosts = Hosts(["0.0.0.0"], "0.0.0.0", "")
    for host in (*OWN, *FOREIGN):
        hosts.check(host)
    with pytest.raises(Refused):
        hosts.check("no name")


def test_listening_name_and_star_are_served() -> None:
    Hosts(["127.0.1.1"], "My-Host", "").check("my-host:5124")
    Hosts(["127.0.0.1", "::1"], "localhost", "*").check("evil.example")
    with pytest.raises(Refused):
        Hosts(["127.0.0.1", "::1"], "localhost", "").check("evil.example")
    Hosts(["::ffff:127.0.0.1"], "localhost", "").check("[::ffff:7f00:1]")


@pytest.mark.parametrize("entry", ["qtask.example:5124", "http://qtask.example", "a b", "*.*", "a.*"])
def test_invalid_host_names_are_refused_at_start(entry: str) -> None:
    with pytest.raises(ConfigError, match="allowed_hosts must be host names without ports"):
        Hosts(["127.0.0.1"], "127.0.0.1", f"localhost, {entry}")


# --- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw_path", "expected"),
    [
        (b"/", ("x", "/")),
        (b"//", ("x", "/")),
        (b"/tasks/%2F%2f", ("x", "/tasks/%2F%2F")),
        (b"/tasks/\xc3\xa9", ("x", "/tasks/%C3%A9")),
        (b"http://h:1", ("h:1", "/")),
        (b"https://h/a/", ("h", "/a")),
        (b"ftp://h/a", ("x", "ftp%3A//h/a")),
        (b"*", ("x", "*")),
    ],
)
def test_target_is_split(raw_path: bytes, expected: tuple[str, str]) -> None:
    assert split_target(raw_path, [(b"host", b"x")]) == expected


def test_codings_and_types_are_distinguished() -> None:
    assert other_codings([" GZIP , identity", "", "br"]) == ["gzip", "br"]
    assert is_json(["application/a.b-c+json"]) and not is_json([]) and not is_json(["application/+json"])
