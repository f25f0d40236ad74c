"""Receivers of all types in one process: they behave as each task says, and note every arrival.

As a program: `python -m tests.chaos.receivers FOLDER` prints their addresses and exits at the end of standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import uvloop

from tests.chaos.plan import CLOSE, FAIL, FAILURES, GONE, HANG, OK, SLOW, SLOW_SECONDS, TOO_MANY, TORN

ARRIVALS_FILE = "arrivals.ndjson"
PIPE = "orders"
_BUFFER_BYTES = 4_194_304
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: pending data is dropped, and the sender gets a reset
_REQUEST = re.compile(rb"POST /(\d+)/(\w+) ")
_HEADER = re.compile(rb"^(qtask-id|qtask-attempt|qtask-due|content-length): ?(.*?)\r$", re.IGNORECASE | re.MULTILINE)

_OK_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_HTTP_ANSWERS = {
    OK: _OK_ANSWER,
    FAIL: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    TOO_MANY: b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    GONE: b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    TORN: _OK_ANSWER[:-1],
    SLOW: _OK_ANSWER,
}


class Arrival(msgspec.Struct, frozen=True):
    """The arrival of one task at its receiver.

    Attributes:
        number: of the task in the plan.
        kind: of the receiver.
        instant: Unix seconds.
        answer: behaviour of the receiver, a letter of `plan`.
        id, attempt, due: from the HTTP headers; empty for other types.
        ended: when it was answered, or its sender was gone, in Unix seconds; 0 for other types than HTTP.
    """

    number: int
    kind: str
    instant: float
    answer: str
    id: str = ""
    attempt: int = 0
    due: str = ""
    ended: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the delivery must count as failed, so that another one must follow.

        A socket receiver has read everything before it is silent or resets the connection: that counts as delivered.
        """
        return self.answer in FAILURES and not (self.kind == "socket" and self.answer in (HANG, CLOSE))


class _Book:
    """Notes arrivals, and selects the answer to each."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._seen: Counter[int] = Counter()

    def note(self, kind: str, number: int, answers: str, id: str = "", attempt: int = 0, due: str = "") -> str:
        """Returns the letter of the answer."""
        arrival = self.begin(kind, number, answers, id, attempt, due)
        self.write(arrival)
        return arrival.answer

    def begin(self, kind: str, number: int, answers: str, id: str, attempt: int, due: str) -> Arrival:
        """An arrival that is to be written when it has ended."""
        answer = answers[min(self._seen[number], len(answers) - 1)]
        self._seen[number] += 1
        return Arrival(number, kind, time.time(), answer, id, attempt, due)

    def end(self, arrival: Arrival) -> None:
        """Writes an arrival that ends now."""
        self.write(msgspec.structs.replace(arrival, ended=time.time()))

    def write(self, arrival: Arrival) -> None:
        self._file.write(msgspec.json.encode(arrival) + b"\n")

    def flush(self) -> None:
        self._file.flush()


class _Stream(asyncio.Protocol):
    """One connection of a sender: its notebook, its unread data, and its transport."""

    def __init__(self, book: _Book) -> None:
        self._book = book
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport


class _Http(_Stream):
    """Answers requests as their path says."""

    _open: Arrival | None = None  # the request that is not answered yet

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 2]
            headers = {name.lower(): value for name, value in _HEADER.findall(head)}
            size = end + 4 + int(headers[b"content-length"])
            if len(self._buffer) < size:
                return
            self._buffer = self._buffer[size:]
            self._answer(head, headers)

    def _answer(self, head: bytes, headers: dict[bytes, bytes]) -> None:
        request = _REQUEST.match(head)
        assert request is not None, head
        arrival = self._book.begin(
            "http",
            int(request[1]),
            request[2].decode(),
            headers[b"qtask-id"].decode(),
            int(headers[b"qtask-attempt"]),
            headers[b"qtask-due"].decode(),
        )
        if arrival.answer == SLOW:
            self._open = arrival
            asyncio.get_running_loop().call_later(SLOW_SECONDS, self._finish, arrival)
        elif arrival.answer == HANG:
            self._open = arrival
        else:
            self._finish(arrival, True)

    def _finish(self, arrival: Arrival, at_once: bool = False) -> None:
        if not at_once and self._open is not arrival:
            return  # its sender is gone
        self._open = None
        self._book.end(arrival)
        if arrival.answer in _HTTP_ANSWERS:
            self._transport.write(_HTTP_ANSWERS[arrival.answer])
        if arrival.answer in (CLOSE, TORN):
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._open is not None:
            self._book.end(self._open)
            self._open = None


class _Socket(_Stream):
    """Reads to the end; then closes, resets the connection, or stays silent."""

    def data_received(self, data: bytes) -> None:
        self._buffer += data

    def eof_received(self) -> bool:
        try:
            said = json.loads(self._buffer)
        except ValueError:
            return False  # its worker was killed before it had sent everything
        answer = self._book.note("socket", said["number"], said["answers"])
        if answer == CLOSE:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        return answer == HANG


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, book: _Book) -> None:
        self._book = book

    def datagram_received(self, data: bytes, address: Any) -> None:
        said = json.loads(data)
        self._book.note("udp", said["number"], said["answers"])


class _Pipe(_Stream):
    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._book.note("pipe", said["number"], said["answers"])


async def _serve(folder: Path) -> None:
    loop = asyncio.get_running_loop()
    with (folder / ARRIVALS_FILE).open("wb") as file:
        book = _Book(file)
        http = await loop.create_server(partial(_Http, book), "127.0.0.1", 0, backlog=1024)
        stream = await loop.create_server(partial(_Socket, book), "127.0.0.1", 0, backlog=1024)
        udp, _ = await loop.create_datagram_endpoint(partial(_Udp, book), ("127.0.0.1", 0))
        udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        pipe = folder / "pipes" / PIPE
        pipe.parent.mkdir(exist_ok=True)
        os.mkfifo(pipe)
        # Opened for reading and writing, so that it does not end when the last writer closes it.
        await loop.connect_read_pipe(partial(_Pipe, book), open(pipe, "r+b", buffering=0))  # noqa: ASYNC230, SIM115
        places = {
            "http": f"127.0.0.1:{http.sockets[0].getsockname()[1]}",
            "socket": f"127.0.0.1:{stream.sockets[0].getsockname()[1]}",
            "udp": f"127.0.0.1:{udp.get_extra_info('sockname')[1]}",
            "pipe": PIPE,
        }
        print(json.dumps(places), flush=True)
        ended = loop.run_in_executor(None, sys.stdin.read)
        while not ended.done():
            await asyncio.wait([ended], timeout=0.2)
            book.flush()


class Receivers:
    """The program, as used by tests; a context manager.

    Attributes:
        places: the address of each receiver.
        pipes: the folder of the pipe.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ARRIVALS_FILE
        self.pipes = folder / "pipes"
        command = [sys.executable, "-m", "tests.chaos.receivers", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.places = cast("dict[str, str]", json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Receivers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> list[Arrival]:
        """Ends the program; returns every arrival, in order."""
        self._process.communicate()
        with self._file.open("rb") as lines:
            return [_DECODER.decode(line) for line in lines]


_DECODER = msgspec.json.Decoder(Arrival)

if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
