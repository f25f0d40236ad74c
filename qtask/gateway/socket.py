"""The socket: JSON texts in, one answer line a text, in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic
from typing import cast

from qtask.config import Config
from qtask.errors import Refused
from qtask.gateway.framing import Framing
from qtask.gateway.intake import Answer, Intake, encode_answer
from qtask.task import parse, split_batch

TURN = 200  # texts that one connection may have checked in one turn of the loop
MAX_UNANSWERED = 5_000  # texts of one connection that wait for their answer; beyond it nothing more is read
MAX_IN_ARRAY = 10_000
ARRAY_FACTOR = 16  # an array may be this many times as large as a dict
_HTTP_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"PATCH ", b"CONNECT ")

logger = logging.getLogger("qtask.gateway")


class _Slot:
    """The place of one text among the answers: one answer, or those of an array."""

    __slots__ = ("answers", "is_array", "missing")

    def __init__(self, count: int, is_array: bool) -> None:
        self.answers: list[Answer] = [None] * count
        self.missing = count
        self.is_array = is_array

    def line(self) -> bytes:
        if self.is_array:
            return b"[" + b",".join(map(encode_answer, self.answers)) + b"]\n"
        return encode_answer(self.answers[0]) + b"\n"


class SocketServer:
    """All connections of the socket."""

    def __init__(self, config: Config, intake: Intake) -> None:
        self.config = config
        self.intake = intake
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> int:
        """Listens; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), self.config.host, self.config.port, backlog=1024, reuse_address=True
        )
        self._sweep()
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Accepts no more connections and reads no more; answers still go out."""
        if self._server is not None:
            self._server.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self.connections):
            connection.stop_reading()

    def _sweep(self) -> None:
        """Closes connections that have been silent for too long."""
        idle = self.config.idle_seconds
        self._sweeper = asyncio.get_running_loop().call_later(min(5.0, idle / 2), self._sweep)
        silent_since = monotonic() - idle
        for connection in list(self.connections):
            if connection.last_byte < silent_since and connection.quiet:
                message = f"nothing came for {idle:g} s, so the connection is closed; connect again when there is more"
                connection.refuse_and_close(Refused("idle", "", message))


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._intake = server.intake
        self._max_bytes = server.config.max_bytes
        self._framing = Framing(self._max_bytes * ARRAY_FACTOR)
        self._slots: deque[_Slot] = deque()
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._ended = False  # the client will send no more
        self._closing = False  # nothing more is read; what is owed is answered, then the connection is closed
        self._working = False  # a turn is scheduled
        self._flushing = False
        self._client_reads = True
        self.last_byte = monotonic()

    @property
    def quiet(self) -> bool:
        """Whether no answer is owed."""
        return not self._slots

    # --- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        most = self._server.config.max_connections
        if len(self._server.connections) > most:
            message = f"{most} connections are served at once and all are taken; try again, or use one for many tasks"
            self.refuse_and_close(Refused("too_many", "", message))

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.last_byte = monotonic()
        self._framing.feed(data)
        if not self._working:
            self._work()

    def eof_received(self) -> bool:
        self._ended = True
        if not self._working:
            self._work()
        return True  # keep our side open for the answers

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._closing = True
        # A client that has hung up without a half-close still gets what it sent whole accepted; the rest is dropped.

    def pause_writing(self) -> None:
        self._client_reads = False
        self._update_reading()

    def resume_writing(self) -> None:
        self._client_reads = True
        self._flush()
        self._update_reading()
        self._go_on()

    # --- texts in --------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if not self._working and self._reading and not self._closing:
            self._work()

    def _work(self) -> None:
        """Checks up to TURN texts, and leaves the rest for the next turn of the loop: others want theirs, too."""
        self._working = False
        for _ in range(TURN):
            if self._closing:
                return
            if self._held_up():
                self._update_reading()
                return
            text = self._framing.next()
            if text is None:
                break
            if text:
                self._take(text)
        else:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work)
            return
        if self._framing.overflow:
            most = self._max_bytes * ARRAY_FACTOR
            self.refuse_and_close(Refused("too_large", "", f"a text on this socket has at most {most} bytes"))
        elif self._ended:
            rest = self._framing.rest()
            if rest:
                self._take(rest)
            self._closing = True
            self._close_when_done()
        elif self._framing.held > self._max_bytes * ARRAY_FACTOR:
            self._update_reading()

    def _take(self, text: bytes) -> None:
        if text.startswith(_HTTP_METHODS):
            port = self._server.config.http_port
            message = f"this port speaks JSON lines; HTTP is spoken on port {port}"
            self.refuse_and_close(Refused("wrong_protocol", "", message))
            return
        if text[:1] == b"[":
            self._take_array(text)
            return
        slot = _Slot(1, False)
        self._slots.append(slot)
        self._submit(text, slot, 0)

    def _take_array(self, text: bytes) -> None:
        try:
            texts = split_batch(text, self._max_bytes * ARRAY_FACTOR)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            slot = _Slot(1, False)
            self._slots.append(slot)
            self._answer(slot, 0, refused)
            return
        slot = _Slot(len(texts), True)
        self._slots.append(slot)
        for position, one in enumerate(texts):
            self._submit(one, slot, position)
        if not texts:
            self._flush()

    def _submit(self, text: bytes, slot: _Slot, position: int) -> None:
        try:
            checked = parse(text, self._max_bytes)
        except Refused as refused:
            self._answer(slot, position, refused)
            return
        self._intake.add(checked, lambda answer: self._answer(slot, position, answer))

    # --- answers out -----------------------------------------------------------------------------------------

    def refuse_and_close(self, refused: Refused) -> None:
        """Answers, after what is owed, that this connection ends here, and ends it."""
        self._closing = True
        slot = _Slot(1, False)
        self._slots.append(slot)
        self._answer(slot, 0, refused)
        self._update_reading()
        self._close_when_done()

    def stop_reading(self) -> None:
        """Answers what is owed and closes."""
        self._closing = True
        self._update_reading()
        self._close_when_done()

    def _answer(self, slot: _Slot, position: int, answer: Answer) -> None:
        slot.answers[position] = answer
        slot.missing -= 1
        if not slot.missing and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Writes the answers that are next in order, all in one call."""
        self._flushing = False
        if not self._client_reads:
            return
        lines = []
        slots = self._slots
        while slots and not slots[0].missing:
            lines.append(slots.popleft().line())
        if lines and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(lines))
        self._close_when_done()
        if not self._reading and not self._held_up():
            self._update_reading()
            self._go_on()

    def _close_when_done(self) -> None:
        if self._closing and not self._slots and self._transport is not None:
            self._transport.close()

    def _held_up(self) -> bool:
        return self._intake.full or len(self._slots) >= MAX_UNANSWERED or not self._client_reads

    def _update_reading(self) -> None:
        """Reads only while there is room for what would come: back-pressure reaches the client through TCP."""
        wanted = not self._closing and not self._held_up()
        if wanted == self._reading or self._transport is None:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            if self._intake.full:
                self._intake.when_room(self._on_room)

    def _on_room(self) -> None:
        self._update_reading()
        self._go_on()
