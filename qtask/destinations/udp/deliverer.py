"""Delivers `udp` tasks: one datagram each."""

from __future__ import annotations

import socket
from collections import deque
from functools import partial
from time import monotonic

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import READ, Loop
from qtask.delivery.resolver import Address, LookUp, Resolver, interleaved, tried
from qtask.model.link import SocketLink, parse_socket
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.model.task import json_text

# UDP does not report whether a datagram arrived. It may report that nobody listens, and a receiver may answer. A
# delivery waits this long for either, and then counts.
ANSWER_WAIT_SECONDS = 0.1


class UdpDeliverer:
    """Delivers datagrams."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._resolver = Resolver(loop, socket.SOCK_DGRAM)

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        link = parse_socket(claim.task.address.link)
        _Datagram(self._loop, self._resolver, link, json_text(claim.task.settings.data), claim, done).start()

    def close(self) -> None:
        """Ends the resolver's threads."""
        self._resolver.close()


class _Datagram(Exchange):
    """One datagram, and the wait for an answer or an error. If an address refuses it, the next is tried."""

    def __init__(self, loop: Loop, resolver: Resolver, link: SocketLink, data: bytes, claim: Claim, done: Done) -> None:
        super().__init__(loop, claim, done)
        self._resolver = resolver
        self._link = link
        self._data = data
        self._look_up: LookUp | None = None
        self._addresses: deque[Address] = deque()
        self._errors: list[tuple[Address, str]] = []
        self._socket: socket.socket | None = None

    def begin(self) -> None:
        """Looks up the addresses."""
        self.set_timer(self.deadline, self._on_look_up_timeout)
        self._look_up = self._resolver.resolve(self._link, self._on_resolved, self.on_error)

    def release(self) -> None:
        """See `Exchange`."""
        if self._look_up is not None:
            self._look_up.cancel()
            self._look_up = None
        self._close()

    def _on_look_up_timeout(self) -> None:
        words = f"the addresses of {self._link.host!r} were not found within {self.timeout:g} s"
        self.end(Failure("timeout", words))

    def _on_resolved(self, addresses: list[Address] | Failure) -> None:
        if isinstance(addresses, Failure):
            self.end(addresses)
        else:
            self._addresses.extend(interleaved(addresses))
            self._send()

    def _send(self) -> None:
        """Sends to the next address that accepts it, on a connected socket: so the kernel reports if nobody listens."""
        while self._addresses:
            family, place = address = self._addresses.popleft()
            try:
                self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
                self._socket.connect(place)
                self._socket.send(self._data)
            except OSError as error:
                self._note(address, error)
                continue
            self.set_timer(min(self.deadline, monotonic() + ANSWER_WAIT_SECONDS), self._on_silence)
            self.loop.watch(self._socket.fileno(), READ, partial(self._on_readable, address), self.on_error)
            return
        self.end(Failure("connect", f"no datagram to {tried(self._link, self._errors)}"))

    def _on_readable(self, address: Address, events: int) -> None:
        assert self._socket is not None
        try:
            answer = self._socket.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._note(address, error)
            self._send()
        else:
            self.end(Answer(text=excerpt(answer)))

    def _on_silence(self) -> None:
        self.end(Answer())

    def _note(self, address: Address, error: OSError) -> None:
        self._errors.append((address, error.strerror or str(error)))
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
