"""One delivery over a stream socket: it connects, and releases the socket however the delivery ends."""

from __future__ import annotations

import socket
from abc import abstractmethod

from qtask.delivery.claim import Claim, Done
from qtask.delivery.connecting import Connecting
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import Loop
from qtask.delivery.resolver import Resolver, place_of
from qtask.model.link import SocketLink
from qtask.model.outcome import Failure


class StreamExchange(Exchange):
    """Base of a delivery over TCP or a unix socket.

    Args:
        loop, claim, done: see `Exchange`.
        resolver: for stream sockets.
        link: where to connect to.
    """

    def __init__(self, loop: Loop, resolver: Resolver, link: SocketLink, claim: Claim, done: Done) -> None:
        super().__init__(loop, claim, done)
        self.link = link
        self.socket: socket.socket | None = None  # while it is connected
        self._connecting = Connecting(loop, resolver, link, self._on_connected, self.end, self.on_error)

    @property
    def place(self) -> str:
        """The link as messages name it."""
        return place_of(self.link)

    @abstractmethod
    def on_connected(self, connected: socket.socket) -> None:
        """Takes the first step on the socket, which does not block; the base closes it."""

    @abstractmethod
    def missing(self) -> str:
        """What a connected receiver has not done yet, for the message of a timeout: "did not …"."""

    def begin(self) -> None:
        """Connects."""
        self.set_timer(self.deadline, self.on_timeout)
        self._connecting.start()

    def release(self) -> None:
        """Stops connecting, and closes the socket."""
        self._connecting.cancel()
        if self.socket is not None:
            self.loop.unwatch(self.socket.fileno())
            self.socket.close()
            self.socket = None

    def on_timeout(self) -> None:
        """Ends the delivery as failed: its deadline has passed."""
        if self.socket is None:
            self.end(self._connecting.timed_out(self.timeout))
        else:
            self.end(Failure("timeout", f"{self.place} did not {self.missing()} within {self.timeout:g} s"))

    def _on_connected(self, connected: socket.socket) -> None:
        self.socket = connected
        self.on_connected(connected)
