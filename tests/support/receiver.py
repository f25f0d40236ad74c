"""A real HTTP receiver for tests: it keeps the exact bytes of every request and answers as the test says."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

Behaviour = Callable[["Exchange"], None]


@dataclass(frozen=True)
class Request:
    """One request as received: nothing folded, nothing decoded.

    Attributes:
        method, target: of the request line.
        headers: in order, names and values as sent.
        body: decoded if it was chunked.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


@dataclass
class Exchange:
    """One request and the means to answer it."""

    request: Request
    connection: Any
    number: int
    keep: bool = True

    def send(self, data: bytes) -> None:
        """Sends raw bytes."""
        self.connection.sendall(data)

    def answer(self, status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Sends a whole answer."""
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        if status != 204 and status != 304:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if self.request.method == "HEAD" else body))


def ok(exchange: Exchange) -> None:
    """Answers 200 `ok`."""
    exchange.answer(200, b"ok")


class Gate:
    """Behaviour of a receiver that holds every answer until it is opened, and counts the held ones.

    Args:
        until: the number of held requests at which it opens automatically.
        held_attempts: only these attempts are held, the others are answered at once.
    """

    def __init__(self, until: int = 1_000_000, held_attempts: tuple[str, ...] = ()) -> None:
        self._until = until
        self._held_attempts = held_attempts
        self._changed = threading.Condition()
        self._open = False
        self.held = 0

    def __call__(self, exchange: Exchange) -> None:
        if not self._held_attempts or exchange.request.header("QTask-Attempt") in self._held_attempts:
            with self._changed:
                self.held += 1
                if self.held >= self._until:
                    self.open()
                self._changed.wait_for(lambda: self._open, 60)
        exchange.answer(200, b"ok")

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


@dataclass
class Receiver:
    """Listens, records and answers; a context manager.

    Attributes:
        behaviour: called for each request; `ok` by default.
        tls: wraps connections, if given.
        ports_count: ports that it listens on. Each is a destination, so a worker gives each a share of its places.
    """

    behaviour: Behaviour = ok
    tls: ssl.SSLContext | None = None
    family: socket.AddressFamily = socket.AF_INET
    host: str = "127.0.0.1"
    ports_count: int = 1
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Receiver:
        self._changed = threading.Condition()
        self.open: set[socket.socket] = set()
        self.closing = threading.Event()
        self._servers = [self._listen() for _ in range(self.ports_count)]
        self._ports = [0 if self.family == socket.AF_UNIX else int(server.getsockname()[1]) for server in self._servers]
        self.port = self._ports[0]
        for server in self._servers:
            threading.Thread(target=self._accept, args=(server,), daemon=True).start()
        return self

    def _listen(self) -> socket.socket:
        server = socket.socket(self.family)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(self.host if self.family == socket.AF_UNIX else (self.host, 0))
        server.listen(1024)
        return server

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.close()
        for connection in list(self.open):
            connection.close()

    @property
    def url(self) -> str:
        """Its address, with a slash at the end."""
        if self.family == socket.AF_UNIX:
            return f"http://unix:{self.host}:/"
        return self._url(self.port)

    def urls(self, count: int) -> list[str]:
        """This many addresses, of one port after the other."""
        return [self._url(port) for port in islice(cycle(self._ports), count)]

    def _url(self, port: int) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{port}/"

    @property
    def ids(self) -> list[str]:
        """The ids of the received tasks by their headers, one for each request."""
        return [request.header("QTask-Id") for request in list(self.requests)]

    def wait_for(self, count: int, seconds: float = 30.0) -> list[Request]:
        """Waits until this many requests have arrived, and returns them all."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, seconds):
                raise AssertionError(f"{len(self.requests)} requests arrived within {seconds} s, expected {count}")
            return list(self.requests)

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            self.open.add(connection)
            with connection, connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    with self._changed:
                        self.requests.append(request)
                        exchange = Exchange(request, connection, len(self.requests))
                        self._changed.notify_all()
                    self.behaviour(exchange)
                    if not exchange.keep:
                        return
        except (OSError, ValueError):
            return  # the sender closed the connection, or the test is over
        finally:
            self.open.discard(connection)


def _read(stream: Any) -> Request | None:
    first = stream.readline().decode("latin-1").strip()
    if not first:
        return None
    method, target, _ = first.split(" ", 2)
    headers: list[tuple[str, str]] = []
    while line := stream.readline().decode("latin-1").rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers.append((name, value.removeprefix(" ")))
    request = Request(method, target, headers, b"")
    if request.header("Transfer-Encoding").lower() == "chunked":
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size)
            stream.readline()
        stream.readline()
    else:
        body = stream.read(int(request.header("Content-Length") or 0))
    return Request(method, target, headers, body)
