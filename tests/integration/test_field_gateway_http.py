"""HTTP requests of real clients and proxies, byte by byte, and the requirements of RFC 9112 on servers."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from tests.support.gateway_process import HOUR, Gateway, scheduled, task

BODY = json.dumps(task("raw", HOUR)).encode()
LENGTH = f"Content-Length: {len(BODY)}\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Wire:
    """A raw connection to the gateway's HTTP port."""

    def __init__(self, gateway: Gateway) -> None:
        self._socket = socket.create_connection(("127.0.0.1", gateway.http_port), timeout=30)
        self._stream = self._socket.makefile("rb")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            self._socket.sendall(packet)

    def end_sending(self) -> None:
        """Shuts down the sending side only, as `nc -N` does."""
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Reads one answer: status, headers by lower-case name, and the JSON of the body."""
        status = int(self._stream.readline().split()[1])
        headers: dict[str, str] = {}
        while (line := self._stream.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, json.loads(self._stream.read(int(headers["content-length"])))

    def is_closed(self) -> bool:
        """Waits for more data; True when the connection ends instead."""
        try:
            return self._stream.read(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def wire(gateway: Gateway, redis: Redis) -> Iterator[Wire]:
    opened = Wire(gateway)
    yield opened
    opened.close()


def post(headers: str, body: bytes = BODY, target: str = "/tasks") -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(LENGTH + "Transfer-Encoding: chunked\r\n", CHUNKED),
        post("Transfer-Encoding: chunked\r\n" + LENGTH, CHUNKED),
        post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", CHUNKED),
    ],
    ids=["both", "the other way round", "a length that ends inside a chunk"],
)
def test_request_with_two_framings_is_rejected_and_the_connection_closed(
    wire: Wire, redis: Redis, request_bytes: bytes
) -> None:
    wire.send(request_bytes + HEALTH)
    status, headers, body = wire.answer()
    assert (status, headers["connection"]) == (400, "close")
    assert body["error"]["code"] == "wrong_protocol"
    assert "Transfer-Encoding and Content-Length exclude each other" in body["error"]["message"]
    assert wire.is_closed()
    assert scheduled(redis) == []


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (post(LENGTH + "Content-Length: 5\r\n"), 400, "conflicting Content-Length"),
        (post("Content-Length: +5\r\n"), 400, "bad Content-Length"),
        (post("Content-Length: -5\r\n"), 400, "bad Content-Length"),
        (post("Transfer-Encoding: xchunked\r\n", CHUNKED), 501, "Transfer-Encoding"),
        (post("Transfer-Encoding : chunked\r\n", CHUNKED), 400, "illegal header line"),
        (post("Transfer-Encoding: chunked\r\n", b"0x5\r\nhello\r\n0\r\n\r\n"), 400, "illegal chunk header"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "Host"),
        (b"GET /tasks/" + b"a" * 100_000, 431, "too long"),
    ],
)
def test_malformed_request_is_answered_with_the_reason(
    wire: Wire, redis: Redis, request_bytes: bytes, status: int, words: str
) -> None:
    wire.send(request_bytes)
    answered, _, body = wire.answer()
    message = body["error"]["message"]
    assert answered == status
    assert message.startswith("this is not a valid HTTP/1.1 request") and words in message and len(message) < 300
    assert wire.is_closed()
    assert scheduled(redis) == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(LENGTH, target="http://127.0.0.1:5124/tasks"),
        post(LENGTH, target="HTTP://localhost/tasks?x=1"),
        b"\r\n" + post(LENGTH),
        b"\r\n\r\n" + post(LENGTH),
        post(LENGTH + LENGTH),
        post("Transfer-Encoding: chunked\r\n", CHUNKED),
        post("Transfer-Encoding: chunked\r\n", CHUNKED[:-2] + b"X-Trailer: 1\r\n\r\n"),
        post(LENGTH + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
        post(LENGTH + "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        post(LENGTH + "X-Folded: a\r\n b\r\n"),
        post(LENGTH).replace(b"\r\n", b"\n"),
        post(LENGTH).replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_valid_request_is_accepted(wire: Wire, redis: Redis, gateway: Gateway, request_bytes: bytes) -> None:
    logged = len(gateway.log)
    wire.send(request_bytes)
    status, _, body = wire.answer()
    assert (status, body["ok"]) == (202, True)
    assert len(scheduled(redis)) == 1
    assert "upgrade" not in gateway.log[logged:].lower()


def test_empty_lines_between_requests_are_ignored(wire: Wire) -> None:
    for _ in range(3):
        wire.send(HEALTH)
        assert wire.answer()[0] == 200
        wire.send(b"\r\n")


@pytest.mark.parametrize("requests", [1, 3])
def test_half_closed_client_gets_every_answer_and_then_the_end(wire: Wire, redis: Redis, requests: int) -> None:
    wire.send(post(LENGTH) * requests)
    wire.end_sending()
    ids = {wire.answer()[2]["id"] for _ in range(requests)}
    assert wire.is_closed()
    assert len(ids) == requests == len(scheduled(redis))


def test_incomplete_request_of_a_half_closed_client_is_dropped(wire: Wire, redis: Redis) -> None:
    wire.send(post(LENGTH)[:-1])
    wire.end_sending()
    assert wire.is_closed()
    assert scheduled(redis) == []
