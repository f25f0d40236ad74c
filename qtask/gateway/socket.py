"""The socket: JSON texts in, one answer line a text, in order."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import re
import socket
import sys
import termios
from collections import deque
from http import HTTPStatus
from time import monotonic
from typing import cast

from qtask.config import Config
from qtask.destinations.parsing import parse
from qtask.gateway.framing import Framing
from qtask.intake.http_refusal import http_refusal
from qtask.intake.intake import Answer, Intake, encode_answer
from qtask.intake.limits import ARRAY_FACTOR, LINGER_SECONDS, MAX_IN_ARRAY, TURN
from qtask.intake.listen import BACKLOG
from qtask.intake.memory_budget import Held
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.model.rejection import refusal_of_form
from qtask.model.validation import split_batch

TURN_BYTES = 16_384  # a dict of so many bytes takes as much of a turn as two
MAX_UNANSWERED = 2_000  # dicts of one connection that wait for their answer; beyond it nothing more is read
ANSWER_BYTES = 250  # about what an answer takes that is not written yet
# A request's line, of whatever method: a web page may POST lines of JSON to any port.
_HTTP_REQUEST = re.compile(rb"(?:GET|POST|PUT|HEAD|OPTIONS|DELETE|PATCH|CONNECT) |[!#$%&'*+.^_`|~\w-]+ +\S+ +HTTP/\d")

# Bytes with which neither JSON nor a byte order mark nor white space begins: TLS, UTF-16, gzip. What comes after them
# is not looked at, for a TLS session ticket (which a web page can choose) may hold lines of JSON.
_FOREIGN = (frozenset(range(0x21)) | frozenset(range(0x7F, 0x100))) - frozenset(b" \t\r\n\xef")

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
    """All connections of the socket.

    Args:
        config: `http_port`, `max_bytes`, `max_connections` and `idle_seconds`.
        intake: where submitted tasks go.
        held: counts what all connections hold.
    """

    def __init__(self, config: Config, intake: Intake, held: Held) -> None:
        self.config = config
        self.intake = intake
        self._held = held
        self.connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listeners: list[socket.socket]) -> None:
        """Begins to serve."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            server = await loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
            self._servers.append(server)
        self._sweep()

    async def stop(self) -> None:
        """Accepts no more connections and reads no more; returns when the answers that are owed have gone out."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.finish()
        while self.connections:
            await asyncio.sleep(0.01)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def count(self, by: int) -> None:
        """Counts what a connection holds more, or less; when it is too much in all, whoever holds the most goes."""
        self._held.change(by)
        while by > 0 and self._held.too_much:
            greatest = max(self.connections, key=lambda connection: connection.droppable, default=None)
            if greatest is None or not greatest.droppable:
                return  # all of it is on its way to Redis
            greatest.give_way(self._held.most)

    def _sweep(self) -> None:
        """Looks for connections that have been silent for too long."""
        idle = self.config.idle_seconds
        self._sweeper = asyncio.get_running_loop().call_later(min(5.0, idle / 2), self._sweep)
        refused_log.flush()
        for connection in list(self.connections):
            connection.end_if_silent(idle)


class Connection(asyncio.Protocol):
    """One client.

    It ends in steps: nothing more is taken (`_closing`), what is owed is answered, our side is closed, and only when
    the client has closed its side, or some time later, the whole. Closing at once would throw away answers that are
    on their way whenever the client has sent more than was read.
    """

    def __init__(self, server: SocketServer) -> None:
        self._server = server
        self._intake = server.intake
        self._max_bytes = server.config.max_bytes
        self._framing = Framing(self._max_bytes * ARRAY_FACTOR)
        self._slots: deque[_Slot] = deque()
        self._owed = 0  # dicts whose answers have not been written
        self._array: deque[bytes] = deque()  # what is still to be checked of the array in the last slot
        self._array_bytes = 0  # of the whole of it
        self._counted = 0  # bytes that the server has counted for this connection
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._begun = False  # the client has sent something
        self._ended = False  # the client will send no more
        self._closing = False  # nothing more is taken
        self._working = False  # a turn is scheduled
        self._stalled = False  # a turn was ended because there is no room
        self._flushing = False
        self._client_reads = True
        self._awaits_room = False
        self._linger: asyncio.TimerHandle | None = None
        self._last_sign = monotonic()  # of the client: it sent a byte, or took an answer
        self._untaken = 0  # bytes of answers, at the last look

    # --- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        most = self._server.config.max_connections
        if len(self._server.connections) > most:
            message = f"{most} connections are served at once and all are taken; try again, or use one for many tasks"
            self._refuse_and_close(Refused("too_many", "", message))

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._last_sign = monotonic()
        if not self._begun:
            self._begun = True
            if data[0] in _FOREIGN:
                self._refuse_binary(data)
                return
        self._framing.feed(data)
        if self._working:
            self._count()
        else:
            self._work()

    def eof_received(self) -> bool:
        self._ended = True
        self._go_on()
        self._close_when_done()
        return True  # keep our side open for the answers

    def connection_lost(self, error: Exception | None) -> None:
        # A client that has hung up without waiting, as the original's does, still gets accepted what it sent whole.
        self._transport = None
        self._ended = self._client_reads = True
        if self._linger is not None:
            self._linger.cancel()
        self._flush()
        self._go_on()
        self._close_when_done()
        self._count()

    def pause_writing(self) -> None:
        self._client_reads = False
        self._update_reading()
        self._count()

    def resume_writing(self) -> None:
        self._last_sign = monotonic()
        self._client_reads = True
        self._flush()
        self._go_on()
        self._count()

    # --- texts in --------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        if not self._working and not (self._closing and not self._array):
            self._work()

    def _work(self) -> None:
        """Checks as many dicts as fit into a turn and leaves the rest for the next one: others want theirs, too."""
        self._working = self._stalled = False
        left = TURN
        while left > 0 and not self._held_up():
            if self._array:
                left -= self._take_element()
            elif self._closing:
                break
            else:
                text = self._framing.next()
                if text is None:
                    self._run_dry()
                    if self._array:  # what was left at the end was an array
                        continue
                    break
                left -= 1 + len(text) // TURN_BYTES
                if text:
                    self._take(text)
        if left <= 0:
            self._working = True
            asyncio.get_running_loop().call_soon(self._work)
        else:
            self._stalled = self._held_up()
        self._update_reading()
        self._count()

    def _run_dry(self) -> None:
        """No whole text is left."""
        if self._framing.overflow:
            most = self._max_bytes * ARRAY_FACTOR
            refused = Refused("too_large", "", f"a text on this socket has at most {most} bytes")
            refused_log.write("socket", b"", refused)
            self._refuse_and_close(refused)
        elif self._ended:
            rest = self._framing.rest()
            if rest:
                self._take(rest)
            self.finish()

    def _take(self, text: bytes) -> None:
        if _HTTP_REQUEST.match(text):
            self._refuse_http()
        elif text[:1] == b"[":
            self._take_array(text)
        else:
            slot = _Slot(1, False)
            self._slots.append(slot)
            self._submit(text, slot, 0)

    def _take_array(self, text: bytes) -> None:
        try:
            texts = split_batch(text, self._max_bytes * ARRAY_FACTOR)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            refused_log.write("socket", b"", refused)
            self._answer_at_once(refused)
            return
        self._array.extend(texts)
        self._array_bytes = len(text)
        self._slots.append(_Slot(len(texts), True))
        if not texts:
            self._flush()

    def _take_element(self) -> int:
        """Submits the next dict of the array, and returns what it takes of a turn."""
        slot, text = self._slots[-1], self._array.popleft()
        self._submit(text, slot, len(slot.answers) - len(self._array) - 1)
        return 1 + len(text) // TURN_BYTES

    def _submit(self, text: bytes, slot: _Slot, position: int) -> None:
        self._owed += 1
        try:
            checked = parse(text, self._max_bytes)
        except Refused as refused:
            refused_log.write("socket", text, refused)
            self._answer(slot, position, refused)
            return
        self._intake.add(checked, lambda answer: self._answer(slot, position, answer))

    # --- answers out -----------------------------------------------------------------------------------------

    def _answer(self, slot: _Slot, position: int, answer: Answer) -> None:
        slot.answers[position] = answer
        slot.missing -= 1
        if not slot.missing and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _answer_at_once(self, refused: Refused) -> None:
        """Answers a text that holds nothing to submit."""
        slot = _Slot(1, False)
        self._slots.append(slot)
        self._owed += 1
        self._answer(slot, 0, refused)

    def _flush(self) -> None:
        """Writes the answers that are next in order, all in one call."""
        self._flushing = False
        if not self._client_reads:
            return
        lines = []
        slots = self._slots
        while slots and not slots[0].missing:
            slot = slots.popleft()
            self._owed -= len(slot.answers)
            lines.append(slot.line())
        if lines and self._transport is not None:
            self._transport.write(b"".join(lines))
        self._close_when_done()
        if self._stalled:
            self._go_on()

    # --- back-pressure ---------------------------------------------------------------------------------------

    def _held_up(self) -> bool:
        """Whether nothing more is to be checked now. An array that was begun goes on: its answer needs all of it."""
        if self._intake.full:
            return True
        if self._array:
            return False
        too_many = self._owed >= MAX_UNANSWERED or len(self._slots) >= MAX_UNANSWERED
        return too_many or not self._client_reads

    def _update_reading(self) -> None:
        """Reads only while there is room for what would come: back-pressure reaches the client through TCP."""
        if self._intake.full and not self._awaits_room and not (self._closing and not self._array):
            self._awaits_room = True
            self._intake.when_room(self._on_room)
        # What is read while the connection ends is thrown away; reading it lets the client get to its answers.
        wanted = self._closing or not (self._working or self._held_up())
        if wanted == self._reading or self._ended or self._transport is None:
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _on_room(self) -> None:
        self._awaits_room = False
        self._go_on()

    @property
    def droppable(self) -> int:
        """Bytes that would be free without this connection: not those of an array that was begun."""
        return self._framing.held + self._untaken_bytes()

    def give_way(self, most: int) -> None:
        """Ends this connection, which holds more than any other, because all together hold more than they may."""
        if self._client_reads:
            words = f"all clients together may have {most} bytes of unfinished texts and untaken answers here"
            message = f"{words}, and this connection had the most; send smaller texts, and fewer at once"
            self._refuse_and_close(Refused("too_many", "", message))
        elif self._transport is not None:
            self._closing = True
            self._framing.drop()
            self._transport.abort()
        self._count()

    def _count(self) -> None:
        holds = self._framing.held + (self._array_bytes if self._array else 0) + self._untaken_bytes()
        if holds != self._counted:
            change, self._counted = holds - self._counted, holds
            self._server.count(change)

    def _untaken_bytes(self) -> int:
        """Bytes of answers that a client does not take, and that are held for it here."""
        if self._client_reads or self._transport is None or self._transport.is_closing():
            return 0
        return self._transport.get_write_buffer_size() + self._owed * ANSWER_BYTES

    # --- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Takes nothing more, answers what is owed, and closes."""
        self._closing = True
        self._framing.drop()
        self._update_reading()
        self._close_when_done()

    def end_if_silent(self, seconds: float) -> None:
        """Ends a connection whose client has neither sent a byte nor taken an answer for so long."""
        if self._transport is None:
            return
        untaken = _untaken(self._transport)
        if untaken < self._untaken:
            self._last_sign = monotonic()
        self._untaken = untaken
        if self._last_sign > monotonic() - seconds:
            return
        if untaken:
            self._transport.abort()
        elif not self._slots and not self._closing:
            message = f"nothing came for {seconds:g} s, so the connection is closed; connect again when there is more"
            self._refuse_and_close(Refused("idle", "", message))

    def _refuse_and_close(self, refused: Refused) -> None:
        """Answers, after what is owed, that this connection ends here, and ends it."""
        self._answer_at_once(refused)
        self.finish()

    def _refuse_http(self) -> None:
        """Answers in the words of HTTP, so that the client shows it to the person who made the mistake."""
        port = self._server.config.http_port
        refused = Refused("wrong_protocol", "", f"this port speaks JSON lines; HTTP is spoken on port {port}")
        if self._transport is not None and not self._slots:
            self._transport.write(http_refusal(HTTPStatus.BAD_REQUEST, refused))
            self.finish()
        else:
            self._refuse_and_close(refused)

    def _refuse_binary(self, data: bytes) -> None:
        """Ends a connection whose first byte shows that no JSON will come."""
        binary = Refused("wrong_protocol", "", "this port speaks JSON lines in UTF-8, got binary data")
        self._refuse_and_close(refusal_of_form(data) or binary)

    def _close_when_done(self) -> None:
        if not self._closing or self._slots:
            return
        transport = self._transport
        if transport is None:
            self._server.connections.discard(self)
        elif self._ended:
            transport.close()
        elif self._linger is None:
            transport.write_eof()
            self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end_lingering)

    def _end_lingering(self) -> None:
        """Hangs up on a client that does not close its side, unless answers are still on their way to it."""
        assert self._transport is not None
        if _untaken(self._transport):
            self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end_lingering)
        else:
            self._transport.abort()


def _untaken(transport: asyncio.Transport) -> int:
    """Bytes that the client has not received: here, and in the kernel, which throws them away at a reset."""
    unsent = bytearray(4)
    fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, unsent)
    return transport.get_write_buffer_size() + int.from_bytes(unsent, sys.byteorder)
