"""`socket` tasks: connect, send the JSON of `settings.data`, read a bounded answer."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from functools import partial
from time import monotonic

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import READ, WRITE, Loop, Timer
from qtask.delivery.resolver import Address, LookUp, Resolver, interleaved, place_of, tried
from qtask.model.link import SocketLink, parse_socket
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.model.task import json_text

# A receiver that reads to the end and closes is done at once. One that keeps the connection open has taken the
# data too; it gets this long to say something before the delivery counts.
ANSWER_WAIT_SECONDS = 1.0
ATTEMPT_DELAY_SECONDS = 0.25  # for which an address may be silent before the next is tried as well: RFC 8305, section 8
_BACKLOG_RETRY_SECONDS = 0.02  # until a unix socket is tried again whose listener has no room
_LOOK_SECONDS = 0.1  # between two looks whether the kernel of a receiver that says nothing has everything
_FIN = 1  # the end of the data, which counts among what is not acknowledged
_SIOCOUTQNSD = 0x894B  # asks for the bytes that were not even sent: linux/sockios.h


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


class _Stream(Exchange):
    """One delivery: connecting, sending, reading the answer; each step when the socket is ready for it.

    Connections to several addresses are attempted as RFC 8305 has it: the next one begins when an attempt has failed
    or has been silent for a while, and the first that connects gets the data.
    """

    def __init__(self, loop: Loop, resolver: Resolver, link: SocketLink, data: bytes, claim: Claim, done: Done) -> None:
        super().__init__(loop, claim, done)
        self._resolver = resolver
        self._link = link
        self._unsent = memoryview(data)
        self._look_up: LookUp | None = None
        self._addresses: deque[Address] = deque()
        self._attempts: dict[Address, socket.socket] = {}  # under way
        self._errors: list[tuple[Address, str]] = []
        self._socket: socket.socket | None = None  # the one that connected
        self._answer = bytearray()
        self._next: Timer | None = None  # begins the next attempt

    def begin(self) -> None:
        """Looks up the addresses."""
        self.set_timer(self.deadline, self._on_timeout)
        self._look_up = self._resolver.resolve(self._link, self._on_resolved, self.on_error)

    def release(self) -> None:
        """See `Exchange`."""
        if self._look_up is not None:
            self._look_up.cancel()
            self._look_up = None
        self._drop_attempts()
        if self._socket is not None:
            self._close(self._socket)
            self._socket = None

    # --- connecting --------------------------------------------------------------------------------------------

    def _on_resolved(self, addresses: list[Address] | Failure) -> None:
        if isinstance(addresses, Failure):
            self.end(addresses)
        else:
            self._addresses.extend(interleaved(addresses))
            self._attempt()

    def _attempt(self) -> None:
        """Begins an attempt at the next address, and sees to it that the one after it gets its turn."""
        if self._next is not None:
            self._next.cancel()
        while self._addresses:
            address = self._addresses.popleft()
            try:
                delay = self._connect(address)
            except OSError as error:
                self._errors.append((address, error.strerror or str(error)))
                continue
            if self._addresses:
                self._next = self.loop.call_later(delay, self._attempt, self.on_error)
            return
        if not self._attempts:
            self.end(Failure("connect", f"no connection to {tried(self._link, self._errors)}"))

    def _connect(self, address: Address) -> float:
        """Begins to connect; returns the seconds until the next address is tried. Raises `OSError`."""
        family, place = address
        one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            one.connect(place)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                # A unix socket whose listener has a full backlog. The kernel does not tell when it has room again.
                one.close()
                self._addresses.append(address)
                return _BACKLOG_RETRY_SECONDS
        except OSError:
            one.close()
            raise
        self._attempts[address] = one
        self.loop.watch(one.fileno(), WRITE, partial(self._on_connected, address), self.on_error)
        return ATTEMPT_DELAY_SECONDS

    def _on_connected(self, address: Address, events: int) -> None:
        one = self._attempts.pop(address)
        code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._close(one)
            self._errors.append((address, os.strerror(code)))
            self._attempt()
            return
        self._socket = one
        self._drop_attempts()
        self.loop.watch(one.fileno(), WRITE, self._on_writable, self.on_error)
        self._on_writable(events)

    def _drop_attempts(self) -> None:
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._addresses.clear()
        for one in self._attempts.values():
            self._close(one)
        self._attempts.clear()

    # --- sending and what comes after it -----------------------------------------------------------------------

    def _on_writable(self, events: int) -> None:
        assert self._socket is not None
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._on_broken(error)
            return
        if self._unsent:
            return
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as error:  # it was reset meanwhile
            self._on_reset(error)
            return
        self.set_timer(min(self.deadline, monotonic() + ANSWER_WAIT_SECONDS), self._on_silence)
        self.loop.watch(self._socket.fileno(), READ, self._on_readable, self.on_error)

    def _on_readable(self, events: int) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._on_reset(error)
            return
        self._answer += chunk
        if not chunk:
            self.loop.unwatch(self._socket.fileno())  # which would be readable for ever
            self._on_silence()
        elif len(self._answer) >= READ_LIMIT_BYTES:
            self._on_silence()

    def _on_silence(self) -> None:
        """The receiver says no more: delivered, as soon as its kernel has acknowledged everything."""
        assert self._socket is not None
        if self._unacknowledged() <= _FIN:
            self._on_delivered()
        elif code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._on_reset(OSError(code, os.strerror(code)))
        elif monotonic() < self.deadline:
            self.set_timer(min(self.deadline, monotonic() + _LOOK_SECONDS), self._on_silence)
        else:
            self._on_timeout()

    def _on_reset(self, error: OSError) -> None:
        """The receiver reset the connection after everything was handed to our kernel.

        Over TCP that is a delivery, if its kernel has everything: some receivers close in this way. It may have
        acknowledged all but the last two segments, for acknowledgements are delayed (RFC 1122, section 4.2.3.2), and
        one that is due when the connection is reset is never sent. On a unix socket a reset means that something was
        not read.
        """
        assert self._socket is not None
        if self._link.path:
            self._on_broken(error)
            return
        delayed = 2 * self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) + _FIN
        if self._unacknowledged() <= delayed and not self._queued(_SIOCOUTQNSD):
            self._on_delivered()
        else:
            self._on_broken(error)

    def _unacknowledged(self) -> int:
        """Bytes that the receiver's kernel has not acknowledged; a unix socket has them all at once."""
        return 0 if self._link.path else self._queued(termios.TIOCOUTQ)

    def _queued(self, request: int) -> int:
        assert self._socket is not None
        found: int = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), request, bytes(4)))[0]
        return found

    def _on_delivered(self) -> None:
        self.end(Answer(text=excerpt(bytes(self._answer))))

    def _on_broken(self, error: OSError) -> None:
        self.end(Failure("connect", f"{place_of(self._link)} broke the connection: {error.strerror}"))

    def _on_timeout(self) -> None:
        within = f"within {self.timeout:g} s"
        if self._socket is not None:
            words = f"{place_of(self._link)} did not take the data {within}"
        elif not (self._attempts or self._addresses or self._errors):
            words = f"the addresses of {self._link.host!r} were not found {within}"
        else:
            silent = [(address, "no answer") for address in self._attempts]
            rest = [(address, "its backlog is full" if self._link.path else "not tried") for address in self._addresses]
            words = f"no connection {within} to {tried(self._link, [*self._errors, *silent, *rest])}"
        self.end(Failure("timeout", words))

    def _close(self, one: socket.socket) -> None:
        self.loop.unwatch(one.fileno())
        one.close()
