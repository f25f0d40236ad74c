"""Connects to the first address of a host that answers, on the loop: RFC 8305 ("Happy Eyeballs")."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from qtask.delivery.loop import WRITE, Loop, OnError, Timer
from qtask.delivery.resolver import Address, LookUp, Resolver, interleaved, tried
from qtask.model.link import SocketLink
from qtask.model.outcome import Failure

ATTEMPT_DELAY_SECONDS = 0.25  # how long an address may be silent before the next is tried as well: RFC 8305, section 8
_BACKLOG_RETRY_SECONDS = 0.02  # before a unix socket whose backlog is full is tried again


class Connecting:
    """One attempt to connect to a link, which may have several addresses.

    The next address is tried when one has failed or has been silent for a while. The first that connects is taken.

    Args:
        loop: on which it works.
        resolver: for stream sockets.
        link: where to.
        on_connected: gets the socket, which does not block. The caller closes it.
        on_failed: gets the failure when no address is left.
        on_error: gets errors that these two callbacks, or a defect here, raise.
    """

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        link: SocketLink,
        on_connected: Callable[[socket.socket], None],
        on_failed: Callable[[Failure], None],
        on_error: OnError,
    ) -> None:
        self._loop = loop
        self._resolver = resolver
        self._link = link
        self._then = on_connected
        self._fail = on_failed
        self._on_error = on_error
        self._look_up: LookUp | None = None
        self._addresses: deque[Address] = deque()
        self._attempts: dict[Address, socket.socket] = {}  # under way
        self._errors: list[tuple[Address, str]] = []
        self._next: Timer | None = None  # begins the next attempt

    def start(self) -> None:
        """Looks up the addresses, and connects."""
        self._look_up = self._resolver.resolve(self._link, self._on_resolved, self._on_error)

    def cancel(self) -> None:
        """Stops connecting; neither callback is called after that. Does nothing after the end."""
        if self._look_up is not None:
            self._look_up.cancel()
            self._look_up = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        self._addresses.clear()
        for one in self._attempts.values():
            self._close(one)
        self._attempts.clear()

    def timed_out(self, seconds: float) -> Failure:
        """The failure when the timeout of the task ends before a connection is made: what happened at each address."""
        within = f"within {seconds:g} s"
        if not (self._attempts or self._addresses or self._errors):
            return Failure("timeout", f"the addresses of {self._link.host!r} were not found {within}")
        silent = [(address, "no answer") for address in self._attempts]
        rest = [(address, "its backlog is full" if self._link.path else "not tried") for address in self._addresses]
        words = f"no connection {within} to {tried(self._link, [*self._errors, *silent, *rest])}"
        return Failure("timeout", words)

    def _on_resolved(self, addresses: list[Address] | Failure) -> None:
        if isinstance(addresses, Failure):
            self._fail(addresses)
        else:
            self._addresses.extend(interleaved(addresses))
            self._attempt()

    def _attempt(self) -> None:
        """Begins an attempt at the next address, and sets the timer for the one after it."""
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
                self._next = self._loop.call_later(delay, self._attempt, self._on_error)
            return
        if not self._attempts:
            self._fail(Failure("connect", f"no connection to {tried(self._link, self._errors)}"))

    def _connect(self, address: Address) -> float:
        """Begins to connect; returns the seconds until the next address is tried. Raises `OSError`."""
        family, place = address
        one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            one.connect(place)
        except BlockingIOError as error:
            if error.errno != errno.EINPROGRESS:
                # A unix socket whose backlog is full. The kernel does not report when it has room again.
                one.close()
                self._addresses.append(address)
                return _BACKLOG_RETRY_SECONDS
        except OSError:
            one.close()
            raise
        self._attempts[address] = one
        self._loop.watch(one.fileno(), WRITE, partial(self._on_writable, address), self._on_error)
        return ATTEMPT_DELAY_SECONDS

    def _on_writable(self, address: Address, events: int) -> None:
        one = self._attempts.pop(address)
        code = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._close(one)
            self._errors.append((address, os.strerror(code)))
            self._attempt()
            return
        self._loop.unwatch(one.fileno())
        self.cancel()
        self._then(one)

    def _close(self, one: socket.socket) -> None:
        self._loop.unwatch(one.fileno())
        one.close()
