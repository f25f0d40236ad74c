"""The transport over the gateway's socket for asyncio: all coroutines share one connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import cast

from qtask import forks
from qtask.client import protocol
from qtask.client.protocol import WINDOW, Answer, TaskLike
from qtask.model.errors import Refused, Unavailable


@dataclass(frozen=True, slots=True)
class _Lost:
    """Stands for an answer that will not come."""

    why: str


_Owed = asyncio.Future[Answer | _Lost]


class AsyncSocketTransport:
    """Keeps its connection between calls."""

    def __init__(self, url: str, timeout: float) -> None:
        self._host, self._port = protocol.host_and_port(url)
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._line: _Line | None = None
        forks.register(self)

    def after_fork(self) -> None:
        self._connecting = asyncio.Lock()  # the parent's lock may be held, and would never be released here
        self._line = None

    async def close(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.end("the client was closed")

    async def send(self, tasks: AsyncIterable[TaskLike]) -> AsyncIterator[Answer]:
        line = await self._connected()
        owed: deque[_Owed | Refused] = deque()
        async for task in tasks:
            try:
                owed.append(line.submit(protocol.line_of(task)))
            except Refused as refused:
                owed.append(refused)
            if not line.writable.is_set():
                await self._writable(line)
            while owed and (len(owed) >= WINDOW or _is_known(owed[0])):
                yield await self._answer(line, owed)
        while owed:
            yield await self._answer(line, owed)

    async def _connected(self) -> _Line:
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._line is None or self._line.ended or self._line.loop is not loop:
                try:
                    async with asyncio.timeout(self._timeout):
                        _, self._line = await loop.create_connection(lambda: _Line(loop), self._host, self._port)
                except OSError as error:  # TimeoutError is one
                    why = str(error) or f"no connection within {self._timeout:g} s"
                    raise protocol.no_gateway(f"{self._host}:{self._port}", why) from None
            return self._line

    async def _writable(self, line: _Line) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await line.writable.wait()
        except TimeoutError:
            line.end(f"it read nothing within {self._timeout:g} s")

    async def _wait(self, line: _Line, owed: _Owed) -> Answer | _Lost:
        try:
            async with asyncio.timeout(self._timeout):
                return await owed
        except TimeoutError:
            line.end(f"nothing came within {self._timeout:g} s")
            return _Lost(line.why)

    async def _answer(self, line: _Line, owed: deque[_Owed | Refused]) -> Answer:
        """The next answer. Raises `Unavailable`, with the number of missing answers, when it will not come."""
        first = owed[0]
        if isinstance(first, Refused):
            return cast(Refused, owed.popleft())
        answer = first.result() if first.done() else await self._wait(line, first)
        if isinstance(answer, _Lost):
            unknown = sum(1 for one in owed if not isinstance(one, Refused) and not _has_answer(one))
            raise protocol.lost(f"the gateway at {self._host}:{self._port}", answer.why, unknown) from None
        owed.popleft()
        return answer


def _is_known(owed: _Owed | Refused) -> bool:
    return isinstance(owed, Refused) or owed.done()


def _has_answer(owed: _Owed) -> bool:
    return owed.done() and not owed.cancelled() and not isinstance(owed.result(), _Lost)


class _Line(asyncio.Protocol):
    """One connection; answers come in the order of the lines, from all coroutines.

    Attributes:
        ended: whether no more may be submitted.
        why: why it ended.
        writable: whether the gateway takes lines as fast as they come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ended = False
        self.why = ""
        self.writable = asyncio.Event()
        self.writable.set()
        self._transport: asyncio.Transport | None = None
        self._owed: deque[_Owed] = deque()
        self._out: list[bytes] = []
        self._received = bytearray()
        forks.register(self)

    def after_fork(self) -> None:
        self.ended, self.why = True, "this process was forked meanwhile, and the connection is its parent's"
        if self._transport is not None:
            forks.release(self._transport)

    def submit(self, line: bytes) -> _Owed:
        """Sends a line, together with the other lines of this turn of the loop."""
        future: _Owed = self.loop.create_future()
        if self.ended:
            future.set_result(_Lost(self.why))
            return future
        self._owed.append(future)
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(line)
        return future

    def end(self, why: str) -> None:
        """Closes the connection; missing answers will not come."""
        if self.ended:
            return
        self.ended, self.why = True, why
        self.writable.set()
        if self._transport is not None and not self.loop.is_closed():
            self._transport.abort()
        for future in self._owed:
            if not future.done():
                future.set_result(_Lost(why))
        self._owed.clear()

    def _flush(self) -> None:
        if not self.ended and self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # --- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.end(str(error) if error is not None else "it closed the connection")

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            try:
                answer = protocol.read_answer(bytes(line))
            except Unavailable as error:
                self.end(str(error))
                return
            if not self._owed:
                self.end(f"it sent an unexpected line: {line[:200]!r}")
                return
            future = self._owed.popleft()
            if not future.done():  # its coroutine may have been cancelled
                future.set_result(answer)
