"""Both HTTP transports, requests and libcurl, against a real receiver: they behave the same.

What the receiver gets is compared byte by byte with the `HttpRequest`, so the two also agree with each other.
"""

from __future__ import annotations

import base64
import gzip
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import msgspec
import pytest

from qtask.config import Config
from qtask.delivery.loop import Loop
from qtask.destinations.http import requests_transport as http_requests
from qtask.destinations.http.curl_transport import HttpDeliverer
from qtask.destinations.http.message import HttpRequest, follow, prepare
from qtask.destinations.parsing import read_task
from qtask.model.outcome import ANSWER_LIMIT_BYTES, Answer, Failure
from tests.support.certificates import authorities_folder, self_signed
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Deliver = Callable[[HttpRequest], Answer]


class Curl:
    """The deliverer of the worker, on its own loop."""

    def __init__(self, **settings: Any) -> None:
        self._loop = Loop()
        self._deliverer = HttpDeliverer(self._loop, Config(concurrency=100, **settings))

    def __call__(self, request: HttpRequest) -> Answer:
        results: list[Answer | Failure] = []
        self._deliverer.send(request, results.append)
        while not results:
            self._loop.run_once()
        if isinstance(results[0], Failure):
            raise results[0]
        return results[0]

    def close(self) -> None:
        self._deliverer.close()
        self._loop.close()


@pytest.fixture(params=["requests", "curl"])
def deliver(request: pytest.FixtureRequest) -> Iterator[Deliver]:
    if request.param == "requests":
        http_requests._kept.clear()
        yield http_requests.deliver
    else:
        curl = Curl()
        yield curl
        curl.close()


def prepared(url: str, data: dict[str, Any] | None = None, timeout: float = 30.0, attempt: int = 1) -> HttpRequest:
    settings = {"time": 0, "timeout": timeout, "data": data or {}}
    task = {"title": "t", "address": {"type": "http", "link": url}, "settings": settings}
    return prepare(read_task(msgspec.json.encode(task)), "P7DVFCP--0--", attempt, 1795539666.25)


FRAMING = ("host", "content-length", "connection")


def assert_seen(receiver: Receiver, request: HttpRequest) -> None:
    """Checks that the receiver got exactly the request, header by header in order."""
    (seen,) = receiver.requests
    path = request.url.split("/", 3)[3]
    assert (seen.method, seen.target, seen.body) == (request.method, "/" + path, request.body or b"")
    got = [pair for pair in seen.headers if pair[0].lower() not in FRAMING]
    assert got == list(request.headers)
    assert seen.header("Host") == request.url.split("/", 3)[2]
    if request.body is not None or request.method not in ("GET", "HEAD"):
        assert seen.header("Content-Length") == str(len(request.body or b""))
    else:
        assert seen.header("Content-Length") == ""


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"method": "POST", "json": {"a": [1, 2.5, None, True, "é"]}},
        {"method": "put", "data": "text é"},
        {"method": "PATCH", "data": {"a": "b c", "list": ["1", "2"], "none": None, "n": 3}},
        {"method": "POST", "body_base64": base64.b64encode(bytes(range(256))).decode()},
        {"method": "POST"},
        {"method": "DELETE"},
        {"method": "HEAD"},
        {"method": "OPTIONS"},
        {"method": "PROPFIND", "data": "<x/>"},
        {"method": "GET", "json": {"a": "body"}},
        {"headers": "auto"},
        {"headers": {"X-Empty": "", "User-Agent": "mine", "accept": "text/plain", "X-Latin": "café"}},
        {"method": "POST", "json": 1, "headers": {"content-type": "application/vnd.api+json"}},
        {"params": {"q": "a b&c", "list": ["1", "2"], "flag": True, "none": None, "n": 7}},
        {"headers": {"Connection": "close", "Keep-Alive": "5"}},
    ],
    ids=lambda data: msgspec.json.encode(data).decode()[:50],
)
def test_receiver_gets_exactly_the_request(deliver: Deliver, data: dict[str, Any]) -> None:
    with Receiver() as receiver:
        request = prepared(receiver.url + "path/%20x?y=1", data)
        assert deliver(request).code == 200
        assert_seen(receiver, request)


