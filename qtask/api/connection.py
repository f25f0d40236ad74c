"""One HTTP connection: uvicorn's protocol, with limits on the number of connections and on their silence."""

from __future__ import annotations

import asyncio
from enum import IntEnum
from http import HTTPStatus
from time import monotonic
from typing import Any

from qtask.api.request_checks import ServerConnection
from qtask.config import Config
from qtask.intake.http_refusal import http_refusal
from qtask.intake.limits import LINGER_SECONDS
from qtask.model.errors import Refused
from qtask.model.rejection import other_form
from qtask.model.validation import bare
from qtask.private.uvicorn import HttpConnection

MOST_HEAD_BYTES = 16_384  # of a request's line and headers


class Phase(IntEnum):
    """The phase of a connection. It only moves forward through these, and may leave some out."""

    NEW = 0  # no byte has come, so it is not known whether the client speaks HTTP
    OPEN = 1  # requests are read and answered
    HALF_CLOSED = 2  # the client has closed its side, but may still read its answer
    LINGERING = 3  # it was refused and our side is closed; data is discarded until the connection is closed


class Connection(HttpConnection):
    """uvicorn's side of one connection, with our limits.

    Args:
        limits: `max_connections`, `idle_seconds`, and `port`, the socket's port.
        arguments, named: uvicorn's own, its `config` among them.
    """

    def __init__(self, limits: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn: ServerConnection = ServerConnection(MOST_HEAD_BYTES)
        self._limits = limits
        self._phase = Phase.NEW
        self._last_byte = monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def _enter(self, phase: Phase) -> None:
        assert phase > self._phase, f"a connection does not go from {self._phase.name} to {phase.name}"
        self._phase = phase

    # --- asyncio and uvicorn call these ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self._limits.max_connections
        if len(self.connections) > limit:
            message = f"{limit} connections are served at once and all are taken; try again"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, Refused("too_many", "", message))
        else:
            self._timer = self.loop.call_later(self._limits.idle_seconds, self._look)

    def data_received(self, data: bytes) -> None:
        self._last_byte = monotonic()
        if self._phase is Phase.LINGERING or self.transport.is_closing():
            return
        if self._phase is Phase.NEW:
            self._enter(Phase.OPEN)
            if bare(data)[:1] in (b"{", b"[") or other_form(data):  # h11 would wait for the end of a line
                self.send_400_response(other_form(data))
                return
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps our side open for an answer that is not written yet: the client closed its side, but may still read.

        asyncio calls it again whenever reading was paused and is resumed after the end.
        """
        if self._phase is Phase.LINGERING or not self.owes_an_answer:
            return False
        if self._phase is not Phase.HALF_CLOSED:
            self._enter(Phase.HALF_CLOSED)
        return True

    def on_response_complete(self) -> None:
        """Called when an answer was sent. If the next request is here already, it begins before this returns."""
        half_closed = self._phase is Phase.HALF_CLOSED
        super().on_response_complete()
        if half_closed and not self.owes_an_answer:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers an invalid request. uvicorn calls it; we call it for other protocols, with their name as `msg`."""
        fault = self.conn.fault
        words = str(fault).partition(": bytearray")[0] if fault is not None else ""
        if fault is not None and "request line" not in words:
            message = f"this is not a valid HTTP/1.1 request: {words}"
            self._refuse(HTTPStatus(fault.error_status_hint), Refused("wrong_protocol", "", message))
            return
        what = f"plain HTTP/1.1, not {msg}" if msg == "TLS" else "HTTP/1.1"
        message = f"this port speaks {what}; JSON lines are spoken on port {self._limits.port}"
        self._refuse(HTTPStatus.BAD_REQUEST, Refused("wrong_protocol", "", message))

    # --- the end ---------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Ends the connection of a client that neither continues its request nor reads its answer."""
        idle_seconds = self._limits.idle_seconds
        takes_nothing = self.flow.write_paused or self.transport.is_closing()
        silent = 0.0 if self.owes_an_answer and not takes_nothing else monotonic() - self._last_byte
        if silent < idle_seconds:
            self._timer = self.loop.call_later(idle_seconds - silent, self._look)
        elif takes_nothing:
            self.transport.abort()
        elif not self.answer_has_begun:
            message = f"nothing came for {idle_seconds:g} s, so the connection is closed"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, Refused("idle", "", message))
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, refused: Refused) -> None:
        """Answers, then closes in steps (RFC 9112, section 9.6): closing at once could lose the answer."""
        if self._phase is Phase.LINGERING:
            return  # one refusal is enough
        self._enter(Phase.LINGERING)
        self.transport.write(http_refusal(status, refused))
        self.transport.write_eof()
        self.connections.discard(self)  # it no longer counts against the limit
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
