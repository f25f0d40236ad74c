"""One client of the socket: its states, the turns in which its texts are taken, back-pressure, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum, IntEnum
from http import HTTPStatus
from time import monotonic
from typing import cast

from qtask.config import Config
from qtask.gateway.answers import Answers, unread
from qtask.gateway.texts import Texts
from qtask.gateway.wrong_protocol import HttpRefused, binary_refusal
from qtask.intake.http_refusal import http_refusal
from qtask.intake.intake import Intake
from qtask.intake.limits import LINGER_SECONDS, TURN
from qtask.model.errors import Refused


class Phase(IntEnum):
    """What this side of a connection does. A connection only moves forward through these, and may leave some out."""

    NEW = 0  # no byte has come, so it is not known whether the client speaks our protocol
    OPEN = 1  # texts are taken
    ENDING = 2  # nothing more is taken, except the rest of an array that was begun; answers are owed
    LINGERING = 3  # every answer is written and our side is closed; the client has some time to close its own
    CLOSED = 4  # both sides are closed, or about to be


class Client(IntEnum):
    """What the client does. It only moves forward through these."""

    SENDING = 0
    HALF_CLOSED = 1  # it will send no more, but may read its answers
    GONE = 2  # the connection is closed; the whole texts that it sent are still accepted


class Turn(Enum):
    """When the next texts are taken."""

    ON_DATA = "when bytes come: no whole text is here"
    SCHEDULED = "in the next turn of the loop: other clients go first"
    STALLED = "when answers are written, or when the intake has room"


# Looked up once: in Python 3.11 a member of an enum costs as much as a call.
NEW, OPEN, ENDING, LINGERING, CLOSED = Phase
SENDING, HALF_CLOSED, GONE = Client
ON_DATA, SCHEDULED, STALLED = Turn


class Connection(asyncio.Protocol):
    """One client.

    A socket that is closed while it has unread bytes is reset, and answers on their way are lost. So a connection ends
    in steps; see `Phase`.

    Args:
        config: `max_bytes`, `max_connections` and `http_port`.
        intake: where submitted tasks go.
        connections: the set of all connections; this one adds and removes itself.
        on_held: called with each change in the number of bytes that this connection holds.
    """

    def __init__(
        self, config: Config, intake: Intake, connections: set[Connection], on_held: Callable[[int], None]
    ) -> None:
        self._max_connections = config.max_connections
        self._intake = intake
        self._connections = connections
        self._on_held = on_held
        self._answers = Answers(self._on_written)
        self._texts = Texts(intake, self._answers, config.max_bytes, config.http_port)
        self._transport: asyncio.Transport  # there until the client is gone
        self._phase = NEW
        self._client = SENDING
        self._turn = ON_DATA
        self._counted = 0  # bytes that were reported to `on_held`
        self._linger: asyncio.TimerHandle | None = None
        self._last_sign = monotonic()  # when the client last sent a byte or read an answer
        self._unread = 0  # bytes of answers, at the last check

    def _enter(self, phase: Phase) -> None:
        assert phase > self._phase, f"a connection does not go from {self._phase.name} to {phase.name}"
        self._phase = phase

    # --- asyncio calls these ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._answers.connect(self._transport)
        self._connections.add(self)
        limit = self._max_connections
        if len(self._connections) > limit:
            message = f"{limit} connections are served at once and all are taken; try again, or use one for many tasks"
            self._refuse(Refused("too_many", "", message))

    def data_received(self, data: bytes) -> None:
        if self._phase is not OPEN and not self._begin(data):
            return  # the data is discarded
        self._last_sign = monotonic()
        self._texts.feed(data)
        if self._turn is SCHEDULED:
            self._count()
        else:
            self._take_turn()

    def _begin(self, data: bytes) -> bool:
        """Checks the first bytes; returns whether texts are taken."""
        if self._phase is not NEW:
            return False
        if (refused := binary_refusal(data)) is not None:
            self._refuse(refused)
            return False
        self._enter(OPEN)
        return True

    def eof_received(self) -> bool:
        self._client = HALF_CLOSED
        self._go_on()
        self._close_when_done()
        return True  # keep our side open for the answers

    def connection_lost(self, error: Exception | None) -> None:
        # A client may hang up without waiting for answers, as the original's do: its whole texts are still accepted.
        self._client = GONE
        if self._linger is not None:
            self._linger.cancel()
        self._answers.disconnect()
        self._go_on()
        self._close_when_done()
        self._count()

    def pause_writing(self) -> None:
        self._answers.block()
        if self._turn is ON_DATA:
            self._turn = STALLED
        self._update_reading()
        self._count()

    def resume_writing(self) -> None:
        self._last_sign = monotonic()
        self._answers.unblock()
        self._go_on()
        self._count()

    # --- taking texts ----------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Takes texts, unless a turn is scheduled already or nothing more is taken."""
        if self._turn is not SCHEDULED and self._takes_texts:
            self._take_turn()

    @property
    def _takes_texts(self) -> bool:
        return self._phase < ENDING or self._texts.in_array

    def _take_turn(self) -> None:
        """Takes as many tasks as fit into a turn and leaves the rest for the next turn, after other clients."""
        self._turn = ON_DATA
        left = TURN
        try:
            while left > 0:
                # An array that was begun goes on although many answers are owed: its answer needs all of it.
                if self._intake.full or (self._answers.full and not self._texts.in_array):
                    self._turn = STALLED
                    break
                taken = self._texts.step()
                left -= taken
                if not taken:
                    if self._client is SENDING or self._phase >= ENDING:
                        break
                    self._texts.step_last()  # which may begin an array
                    self.finish()
        except Refused as refused:
            self._refuse(refused)
        if left <= 0:
            self._turn = SCHEDULED
            asyncio.get_running_loop().call_soon(self._take_turn)
        self._update_reading()
        self._count()

    def _on_written(self) -> None:
        self._close_when_done()
        if self._turn is STALLED:
            self._go_on()

    def _update_reading(self) -> None:
        """Reads only while there is room for what would come: back-pressure reaches the client through TCP."""
        if self._intake.full and self._takes_texts:
            self._intake.when_room(self._go_on)
        if self._client is not SENDING:
            return
        # While the connection ends, data is read and discarded: some clients send everything before they read.
        wanted = self._phase >= ENDING or self._turn is ON_DATA
        if wanted and not self._transport.is_reading():
            self._transport.resume_reading()
        elif not wanted and self._transport.is_reading():
            self._transport.pause_reading()

    # --- memory ----------------------------------------------------------------------------------------------

    @property
    def droppable(self) -> int:
        """Bytes that closing this connection would free. Those of an array that was begun stay."""
        return self._texts.unbegun + self._answers.held

    def end_as_largest(self, limit: int) -> None:
        """Ends this connection, which holds the most, because all connections together hold more than `limit` bytes."""
        if not self._answers.blocked:
            words = f"all clients together may have {limit} bytes of unfinished texts and untaken answers here"
            message = f"{words}, and this connection had the most; send smaller texts, and fewer at once"
            self._refuse(Refused("too_many", "", message))
        elif self._client is not GONE:
            self._take_no_more()
            self._transport.abort()
        self._count()

    def _count(self) -> None:
        holds = self._texts.held + self._answers.held
        if holds != self._counted:
            change, self._counted = holds - self._counted, holds
            self._on_held(change)

    # --- the end ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Takes no more texts, and closes when all answers are written."""
        self._take_no_more()
        self._update_reading()
        self._close_when_done()

    def _take_no_more(self) -> None:
        if self._phase < ENDING:
            self._enter(ENDING)
        self._texts.drop()

    def _refuse(self, refused: Refused) -> None:
        """Ends the connection; the reason is its last answer."""
        if isinstance(refused, HttpRefused) and self._client is not GONE and not self._answers.pending:
            # As an HTTP response, so that the client shows it to the person who made the mistake.
            self._transport.write(http_refusal(HTTPStatus.BAD_REQUEST, refused))
        else:
            self._answers.expect_one()(refused)
        self.finish()

    def end_if_silent(self, seconds: float) -> None:
        """Ends a connection whose client has neither sent a byte nor read an answer for this long."""
        if self._client is GONE:
            return
        left = unread(self._transport)
        if left < self._unread:
            self._last_sign = monotonic()
        self._unread = left
        if self._last_sign > monotonic() - seconds:
            return
        if left:
            self._transport.abort()
        elif not self._answers.pending and self._phase < ENDING:
            message = f"nothing came for {seconds:g} s, so the connection is closed; connect again when there is more"
            self._refuse(Refused("idle", "", message))

    def _close_when_done(self) -> None:
        """Enters the next phase of the end, once all answers are written."""
        if self._phase < ENDING or self._answers.pending:
            return
        if self._client is SENDING:
            if self._phase is ENDING:
                self._enter(LINGERING)
                self._transport.write_eof()
                self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end_lingering)
            return
        if self._phase is not CLOSED:
            self._enter(CLOSED)
        if self._client is GONE:
            self._connections.discard(self)
            self._answers.close()
        else:
            self._transport.close()

    def _end_lingering(self) -> None:
        """Closes the connection of a client that does not close its side, unless answers are still on their way."""
        if unread(self._transport):
            self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._end_lingering)
        else:
            self._transport.abort()
