"""Look-ups of host names, in threads: the system's resolver may take seconds, and must not block the loop."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, zip_longest
from typing import Any

from qtask.delivery.loop import Loop, OnError
from qtask.model.link import SocketLink
from qtask.model.outcome import Failure

# A look-up occupies its thread until the system's resolver gives up, by default after 10 s for each name server.
# Tasks for the same host and port share one look-up, so only this many names that hang can delay other names.
THREADS = 32

Address = tuple[int, Any]
"""Address family, and the address as `connect` takes it."""

Then = Callable[[list[Address] | Failure], None]


def place_of(link: SocketLink) -> str:
    """A link as people write it: `example.org:80`, `[2001:db8::1]:80`, or the path of a unix socket."""
    return link.path or _joined(link.host, link.port)


def _spelled(address: Address) -> str:
    family, place = address
    return str(place) if family == socket.AF_UNIX else _joined(*place[:2])


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def tried(link: SocketLink, errors: Iterable[tuple[Address, str]]) -> str:
    """A link and what happened at each of its addresses, for messages."""
    told = [(_spelled(address), words) for address, words in errors]
    if [address for address, _ in told] == [place_of(link)]:
        return f"{told[0][0]}: {told[0][1]}"
    return f"{place_of(link)}: " + "; ".join(f"{address}: {words}" for address, words in told)


def interleaved(addresses: list[Address]) -> list[Address]:
    """Addresses with their families in turn, each address once, and otherwise in the order of the system's resolver.

    So a family that is not reachable does not delay the other for long (RFC 8305, section 4).
    """
    if len(addresses) == 1:
        return addresses
    by_family: dict[int, list[Address]] = {}
    for address in dict.fromkeys(addresses):
        by_family.setdefault(address[0], []).append(address)
    return [address for address in chain(*zip_longest(*by_family.values())) if address is not None]


class LookUp:
    """One caller's request for the addresses of a host and port; other callers may share the look-up."""

    __slots__ = ("_shared", "on_error", "then")

    def __init__(self, shared: _Shared, then: Then, on_error: OnError) -> None:
        self._shared = shared
        self.then = then
        self.on_error = on_error
        shared.waiting[self] = None

    def call(self, result: list[Address] | Failure) -> None:
        """Passes the result on, unless the request was cancelled."""
        if self._shared.waiting.pop(self, self) is None:
            self.then(result)

    def cancel(self) -> None:
        """Drops the request: `then` is not called, and a look-up that no other caller waits for is not begun."""
        self._shared.waiting.pop(self, None)
        if not self._shared.waiting:
            self._shared.forget()


class _Shared:
    """The look-up of one host and port for all callers that wait for it."""

    __slots__ = ("_forget", "link", "waiting")

    def __init__(self, link: SocketLink, forget: Callable[[_Shared], None]) -> None:
        self.link = link
        self.waiting: dict[LookUp, None] = {}  # in the order in which they came
        self._forget = forget

    def forget(self) -> None:
        """Drops the look-up if it was not begun."""
        self._forget(self)


class Resolver:
    """Looks up links for one kind of socket.

    A look-up has no timeout: the caller cancels it at the deadline of its task, also while the look-up waits for a
    thread. Threads are daemons, so a name server that does not answer does not delay the exit of the process.

    Args:
        loop: calls back on it.
        kind: `SOCK_STREAM` or `SOCK_DGRAM`.
        most_threads: how many look-ups run at once.
    """

    def __init__(self, loop: Loop, kind: socket.SocketKind, most_threads: int = THREADS) -> None:
        self._loop = loop
        self._kind = kind
        self._most_threads = most_threads
        self._under_way: dict[tuple[str, int], _Shared] = {}
        self._changed = threading.Condition()
        self._queue: deque[_Shared] = deque()  # this and the following are protected by the condition
        self._threads = 0
        self._idle = 0
        self._closed = False

    def resolve(self, link: SocketLink, then: Then, on_error: OnError) -> LookUp | None:
        """Calls `then` with the addresses, of which there is at least one, or with a failure.

        If no look-up is needed it is called at once; otherwise the look-up is returned, which can be cancelled. Errors
        of `then` when it is called later are passed to `on_error`.
        """
        if link.path:
            then([(socket.AF_UNIX, link.path)])
            return None
        try:
            numeric = self._look_up(link, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            pass
        else:
            then(numeric)
            return None
        key = link.host, link.port
        shared = self._under_way.get(key)
        if shared is None:
            shared = _Shared(link, self._forget)
            try:
                self._enqueue(shared)
            except RuntimeError as error:  # no thread could be started
                then(Failure("dns", f"the host name {link.host!r} cannot be resolved: {error}"))
                return None
            self._under_way[key] = shared
        return LookUp(shared, then, on_error)

    def close(self) -> None:
        """Ends the threads; waiting look-ups are dropped."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _look_up(self, link: SocketLink, flags: int = 0) -> list[Address]:
        found = socket.getaddrinfo(link.host, link.port, type=self._kind, flags=flags)
        return [(int(family), address) for family, _, _, _, address in found]

    def _enqueue(self, shared: _Shared) -> None:
        """Queues a look-up for a thread. Raises `RuntimeError` if there is no thread and none can be started."""
        with self._changed:
            self._queue.append(shared)
            if self._idle >= len(self._queue):
                self._changed.notify()
            elif self._threads < self._most_threads:
                try:
                    threading.Thread(target=self._serve, name="resolver", daemon=True).start()
                except RuntimeError:
                    if not self._threads:
                        self._queue.pop()
                        raise
                else:
                    self._threads += 1

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._queue or self._closed)
                self._idle -= 1
                if self._closed:
                    return
                shared = self._queue.popleft()
            result: list[Address] | Failure
            try:
                result = self._look_up(shared.link)
            except Exception as error:
                result = Failure("dns", f"the host name {shared.link.host!r} cannot be resolved: {error}")
            self._loop.call_from_thread(partial(self._on_resolved, shared, result))

    def _on_resolved(self, shared: _Shared, result: list[Address] | Failure) -> None:
        del self._under_way[shared.link.host, shared.link.port]
        for one in shared.waiting:  # a call for each, so an error in one does not affect the others
            self._loop.call_from_thread(partial(one.call, result), one.on_error)

    def _forget(self, shared: _Shared) -> None:
        """Drops a look-up that no caller waits for; one that has begun goes on, and later callers may share it."""
        with self._changed:
            if shared not in self._queue:
                return
            self._queue.remove(shared)
        del self._under_way[shared.link.host, shared.link.port]