@pytest.mark.parametrize(
    "path",
    ["", "a/../b", "ä/ö?ü=ß", "%7Ex?a=%zz", "%c3%a9?%c3=%5b", "a;b=c,d?x[]=1", "?only=query", "//double", "a#fragment"],
)
def test_urls_arrive_as_prepared(deliver: Deliver, path: str) -> None:
    with Receiver() as receiver:
        request = prepared(receiver.url + path)
        deliver(request)
        assert_seen(receiver, request)


def test_large_bodies_are_sent_without_expect_continue(deliver: Deliver) -> None:
    with Receiver() as receiver:
        request = prepared(receiver.url, {"method": "POST", "data": "x" * 3_000_000})
        deliver(request)
        assert_seen(receiver, request)


def test_user_in_the_url_becomes_a_header(deliver: Deliver) -> None:
    with Receiver() as receiver:
        deliver(prepared(receiver.url.replace("//", "//ada:s%3Acret@")))
        (seen,) = receiver.requests
    assert seen.header("Authorization") == "Basic " + base64.b64encode(b"ada:s:cret").decode()
    assert seen.header("Host") == f"127.0.0.1:{receiver.port}"


# --- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstd.compress), ("deflate", zlib.compress)],
)
def test_compressed_answers_are_decoded(deliver: Deliver, coding: str, encode: Callable[[bytes], bytes]) -> None:
    body = encode("späte Antwort".encode())
    with Receiver(lambda exchange: exchange.answer(200, body, {"Content-Encoding": coding})) as receiver:
        assert deliver(prepared(receiver.url)) == Answer(200, "späte Antwort")


def test_decompression_stops_at_the_length_of_the_excerpt(deliver: Deliver) -> None:
    body = gzip.compress(b"0" * 50_000_000)
    with Receiver(lambda exchange: exchange.answer(200, body, {"Content-Encoding": "gzip"})) as receiver:
        assert deliver(prepared(receiver.url)).text == "0" * ANSWER_LIMIT_BYTES


