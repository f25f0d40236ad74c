"""The transport over the gateway's socket: it sends lines while it receives answers."""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic

from qtask import forks
from qtask.client import protocol
from qtask.client.protocol import WINDOW, Answer, TaskLike
from qtask.model.errors import Refused, Unavailable

OUT_BYTES = 262_144  # of lines that wait to be sent
FILL_SECONDS = 0.005  # the longest time that a line waits for others

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # Windows has no poll

_Owed = deque[Refused | None]  # the next answers: a known one, or None for one that must be read


class SocketTransport:
    """Keeps its connection between calls. A connection in use is not shared, so calls may be nested."""

    def __init__(self, url: str, timeout: float) -> None:
        self._host, self._port = protocol.host_and_port(url)
        self._timeout = timeout
        self._kept: _Line | None = None
        forks.register(self)

    def after_fork(self) -> None:
        self._kept = None  # it closes itself

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        line = self._take()
        whole = False
        try:
            yield from line.exchange(iter(tasks))
            whole = True
        finally:
            if whole and self._kept is None and not line.inherited:
                self._kept = line
            else:  # answers of an abandoned exchange must not be read as those of the next one
                line.close()

    def _take(self) -> _Line:
        kept, self._kept = self._kept, None
        if kept is not None:
            if kept.quiet:
                return kept
            kept.close()  # the gateway has closed it in the meantime
        try:
            connection = socket.create_connection((self._host, self._port), self._timeout)
        except OSError as error:
            raise protocol.no_gateway(f"{self._host}:{self._port}", str(error)) from None
        return _Line(connection, f"the gateway at {self._host}:{self._port}", self._timeout)


class _Line:
    """One connection.

    Attributes:
        inherited: whether this is the copy in a forked child, which must not use the connection.
    """

    def __init__(self, connection: socket.socket, place: str, timeout: float) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._connection = connection
        self._place = place
        self._timeout = timeout
        self._received = bytearray()
        # Not epoll, which a forked child would share with its parent; for one connection poll is as fast.
        self._selector = _Selector()
        self._selector.register(connection, selectors.EVENT_READ)
        self.inherited = False
        forks.register(self)

    def after_fork(self) -> None:
        self.inherited = True
        self._connection.close()  # only this process's copy: the parent's connection stays open

    def close(self) -> None:
        self._selector.close()
        self._connection.close()

    @property
    def quiet(self) -> bool:
        """Whether nothing came since the last exchange, neither data nor the end of the connection."""
        return not self._received and not self._ready(0.0, writing=False)

    def exchange(self, tasks: Iterator[TaskLike]) -> Iterator[Answer]:
        """Sends tasks and yields their answers."""
        owed: _Owed = deque()
        out = bytearray()
        more = True
        while more or owed:
            if more:
                more = self._fill(tasks, owed, out)
            yield from _known(owed)
            if not owed:
                continue
            if self.inherited:
                raise self._lost(owed, "this process was forked meanwhile, and the connection is its parent's")
            if out:
                self._write(out)
            # While more may be sent, this does not wait: the caller may need these answers to make the next task.
            wait = not more or len(owed) >= WINDOW or len(out) >= OUT_BYTES
            if not self._ready(self._timeout if wait else 0.0, writing=bool(out)) and wait:
                raise self._lost(owed, f"nothing came within {self._timeout:g} s")
            yield from self._read(owed)

    def _fill(self, tasks: Iterator[TaskLike], owed: _Owed, out: bytearray) -> bool:
        """Takes as many tasks as there is room for; returns whether there may be more."""
        begun = monotonic()
        while len(owed) < WINDOW and len(out) < OUT_BYTES:
            try:
                line = protocol.line_of(next(tasks))
            except StopIteration:
                return False
            except Refused as refused:
                owed.append(refused)
            else:
                owed.append(None)
                out += line
            if monotonic() - begun > FILL_SECONDS:
                break
        return True

    def _ready(self, seconds: float, writing: bool) -> bool:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
        self._selector.modify(self._connection, events)
        return bool(self._selector.select(seconds))

    def _write(self, out: bytearray) -> None:
        try:
            del out[: self._connection.send(out)]
        except BlockingIOError:
            return
        except OSError:  # the gateway has closed the connection; its last answers must still be read
            out.clear()

    def _read(self, owed: _Owed) -> Iterator[Answer]:
        try:
            chunk = self._connection.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(owed, str(error)) from None
        if not chunk:
            raise self._lost(owed, "it closed the connection")
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            try:
                answer = protocol.read_answer(bytes(line))
            except Unavailable as error:
                raise self._lost(owed, str(error)) from None
            yield from _known(owed)
            if not owed:
                raise self._lost(owed, f"it sent an unexpected line: {line[:200]!r}")
            owed.popleft()
            yield answer

    def _lost(self, owed: _Owed, why: str) -> Unavailable:
        return protocol.lost(self._place, why, sum(1 for known in owed if known is None))


def _known(owed: _Owed) -> Iterator[Answer]:
    while owed and (known := owed[0]) is not None:
        owed.popleft()
        yield known
