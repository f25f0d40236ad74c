"""Addresses of host names, looked up in threads: the system's resolver may take seconds, and the loop must not."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qtask.delivery.loop import Loop
from qtask.link import SocketLink
from qtask.outcome import Failure

_THREADS = 8
MOST_WAITING = 10_000

Address = tuple[int, Any]  # address family and what connect() wants


class Resolver:
    """Looks up links for one kind of socket.

    Args:
        loop: calls back on it.
        kind: `SOCK_STREAM` or `SOCK_DGRAM`.
        most_waiting: look-ups that may wait; a delivery may have ended long before the look-up that it asked for.
    """

    def __init__(self, loop: Loop, kind: socket.SocketKind, most_waiting: int = MOST_WAITING) -> None:
        self._loop = loop
        self._kind = kind
        self._threads = ThreadPoolExecutor(_THREADS, "resolver")
        self._most_waiting = most_waiting
        self._waiting = 0

    def resolve(self, link: SocketLink, then: Callable[[list[Address] | Failure], None]) -> None:
        """Calls `then` with the addresses, of which there is at least one: at once where none is to be looked up.

        When too many wait for a name server that does not answer, it is called with a failure.
        """
        if link.path:
            then([(socket.AF_UNIX, link.path)])
            return
        try:
            numeric = self._look_up(link, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            if self._waiting >= self._most_waiting:
                message = f"{link.host!r} was not looked up: {self._waiting} host names wait for a name server already"
                then(Failure("dns", message))
                return
            self._waiting += 1
            self._threads.submit(self._resolve, link, then)
        else:
            then(numeric)

    def close(self) -> None:
        """Ends the threads; look-ups that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, link: SocketLink, flags: int = 0) -> list[Address]:
        found = socket.getaddrinfo(link.host, link.port, type=self._kind, flags=flags)
        return [(int(family), address) for family, _, _, _, address in found]

    def _resolve(self, link: SocketLink, then: Callable[[list[Address] | Failure], None]) -> None:
        result: list[Address] | Failure
        try:
            result = self._look_up(link)
        except (OSError, UnicodeError) as error:
            result = Failure("dns", f"the host name {link.host!r} cannot be resolved: {error}")
        self._loop.call_from_thread(lambda: self._on_resolved(result, then))

    def _on_resolved(self, result: list[Address] | Failure, then: Callable[[list[Address] | Failure], None]) -> None:
        self._waiting -= 1
        then(result)