def test_chunked_answers_are_read(deliver: Deliver) -> None:
    def chunked(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        exchange.send(b"5\r\nhello\r\n6\r\n later\r\n0\r\n\r\n")

    with Receiver(chunked) as receiver:
        assert deliver(prepared(receiver.url)).text == "hello later"
        assert deliver(prepared(receiver.url)).text == "hello later"
        assert receiver.connections == 1


def test_endless_answer_is_cut(deliver: Deliver) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.keep = False
        exchange.send(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            exchange.send(b"more and " * 1000)

    with Receiver(endless) as receiver:
        assert len(deliver(prepared(receiver.url)).text) == ANSWER_LIMIT_BYTES


def test_interim_answers_are_skipped(deliver: Deliver) -> None:
    def hints(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Encoding: gzip\r\n\r\n")
        exchange.answer(200, b"at last")

    with Receiver(hints) as receiver:
        assert deliver(prepared(receiver.url)) == Answer(200, "at last")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 304])
def test_status_means_delivered(deliver: Deliver, status: int) -> None:
    with Receiver(lambda exchange: exchange.answer(status)) as receiver:
        assert deliver(prepared(receiver.url)).code == status
        assert deliver(prepared(receiver.url)).code == status
        assert receiver.connections == 1, "the connection is reused"


@pytest.mark.parametrize("status", [400, 404, 408, 429, 500, 503])
def test_status_means_failed(deliver: Deliver, status: int) -> None:
    with Receiver(lambda exchange: exchange.answer(status, b"why")) as receiver, pytest.raises(Failure) as failed:
        deliver(prepared(receiver.url))
    assert failed.value.error == "status"
    assert failed.value.answer == Answer(status, "why")
    assert str(status) in failed.value.message


def test_connection_closed_between_requests_is_replaced(deliver: Deliver) -> None:
    def close_after(exchange: Exchange) -> None:
        exchange.answer(200, b"ok")
        exchange.keep = False

    with Receiver(close_after) as receiver:
        for _ in range(5):
            assert deliver(prepared(receiver.url, {"method": "POST", "json": 1})).code == 200
            until(lambda: not receiver.open, what="the receiver to have closed the connection")
        assert len(receiver.requests) == 5


@pytest.mark.parametrize(
    "data",
    [
        {"method": "POST", "json": 1},
        {"method": "POST"},
        {"method": "GET"},
        {"method": "PUT", "data": "x" * 300_000},
        {"method": "DELETE"},
        {"method": "HEAD"},
        {"method": "HEAD", "data": "x"},
    ],
    ids=lambda data: msgspec.json.encode(data).decode()[:30],
)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_request_is_sent_once_when_a_kept_connection_breaks(deliver: Deliver, data: dict[str, Any], how: str) -> None:
    """The receiver reads all of it and breaks the connection. The next attempt uses a new connection, at once."""

    def charge(exchange: Exchange) -> None:
        if exchange.request.target == "/charge" and exchange.request.header("QTask-Attempt") == "1":
            hang_up(exchange) if how == "close" else reset(exchange)
        else:
            exchange.answer(200, b"ok")

    with Receiver(charge) as receiver:
        for _ in range(3):
            deliver(prepared(receiver.url + "warm"))
        assert receiver.connections == 1
        with pytest.raises(Failure) as failed:
            deliver(prepared(receiver.url + "charge", data))
        assert failed.value.error == "connect"
        assert failed.value.at_once
        assert "kept connection broke" in failed.value.message
        assert deliver(prepared(receiver.url + "charge", data, attempt=2)).code == 200
        charged = [request for request in receiver.requests if request.target == "/charge"]
        assert [request.header("QTask-Attempt") for request in charged] == ["1", "2"]


def test_retry_uses_a_new_connection(deliver: Deliver) -> None:
    with Receiver() as receiver:
        deliver(prepared(receiver.url))
        for attempt in (2, 3):
            deliver(prepared(receiver.url, attempt=attempt))
        assert receiver.connections == 3
        until(lambda: len(receiver.open) == 1, what="the connections of the retries to be closed")
        deliver(prepared(receiver.url))
        assert receiver.connections == 3, "the first one is reused"


# --- redirects -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
        (302, "PUT", "PUT"),
        (301, "GET", "GET"),
        (303, "HEAD", "HEAD"),
    ],
)
def test_redirects_are_followed_as_by_browsers(deliver: Deliver, status: int, method: str, then: str) -> None:
    def redirect(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.answer(status, b"", {"Location": "/there?x=1"})
        else:
            exchange.answer(200, b"arrived")

    data = {"method": method, "json": {"a": 1}} if method in ("POST", "PUT") else {"method": method}
    with Receiver(redirect) as receiver:
        assert deliver(prepared(receiver.url + "here", data)).code == 200
        first, second = receiver.requests
    assert (second.method, second.target) == (then, "/there?x=1")
    assert second.body == (first.body if then == method else b"")
    assert second.header("Content-Type") == (first.header("Content-Type") if then == method else "")
    assert second.header("QTask-Id") == first.header("QTask-Id")


def test_credentials_are_not_sent_to_another_origin(deliver: Deliver) -> None:
    with Receiver() as other:
        target = other.url
        with Receiver(lambda exchange: exchange.answer(307, b"", {"Location": target})) as receiver:
            headers = {"Authorization": "Bearer x", "Cookie": "a=b", "X-Mine": "y"}
            deliver(prepared(receiver.url, {"headers": headers}))
            (first,) = receiver.requests
        (second,) = other.requests
    assert first.header("Authorization") == "Bearer x"
    assert (second.header("Authorization"), second.header("Cookie"), second.header("X-Mine")) == ("", "", "y")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/café?q=ü".encode(), "/caf%C3%A9?q=%C3%BC"),
        ("/café?q=ü".encode("latin-1"), "/caf%E9?q=%FC"),
        ("/日本/%C3%A9/é".encode(), "/%E6%97%A5%E6%9C%AC/%C3%A9/%C3%A9"),
        (b"/\xc3\xa9/\xff", "/%C3%A9/%FF"),
    ],
)
def test_redirect_location_bytes_are_preserved(deliver: Deliver, location: bytes, target: str) -> None:
    def redirect(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.send(b"HTTP/1.1 302 X\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")
        else:
            exchange.answer(200)

    with Receiver(redirect) as receiver:
        deliver(prepared(receiver.url))
        assert receiver.requests[1].target == target


@pytest.mark.parametrize(
    ("link", "location"),
    [
        ("http://LOCALHOST:{port}/", "http://localhost:{port}/there"),
        ("http://localhost:{port}/", "http://LocalHost:0{port}/there"),
        ("http://localhost:{port}/", "HTTP://localhost:{port}/there"),
        ("HTTP://localhost:{port}/", "http://user:other@localhost:{port}/there"),
    ],
)
def test_credentials_are_sent_to_the_same_origin_in_any_spelling(deliver: Deliver, link: str, location: str) -> None:
    def redirect(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.answer(307, b"", {"Location": location.format(port=receiver.port)})
        else:
            exchange.answer()

    with Receiver(redirect) as receiver:
        deliver(prepared(link.format(port=receiver.port), {"headers": {"Authorization": "Bearer x"}}))
    assert [request.header("Authorization") for request in receiver.requests] == ["Bearer x"] * 2
    assert receiver.requests[1].target == "/there"


@pytest.mark.parametrize(
    ("url", "location", "same"),
    [
        ("http://example.org/", "http://example.org:80/x", True),
        ("http://example.org:80/", "http://example.org/x", True),
        ("https://example.org/", "https://example.org:443/x", True),
        ("https://example.org:443/", "//EXAMPLE.org/x", True),
        ("http://example.org/", "http://example.org:8080/x", False),
        ("https://example.org/", "http://example.org/x", False),
        ("http://example.org/", "https://example.org/x", False),
        ("http://example.org:443/", "https://example.org/x", False),
        ("http://example.org/", "http://example.org.evil.example/x", False),
        ("http://example.org/", "http://example.org@evil.example/x", False),
    ],
)
def test_default_port_is_the_same_origin(url: str, location: str, same: bool) -> None:
    followed = follow(prepared(url, {"headers": {"Authorization": "x"}}), 307, location)
    assert ("Authorization" in dict(followed.headers)) == same


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("next", "/d/next"),
        ("./next", "/d/next"),
        ("../../next", "/next"),
        ("?q=1", "/d/start?q=1"),
        ("/a b", "/a%20b"),
        ("/a\\b", "/a%5Cb"),
        ("/%zz", "/%25zz"),
        ("/x#fragment", "/x"),
        ("  /padded \t ", "/padded"),
        ("/" + "a" * 20_000, "/" + "a" * 20_000),
    ],
)
def test_location_is_resolved_as_a_reference(deliver: Deliver, location: str, target: str) -> None:
    def redirect(exchange: Exchange) -> None:
        exchange.answer(302 if exchange.number == 1 else 200, b"", {"Location": location})

    with Receiver(redirect) as receiver:
        assert deliver(prepared(receiver.url + "d/start")).code == 200
    assert [request.target for request in receiver.requests] == ["/d/start", target]


