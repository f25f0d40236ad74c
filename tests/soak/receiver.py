"""Receivers of all types in one process, fast and without memory of requests.

As a program: `python -m tests.soak.receiver PIPE` prints its ports as JSON and exits at the end of standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from typing import cast

import uvloop

from qtask.process import descriptors

FAILS_FIRST = "fails-first"
GONE = "gone"
SLOW = "slow"
SLOW_SECONDS = 8.0  # as long as two workers on a busy machine need to start all their concurrent deliveries

_BACKLOG = 4_096  # connections that arrive at once

_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)\r\n", re.IGNORECASE)
_FIRST = re.compile(rb"\r\nqtask-attempt: ?1\r\n", re.IGNORECASE)
_ANSWERS = {
    200: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    404: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
}


class _Http(asyncio.Protocol):
    """Answers 200, late to slow paths; 503 to the first attempt of paths that fail first; 404 to missing paths."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head + 2)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            self._answer(self._buffer[: head + 4])
            self._buffer = self._buffer[end:]

    def _answer(self, head: bytes) -> None:
        target = head.split(b" ", 2)[1].decode()
        if target == f"/{SLOW}":
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._transport.write, _ANSWERS[200])
        elif target == f"/{GONE}":
            self._transport.write(_ANSWERS[404])
        else:
            self._transport.write(_ANSWERS[503 if target == f"/{FAILS_FIRST}" and _FIRST.search(head) else 200])


class _Socket(asyncio.Protocol):
    """Reads to the end, says thanks and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> bool:
        self._transport.write(b"ok")
        self._transport.close()
        return False


class _Udp(asyncio.DatagramProtocol):
    """Says thanks for each datagram."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        self._transport.sendto(b"ok", addr)


async def _serve(pipe: str) -> None:
    descriptors.allow_all()
    loop = asyncio.get_running_loop()
    http = await loop.create_server(_Http, "127.0.0.1", 0, backlog=_BACKLOG)
    sockets = await loop.create_server(_Socket, "127.0.0.1", 0)
    udp, _ = await loop.create_datagram_endpoint(_Udp, local_addr=("127.0.0.1", 0))
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # for writing, too, so that it never reaches its end
    loop.add_reader(reader, lambda: os.read(reader, 1_048_576))
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    ports = [http.sockets[0].getsockname()[1], sockets.sockets[0].getsockname()[1], udp.get_extra_info("sockname")[1]]
    print(json.dumps(ports), flush=True)
    await ended.wait()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
