"""`socket` tasks: connect, send the JSON of `settings.data`, read a bounded answer."""

from __future__ import annotations

import os
import socket
from time import monotonic

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import READ, WRITE, Loop, Timer
from qtask.delivery.resolver import Address, Resolver
from qtask.link import SocketLink, parse_socket
from qtask.outcome import READ_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.task import json_text

# A receiver that reads to the end and closes is done at once. One that keeps the connection open has taken the
# data too; it gets this long to say something before the delivery counts.
ANSWER_WAIT_SECONDS = 1.0


class SocketDeliverer:
    """Delivers to TCP and unix sockets."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._resolver = Resolver(loop, socket.SOCK_STREAM)

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        link = parse_socket(claim.task.address.link)
        exchange = _Exchange(self._loop, link, json_text(claim.task.settings.data), claim.task.timeout, done)
        self._resolver.resolve(link, exchange.begin)

    def close(self) -> None:
        """Ends the resolver's threads."""
        self._resolver.close()


class _Exchange:
    """One delivery: connecting, sending, reading the answer; each step when the socket is ready for it."""

    def __init__(self, loop: Loop, link: SocketLink, data: bytes, timeout: float, done: Done) -> None:
        self._loop = loop
        self._name = link.path or f"{link.host}:{link.port}"
        self._unsent = memoryview(data)
        self._timeout = timeout
        self._done: Done | None = done
        self._socket: socket.socket | None = None
        self._addresses: list[Address] = []
        self._answer = bytearray()
        self._deadline = monotonic() + timeout
        self._timer: Timer = loop.call_at(self._deadline, self._on_timeout)

    def begin(self, addresses: list[Address] | Failure) -> None:
        """Tries the addresses one after the other."""
        if isinstance(addresses, Failure):
            self.end(addresses)
        elif self._done is not None:  # its time may have passed while the name was looked up
            self._connect(addresses)

    def _connect(self, addresses: list[Address]) -> None:
        self._addresses = addresses
        family, address = self._addresses.pop(0)
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.connect(address)
        except BlockingIOError:
            pass
        except OSError as error:
            self._on_connect_error(error)
            return
        assert self._socket is not None
        self._loop.watch(self._socket.fileno(), WRITE, self._on_connected)

    def end(self, result: Answer | Failure) -> None:
        """Closes the socket and reports, once."""
        self._timer.cancel()
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._done is not None:
            done, self._done = self._done, None
            done(result)

    def _on_connect_error(self, error: OSError) -> None:
        if self._socket is not None:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._socket = None
        if self._addresses:
            self._connect(self._addresses)
        else:
            self.end(Failure("connect", f"no connection to {self._name}: {error.strerror or error}"))

    def _on_connected(self, events: int) -> None:
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._on_connect_error(OSError(code, os.strerror(code)))
            return
        self._loop.watch(self._socket.fileno(), WRITE, self._on_writable)
        self._on_writable(events)

    def _on_writable(self, events: int) -> None:
        assert self._socket is not None
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
            if self._unsent:
                return
            self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(Failure("connect", f"{self._name} broke the connection: {error.strerror}"))
            return
        self._timer.cancel()
        self._timer = self._loop.call_at(min(self._deadline, monotonic() + ANSWER_WAIT_SECONDS), self._on_silence)
        self._loop.watch(self._socket.fileno(), READ, self._on_readable)

    def _on_readable(self, events: int) -> None:
        assert self._socket is not None
        try:
            chunk = self._socket.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(Failure("connect", f"{self._name} broke the connection: {error.strerror}"))
            return
        self._answer += chunk
        if not chunk or len(self._answer) >= READ_LIMIT_BYTES:
            self._on_silence()

    def _on_silence(self) -> None:
        self.end(Answer(text=excerpt(bytes(self._answer))))

    def _on_timeout(self) -> None:
        self.end(Failure("timeout", f"{self._name} did not take the data within {self._timeout:g} s"))