@pytest.mark.parametrize(
    "target",
    [
        *("/again", "ftp://example.org/", "http://[bad", "javascript:alert(1)", "unix:/run/app.sock"),
        *("http://127.0.0.1:99999/", "http://127.0.0.1:0/", "http://127.0.0.1:x/", "http://:80/"),
        *("http://a..b/", f"http://{'a' * 300}/", "http://ex%41mple.org/", "http://127.0.0.1 :80/"),
    ],
)
def test_useless_redirects_fail(deliver: Deliver, target: str) -> None:
    with (
        Receiver(lambda exchange: exchange.answer(302, b"", {"Location": target})) as receiver,
        pytest.raises(Failure) as failed,
    ):
        deliver(prepared(receiver.url))
    assert failed.value.error == "redirect"
    assert len(receiver.requests) <= 6


# --- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["[::1%251]", "[::1%1]", "[::1]", "[0:0:0:0:0:0:0:1]"])
def test_zone_of_an_ipv6_address_is_used_and_not_sent(deliver: Deliver, host: str) -> None:
    with Receiver(family=socket.AF_INET6, host="::1") as receiver:
        deliver(prepared(f"http://{host}:{receiver.port}/"))
    assert "%" not in receiver.requests[0].header("Host")


# --- failures --------------------------------------------------------------------------------------------------


