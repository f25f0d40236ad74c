"""A real HTTP receiver that notes when each request begins and ends, for tests that judge limits by this log.

One thread polls all connections every two milliseconds. So it knows of each request that it arrived after the poll
before, also when the machine is busy and the thread was not run for a while: no test fails because of its own receiver.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

POLL_SECONDS = 0.002


class Reply(NamedTuple):
    """How a request is answered: the status, after how many seconds, and the value of Retry-After."""

    status: int = 200
    hold: float = 0.0
    retry_after: str = ""


@dataclass
class Delivery:
    """One request.

    Attributes:
        id, attempt: of the task, by the headers.
        target: of the request line.
        after: the latest instant at which it had not arrived yet; all instants are by `monotonic`.
        began: when it had arrived.
        ended: when it was answered, or its sender was gone; None while it is open.
        status: of the answer; 0 when its sender was gone before.
    """

    id: str
    attempt: int
    target: str
    after: float
    began: float
    ended: float | None = None
    status: int = 0


Decide = Callable[[Delivery], Reply]


class RequestLog:
    """Listens, answers as `decide` says, and notes; a context manager.

    Attributes:
        deliveries: in the order of their arrival.
    """

    def __init__(self, decide: Decide = lambda _: Reply()) -> None:
        self.decide = decide
        self.deliveries: list[Delivery] = []
        self._stopping = False
        self._numbers = count()
        self._timers: list[tuple[float, int, socket.socket, Delivery, Reply]] = []
        self._open: dict[socket.socket, Delivery] = {}
        self._received: dict[socket.socket, bytes] = {}

    def __enter__(self) -> RequestLog:
        self._server = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._thread.join(10)
        for connection in list(self._received):
            connection.close()
        self._server.close()
        self._selector.close()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stopping:
            entered = time.monotonic()
            ready = self._selector.select(POLL_SECONDS)
            for key, _ in ready:
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj, before)
            before = entered
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                _, _, connection, delivery, reply = heapq.heappop(self._timers)
                self._answer(connection, delivery, reply)

    def _accept(self) -> None:
        connection, _ = self._server.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket, before: float) -> None:
        try:
            data = connection.recv(65_536)
        except OSError:
            data = b""
        now = time.monotonic()
        if not data:
            self._selector.unregister(connection)
            del self._received[connection]
            delivery = self._open.pop(connection, None)
            if delivery is not None:
                delivery.ended = now
            connection.close()
            return
        head, end, rest = (self._received[connection] + data).partition(b"\r\n\r\n")
        self._received[connection] = rest if end else head
        if end:
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            target = first.split(" ")[1]
            delivery = Delivery(headers["qtask-id"], int(headers["qtask-attempt"]), target, before, now)
            self.deliveries.append(delivery)
            self._open[connection] = delivery
            reply = self.decide(delivery)
            heapq.heappush(self._timers, (now + reply.hold, next(self._numbers), connection, delivery, reply))

    def _answer(self, connection: socket.socket, delivery: Delivery, reply: Reply) -> None:
        if self._open.get(connection) is not delivery:
            return  # its sender is gone
        del self._open[connection]
        delivery.status = reply.status
        delivery.ended = time.monotonic()  # before it is sent, so that the next request is later
        more = f"Retry-After: {reply.retry_after}\r\n" if reply.retry_after else ""
        try:
            connection.sendall(f"HTTP/1.1 {reply.status} X\r\n{more}Content-Length: 0\r\n\r\n".encode())
        except OSError:
            delivery.status = 0


# --- judging -------------------------------------------------------------------------------------------------------


def most_at_once(deliveries: list[Delivery]) -> int:
    """How many of these were in flight at the same time at most."""
    events = [(one.began, 1) for one in deliveries]
    events += [(one.ended, -1) for one in deliveries if one.ended is not None]
    now = most = 0
    for _, change in sorted(events):
        now += change
        most = max(most, now)
    return most


def most_in_window(deliveries: list[Delivery], seconds: float) -> int:
    """How many of these began in any window of so many seconds, for certain."""
    most = first = 0
    for last, one in enumerate(deliveries):
        while one.began - deliveries[first].after >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most
