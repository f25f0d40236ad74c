"""Delivers `socket` tasks: connects, sends the JSON, reads an answer up to a limit."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
from time import monotonic

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import READ, WRITE, Loop
from qtask.delivery.resolver import Resolver
from qtask.delivery.stream import StreamExchange
from qtask.model.link import SocketLink, parse_socket
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.model.task import json_text

# A delivery ends at once if the receiver reads everything and closes. A receiver that keeps the connection open has
# accepted the data too; it has this long to answer before the delivery counts.
ANSWER_WAIT_SECONDS = 1.0
_LOOK_SECONDS = 0.1  # between two checks whether the kernel of a silent receiver has acknowledged everything
_FIN = 1  # the end of the data, which counts as a byte that is not acknowledged
_SIOCOUTQNSD = 0x894B  # asks for the number of bytes that were not sent yet: linux/sockios.h


class SocketDeliverer:
    """Delivers to TCP and unix sockets."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._resolver = Resolver(loop, socket.SOCK_STREAM)

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        link = parse_socket(claim.task.address.link)
        _Stream(self._loop, self._resolver, link, json_text(claim.task.settings.data), claim, done).start()

    def close(self) -> None:
        """Ends the resolver's threads."""
        self._resolver.close()


class _Stream(StreamExchange):
    """One delivery: it sends, and reads the answer; each step when the socket is ready for it."""

    def __init__(self, loop: Loop, resolver: Resolver, link: SocketLink, data: bytes, claim: Claim, done: Done) -> None:
        super().__init__(loop, resolver, link, claim, done)
        self._unsent = memoryview(data)
        self._answer = bytearray()

    def missing(self) -> str:
        """See `StreamExchange`."""
        return "take the data"

    def on_connected(self, connected: socket.socket) -> None:
        """Sends."""
        self.loop.watch(connected.fileno(), WRITE, self._on_writable, self.on_error)
        self._on_writable(WRITE)

    # --- sending, and after it ---------------------------------------------------------------------------------

    def _on_writable(self, events: int) -> None:
        assert self.socket is not None
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._on_broken(error)
            return
        if self._unsent:
            return
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # the receiver has reset the connection
            self._on_reset(error)
            return
        self.set_timer(min(self.deadline, monotonic() + ANSWER_WAIT_SECONDS), self._on_silence)
        self.loop.watch(self.socket.fileno(), READ, self._on_readable, self.on_error)

    def _on_readable(self, events: int) -> None:
        assert self.socket is not None
        try:
            chunk = self.socket.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_reset(error)
            return
        self._answer += chunk
        if not chunk:
            self.loop.unwatch(self.socket.fileno())  # it would stay readable
            self._on_silence()
        elif len(self._answer) >= READ_LIMIT_BYTES:
            self._on_silence()

    def _on_silence(self) -> None:
        """The receiver sends nothing more: ends as delivered as soon as its kernel has acknowledged everything."""
        assert self.socket is not None
        if self._unacknowledged() <= _FIN:
            self._on_delivered()
        elif code := self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_reset(OSError(code, os.strerror(code)))
        elif monotonic() < self.deadline:
            self.set_timer(min(self.deadline, monotonic() + _LOOK_SECONDS), self._on_silence)
        else:
            self.on_timeout()

    def _on_reset(self, error: OSError) -> None:
        """The receiver reset the connection after everything was passed to our kernel.

        Over TCP this is a delivery if the kernel of the receiver has everything: some receivers close in this way. It
        may not have acknowledged the last two segments, because acknowledgements are delayed (RFC 1122, section
        4.2.3.2), and one that is due at the reset is never sent. On a unix socket a reset means that some data was not
        read.
        """
        assert self.socket is not None
        if self.link.path:
            self._on_broken(error)
            return
        delayed = 2 * self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) + _FIN
        if self._unacknowledged() <= delayed and not self._queued(_SIOCOUTQNSD):
            self._on_delivered()
        else:
            self._on_broken(error)

    def _unacknowledged(self) -> int:
        """How many bytes the kernel of the receiver has not acknowledged; on a unix socket none."""
        return 0 if self.link.path else self._queued(termios.TIOCOUTQ)

    def _queued(self, request: int) -> int:
        assert self.socket is not None
        found: int = struct.unpack("i", fcntl.ioctl(self.socket.fileno(), request, bytes(4)))[0]
        return found

    def _on_delivered(self) -> None:
        self.end(Answer(text=excerpt(bytes(self._answer))))

    def _on_broken(self, error: OSError) -> None:
        self.end(Failure("connect", f"{self.place} broke the connection: {error.strerror}"))