def hang(exchange: Exchange) -> None:
    exchange.connection.settimeout(30)
    exchange.connection.recv(1)


def trickle_head(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        exchange.send(b"X-%d: y\r\n" % number)
        if exchange.connection.fileno() < 0:
            return
        threading_wait()


def threading_wait() -> None:
    import time

    time.sleep(0.05)


@pytest.mark.parametrize("behaviour", [hang, trickle_head])
def test_slow_receivers_exceed_the_total_timeout(deliver: Deliver, behaviour: Callable[[Exchange], None]) -> None:
    with Receiver(behaviour) as receiver, pytest.raises(Failure) as failed:
        deliver(prepared(receiver.url, timeout=0.4))
    assert failed.value.error == "timeout"
    assert "0.4 s" in failed.value.message


def test_listener_that_never_accepts_causes_a_timeout(deliver: Deliver) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(Failure) as failed:
            deliver(prepared(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.4))
        for filler in fillers:
            filler.close()
    assert failed.value.error == "timeout"


def reset(exchange: Exchange) -> None:
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.connection.close()
    exchange.keep = False


def hang_up(exchange: Exchange) -> None:
    exchange.connection.shutdown(socket.SHUT_RDWR)
    exchange.keep = False


def switch_protocols(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
    hang_up(exchange)


def break_off_headers(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Len")
    hang_up(exchange)


def send_headers_without_end(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)))
    hang_up(exchange)


def send_an_endless_header(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000)
    hang_up(exchange)


def send_an_invalid_length(exchange: Exchange) -> None:
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n")
    hang(exchange)


def talk_nonsense(exchange: Exchange) -> None:
    exchange.send(b"* OK this is a mail server\r\n\r\n")
    exchange.connection.shutdown(socket.SHUT_RDWR)
    exchange.keep = False


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (reset, "connect"),
        (hang_up, "connect"),
        (talk_nonsense, "protocol"),
        (switch_protocols, "connect"),
        (break_off_headers, "connect"),
        (send_headers_without_end, "protocol"),
        (send_an_endless_header, "protocol"),
        (send_an_invalid_length, "protocol"),
    ],
)
def test_broken_receivers_cause_a_failure(deliver: Deliver, behaviour: Callable[[Exchange], None], kind: str) -> None:
    with Receiver(behaviour) as receiver, pytest.raises(Failure) as failed:
        deliver(prepared(receiver.url))
    assert failed.value.error == kind, failed.value.message
    host, _, reason = failed.value.message.partition(": ")
    assert host == f"127.0.0.1:{receiver.port}"
    assert len(reason) > 5, "there is a reason"
    assert not failed.value.at_once


def stall(exchange: Exchange) -> None:
    hang(exchange)


def send_a_broken_chunk(exchange: Exchange) -> None:
    exchange.send(b"zz\r\nhalf\r\n")
    hang_up(exchange)


