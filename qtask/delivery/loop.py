"""A small event loop on epoll: file descriptors, timers, and calls from other threads.

It is not asyncio because libcurl's multi interface needs a callback for each socket event, and one timer. In asyncio
(uvloop included) each of them costs about twice as much as with a bare `epoll`, which is a third of a delivery.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
EVENTS = 256  # descriptors whose callbacks are called in one turn
LATE_SECONDS = 0.05  # a timer that is later than this shows that the process is overloaded, or was stopped
CANCELLED_KEEP = 1_000  # cancelled timers that stay until their instant; above this, at most as many as active ones


OnError = Callable[[Exception], None]


class Timer:
    """One call in the future; `cancel` before its instant prevents it."""

    __slots__ = ("_loop", "callback", "on_error")

    def __init__(self, loop: Loop, callback: Callable[[], None], on_error: OnError | None) -> None:
        self.callback: Callable[[], None] | None = callback
        self.on_error = on_error
        self._loop = loop

    def cancel(self) -> None:
        """Prevents the call."""
        if self.callback is not None:
            self.callback = self.on_error = None
            self._loop.count_cancelled()


class Loop:
    """Calls back when descriptors are ready and when timers are due. Belongs to one thread.

    An error in a callback does not affect the others. It is passed to the `on_error` that was registered with the
    callback; without one, or if that raises too, to `on_defect`.

    Args:
        on_defect: gets errors that have no `on_error`; without it, `run_once` raises them.
    """

    def __init__(self, on_defect: OnError | None = None) -> None:
        self._on_defect = on_defect
        self._epoll = select.epoll()
        self._callbacks: dict[int, tuple[Callable[[int], None], OnError | None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0  # how many of them are cancelled
        self._order = count()  # timers for the same instant run in the order in which they were set
        self._from_threads: deque[tuple[Callable[[], None], OnError | None]] = deque()
        self._closing = threading.RLock()  # reentrant: a signal handler may run while its own thread holds it
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, READ, self._run_from_threads)

    def close(self) -> None:
        """Closes the descriptors; later calls from other threads are dropped."""
        with self._closing:
            self._epoll.close()
            os.close(self._wake)
            self._wake = -1

    def watch(
        self, descriptor: int, events: int, callback: Callable[[int], None], on_error: OnError | None = None
    ) -> None:
        """Calls `callback(events)` whenever a descriptor is ready for one of `events` (READ, WRITE).

        Raises `OSError` when the kernel cannot watch it.
        """
        if descriptor in self._callbacks:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback, on_error

    def unwatch(self, descriptor: int) -> None:
        """Stops watching. Call it before the descriptor is closed, or before anything else is opened."""
        if self._callbacks.pop(descriptor, None) is not None:
            with suppress(OSError):  # a descriptor that its owner has closed has left the epoll already
                self._epoll.unregister(descriptor)

    def call_at(self, instant: float, callback: Callable[[], None], on_error: OnError | None = None) -> Timer:
        """Calls back at an instant of `time.monotonic`."""
        timer = Timer(self, callback, on_error)
        heapq.heappush(self._timers, (instant, next(self._order), timer))
        return timer

    def call_later(self, seconds: float, callback: Callable[[], None], on_error: OnError | None = None) -> Timer:
        """Calls back after `seconds`."""
        return self.call_at(monotonic() + seconds, callback, on_error)

    @property
    def waiting(self) -> int:
        """How many callbacks may still be called: those of descriptors, and of timers that were not cancelled."""
        return len(self._callbacks) - 1 + sum(1 for _, _, timer in self._timers if timer.callback is not None)

    @property
    def timers(self) -> int:
        """How many timers are stored, including cancelled ones that were not removed yet."""
        return len(self._timers)

    def count_cancelled(self) -> None:
        """Removes cancelled timers when there are many: their instants may be minutes away, and they take memory."""
        self._cancelled += 1
        if self._cancelled > max(CANCELLED_KEEP, len(self._timers) // 2):
            self._timers[:] = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def call_from_thread(self, callback: Callable[[], None], on_error: OnError | None = None) -> None:
        """Calls back soon in the loop's own thread; the only method that other threads and signal handlers may use."""
        self._from_threads.append((callback, on_error))
        with self._closing:
            if self._wake >= 0:  # else the number may belong to another file by now
                os.eventfd_write(self._wake, 1)

    def run_once(self, longest: float = 1.0) -> None:
        """Waits for events, at most `longest` seconds, and calls the callbacks that are due."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
            self._cancelled -= 1
        if timers:
            longest = min(longest, max(0.0, timers[0][0] - monotonic()))
        self._call(self._epoll.poll(longest, EVENTS))
        if timers and timers[0][0] <= (now := monotonic()):
            if timers[0][0] < now - LATE_SECONDS:
                # This process stood still, or is overloaded: events come before the timers that wait for them.
                self._call(self._epoll.poll(0, max(EVENTS, len(self._callbacks))))
            while timers and timers[0][0] <= now:
                timer = heapq.heappop(timers)[2]
                ring, timer.callback = timer.callback, None
                if ring is not None:
                    try:
                        ring()
                    except Exception as error:
                        self._report(error, timer.on_error)
                else:
                    self._cancelled -= 1

    def _call(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, events in ready:
            watched = self._callbacks.get(descriptor)
            if watched is not None:
                try:
                    watched[0](events)
                except Exception as error:
                    self._report(error, watched[1])

    def _run_from_threads(self, events: int) -> None:
        os.eventfd_read(self._wake)
        while self._from_threads:
            callback, on_error = self._from_threads.popleft()
            try:
                callback()
            except Exception as error:
                self._report(error, on_error)

    def _report(self, error: Exception, on_error: OnError | None) -> None:
        if on_error is not None:
            try:
                on_error(error)
                return
            except Exception as another:
                error = another
        if self._on_defect is None:
            raise error
        self._on_defect(error)
