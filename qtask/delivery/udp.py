"""`udp` tasks: the JSON of `settings.data` as one datagram."""

from __future__ import annotations

import socket

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import READ, Loop
from qtask.delivery.resolver import Address, Resolver
from qtask.link import SocketLink, parse_socket
from qtask.outcome import READ_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.task import json_text

# UDP does not tell whether a datagram arrived. It may tell that nobody listens, and a receiver may answer; this long
# the delivery waits for either, and then counts.
ANSWER_WAIT_SECONDS = 0.1


class UdpDeliverer:
    """Delivers datagrams."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._resolver = Resolver(loop, socket.SOCK_DGRAM)

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        link = parse_socket(claim.task.address.link)
        data = json_text(claim.task.settings.data)
        wait = min(claim.task.timeout, ANSWER_WAIT_SECONDS)

        def send(addresses: list[Address] | Failure) -> None:
            if isinstance(addresses, Failure):
                done(addresses)
            else:
                _Datagram(self._loop, link, wait, done).send(addresses[0], data)

        self._resolver.resolve(link, send)

    def close(self) -> None:
        """Ends the resolver's threads."""
        self._resolver.close()


class _Datagram:
    """One datagram, and the wait for what may come back."""

    def __init__(self, loop: Loop, link: SocketLink, wait: float, done: Done) -> None:
        self._loop = loop
        self._name = f"{link.host}:{link.port}"
        self._wait = wait
        self._done = done

    def send(self, address: Address, data: bytes) -> None:
        """Sends it, connected, so that the kernel says when nobody listens."""
        family, place = address
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._timer = self._loop.call_later(self._wait, lambda: self._end(Answer()))
        try:
            self._socket.connect(place)
            self._socket.send(data)
        except OSError as error:
            self._end(self._failure(error))
            return
        self._loop.watch(self._socket.fileno(), READ, self._on_readable)

    def _on_readable(self, events: int) -> None:
        try:
            answer = self._socket.recv(READ_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(self._failure(error))
        else:
            self._end(Answer(text=excerpt(answer)))

    def _failure(self, error: OSError) -> Failure:
        return Failure("connect", f"no datagram to {self._name}: {error.strerror or error}")

    def _end(self, result: Answer | Failure) -> None:
        self._timer.cancel()
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        self._done(result)