@pytest.mark.parametrize(
    ("framing", "then"),
    [
        (b"Content-Length: 100", hang_up),
        (b"Content-Length: 100", reset),
        (b"Content-Length: 100", stall),
        (b"Transfer-Encoding: chunked", hang_up),
        (b"Transfer-Encoding: chunked", send_a_broken_chunk),
        (b"Transfer-Encoding: chunked", stall),
        (b"Connection: close", stall),
    ],
    ids=lambda part: part.decode() if isinstance(part, bytes) else part.__name__,
)
@pytest.mark.parametrize("status", [200, *(pytest.param(one, marks=pytest.mark.slow) for one in (404, 503, 302))])
def test_status_decides_when_the_body_is_lost(
    deliver: Deliver, framing: bytes, then: Callable[[Exchange], None], status: int
) -> None:
    """The headers say what the receiver did with the request. A redirect is followed while there is time."""

    def lose_the_body(exchange: Exchange) -> None:
        if exchange.number > 1:
            exchange.answer(200, b"arrived")
            return
        exchange.send(b"HTTP/1.1 %d X\r\nLocation: /there\r\nRetry-After: 7\r\n%s\r\n\r\n" % (status, framing))
        exchange.send(b"4\r\nhalf\r\n" if b"chunked" in framing else b"half")
        threading_wait()
        then(exchange)

    answer, failure = Answer(), None
    with Receiver(lose_the_body) as receiver:
        try:
            answer = deliver(prepared(receiver.url, {"method": "POST", "json": 1}, timeout=0.6))
        except Failure as failed:
            failure = failed
            answer = failed.answer
    if status == 302:
        assert (failure.error if failure else answer.text) == ("timeout" if then is stall else "arrived")
        return
    assert answer.code == status
    if then is not reset:  # a reset may discard what had arrived already
        assert answer.text == "half"
    assert "the rest of the answer was lost: " in answer.note
    assert ("within 0.6 s" in answer.note) == (then is stall)
    if status == 200:
        assert failure is None
    else:
        assert failure is not None
        assert (failure.error, failure.retry_after) == ("status", "7")
        assert answer.note in failure.message
    assert len(receiver.requests) == 1


def test_answer_with_many_headers_is_read(deliver: Deliver) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.answer(200, b"ok", {f"X-{number}": "y" * 100 for number in range(300)})

    with Receiver(answer) as receiver:
        assert deliver(prepared(receiver.url)) == Answer(200, "ok")


