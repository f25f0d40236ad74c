"""uvicorn: serving on sockets that are already bound, and the state of one HTTP/1.1 connection."""

from __future__ import annotations

import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


async def serve(server: uvicorn.Server, listeners: list[socket.socket]) -> None:
    """Serves until `server.should_exit` is set. The public `serve` would install signal handlers as well."""
    await server._serve(listeners)


class HttpConnection(H11Protocol):
    """uvicorn's side of one connection. Subclasses may rely on the attributes and methods that are listed here.

    Attributes:
        conn: the state machine of h11, which may be replaced before the connection is made.
        connections: all connections of the server; one that is discarded no longer counts against its limits.
        flow: has `write_paused`, whether the client does not read what was written.
        loop, transport: of asyncio.
    """

    @property
    def owes_an_answer(self) -> bool:
        """Whether a complete request was received whose response has not been sent completely."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    @property
    def answer_has_begun(self) -> bool:
        """Whether a part of the response to the last request has been sent."""
        return self.cycle is not None and self.cycle.response_started

    def _unsupported_upgrade_warning(self) -> None:
        """An unknown Upgrade is ignored (RFC 9110, section 7.8); uvicorn would log how to install WebSockets."""