@pytest.mark.parametrize("method", ["HEAD", "head"])
@pytest.mark.parametrize("framing", ["Content-Length: 5", "Transfer-Encoding: chunked", "Content-Length: 0"])
def test_answer_to_head_has_no_body(deliver: Deliver, method: str, framing: str) -> None:
    """For any headers (RFC 9110, section 9.3.2), with and without a body in the request."""

    def answer(exchange: Exchange) -> None:
        exchange.send(f"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())

    with Receiver(answer) as receiver:
        for data in ({"data": "x"}, {}, {"json": 1}):
            assert deliver(prepared(receiver.url, {"method": method, **data})) == Answer(200, "")
        assert [request.body for request in receiver.requests] == [b"x", b"", b"1"]


def test_refused_connection_fails(deliver: Deliver) -> None:
    with pytest.raises(Failure) as failed:
        deliver(prepared(f"http://127.0.0.1:{free_port()}/"))
    assert failed.value.error == "connect"


def test_unknown_host_fails(deliver: Deliver) -> None:
    with pytest.raises(Failure) as failed:
        deliver(prepared("http://no-such-host.invalid/"))
    assert failed.value.error == "dns"


def test_self_signed_certificate_fails(deliver: Deliver, tmp_path: Path) -> None:
    with Receiver(tls=self_signed(tmp_path)) as receiver, pytest.raises(Failure) as failed:
        deliver(prepared(receiver.url))
    assert failed.value.error == "tls"
    assert receiver.requests == []


def names_the_file(path: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    patch.setenv("REQUESTS_CA_BUNDLE", str(path.with_name("absent.pem")))
    return {"ca_file": str(path)}


def names_the_folder(path: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    return {"ca_file": str(authorities_folder(path, path.with_name("folder")))}


def variable(name: str) -> Callable[[Path, pytest.MonkeyPatch], dict[str, str]]:
    def set_it(path: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
        patch.setenv(name, str(path))
        return {}

    return set_it


@pytest.mark.parametrize(
    "trust",
    [
        names_the_file,
        names_the_folder,
        variable("SSL_CERT_FILE"),
        variable("REQUESTS_CA_BUNDLE"),
        variable("CURL_CA_BUNDLE"),
    ],
    ids=["ca_file", "folder", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
)
@pytest.mark.parametrize("transport", ["requests", "curl"])
def test_private_authority_is_trusted(
    transport: str,
    trust: Callable[[Path, pytest.MonkeyPatch], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with Receiver(tls=self_signed(tmp_path)) as receiver:
        settings = trust(tmp_path / "certificate.pem", monkeypatch)
        assert send_with(transport, settings, prepared(receiver.url)).code == 200


@pytest.mark.parametrize("transport", ["requests", "curl"])
@pytest.mark.parametrize("text", [None, "no certificate"], ids=["absent", "broken"])
def test_unreadable_ca_file_is_named(
    transport: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authorities.pem"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
    with Receiver(tls=self_signed(tmp_path)) as receiver, pytest.raises(Failure) as failed:
        send_with(transport, {}, prepared(receiver.url))
    assert failed.value.error == "tls"
    assert str(path) in failed.value.message
    assert receiver.requests == []


def send_with(transport: str, settings: dict[str, str], request: HttpRequest) -> Answer:
    """Sends a request with a transport that has its own settings."""
    if transport == "requests":
        http_requests._kept.clear()
        return http_requests.deliver(request, **settings)
    curl = Curl(**settings)
    try:
        return curl(request)
    finally:
        curl.close()


def test_ipv6_is_supported(deliver: Deliver) -> None:
    with Receiver(family=socket.AF_INET6, host="::1") as receiver:
        request = prepared(receiver.url)
        assert deliver(request).code == 200
        assert_seen(receiver, request)


def test_unix_socket_is_supported(deliver: Deliver, tmp_path: Path) -> None:
    with Receiver(family=socket.AF_UNIX, host=str(tmp_path / "app.sock")) as receiver:
        request = prepared(receiver.url + "path?x=1", {"method": "POST", "json": 1})
        assert deliver(request).code == 200
        assert_seen(receiver, request)
        assert receiver.requests[0].header("Host") == "localhost"


def test_redirect_from_a_unix_socket_leaves_it_only_for_another_origin(deliver: Deliver, tmp_path: Path) -> None:
    with Receiver() as other:
        answers = {"/": "/second", "/second": other.url}

        def redirect(exchange: Exchange) -> None:
            exchange.answer(307, b"", {"Location": answers[exchange.request.target]})

        with Receiver(redirect, family=socket.AF_UNIX, host=str(tmp_path / "app.sock")) as receiver:
            assert deliver(prepared(receiver.url)).text == "ok"
            assert [request.target for request in receiver.requests] == ["/", "/second"]
        assert len(other.requests) == 1


def test_missing_unix_socket_fails(deliver: Deliver, tmp_path: Path) -> None:
    with pytest.raises(Failure) as failed:
        deliver(prepared(f"http://unix:{tmp_path}/absent:/"))
    assert failed.value.error == "connect"


def test_proxy_of_the_environment_is_used(deliver: Deliver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver(lambda exchange: exchange.answer(200, b"by proxy")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert deliver(prepared("http://receiver.invalid/x")).text == "by proxy"
        (seen,) = proxy.requests
    assert seen.target == "http://receiver.invalid/x"
    assert seen.header("Host") == "receiver.invalid"


def test_answer_of_a_proxy_is_not_that_of_the_receiver(deliver: Deliver, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_and_break_the_tunnel(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        exchange.connection.recv(1)
        hang_up(exchange)

    with Receiver(open_and_break_the_tunnel) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(Failure) as failed:
            deliver(prepared("https://receiver.invalid/x"))
        assert [request.method for request in proxy.requests] == ["CONNECT"]
    assert failed.value.error in ("tls", "connect")
    assert failed.value.answer == Answer()


def test_connections_are_reused(deliver: Deliver) -> None:
    with Receiver() as receiver:
        for _ in range(10):
            deliver(prepared(receiver.url, {"method": "POST", "json": 1}))
        assert len(receiver.requests) == 10
        assert receiver.connections == 1
