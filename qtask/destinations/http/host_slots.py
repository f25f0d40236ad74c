"""The limit `host_connections`: which deliveries may begin, and which wait for a connection to their host. No I/O.

libcurl has such a limit too, but there the timeout of a request runs while it waits.
"""

from __future__ import annotations

from collections import deque

Entry = tuple[str, int, bytes, bytes]
"""A claimed task whose delivery has not begun; the first element is its id."""

STREAMS = 100  # how many libcurl opens on one HTTP/2 connection; see CURLMOPT_MAX_CONCURRENT_STREAMS


class HostSlots:
    """Gives each host as many deliveries at once as it may have connections; other tasks wait in order.

    Attributes:
        ready: tasks that have waited and may begin now, each with the instant at which its wait began.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._multiplexing: set[str] = set()
        self._held: dict[str, str] = {}  # by the id of a task, the place for which it has a slot
        self._used: dict[str, int] = {}  # slots of each place
        self._waiting: dict[str, deque[tuple[float, Entry]]] = {}
        self._waiting_count = 0
        self.ready: deque[tuple[float, Entry]] = deque()

    def __len__(self) -> int:
        """How many tasks wait, including those that are ready."""
        return self._waiting_count + len(self.ready)

    def multiplexes(self, place: str) -> None:
        """Notes that a host uses HTTP/2, where many deliveries share a connection."""
        if place in self._multiplexing:
            return
        self._multiplexing.add(place)
        while place in self._waiting and self._used[place] < self._limit * STREAMS:
            self._used[place] += 1
            self._make_ready(place)

    def take(self, place: str, entry: Entry, now: float) -> bool:
        """Returns whether the delivery of a task may begin; if not, the task waits, and is in `ready` later.

        Args:
            place: see `link.http_place`.
            entry: the task.
            now: an instant of `monotonic`.
        """
        if entry[0] in self._held:
            return True
        limit = self._limit * STREAMS if place in self._multiplexing else self._limit
        used = self._used.get(place, 0)
        if used >= limit:
            self._waiting.setdefault(place, deque()).append((now, entry))
            self._waiting_count += 1
            return False
        self._used[place] = used + 1
        self._held[entry[0]] = place
        return True

    def release(self, task_id: str) -> None:
        """Frees the slot of a task, if it has one; the task that has waited longest for the same host becomes ready."""
        place = self._held.pop(task_id, None)
        if place is None:
            return
        if place in self._waiting:
            self._make_ready(place)
        elif self._used[place] > 1:
            self._used[place] -= 1
        else:
            del self._used[place]

    def _make_ready(self, place: str) -> None:
        waiting = self._waiting[place]
        one = waiting.popleft()
        self._waiting_count -= 1
        if not waiting:
            del self._waiting[place]
        self._held[one[1][0]] = place
        self.ready.append(one)

    def withdraw(self, before: float = float("inf")) -> list[str]:
        """Removes the tasks whose wait began before an instant of `monotonic`; returns their ids."""
        withdrawn: list[str] = []
        for place in list(self._waiting):
            waiting = self._waiting[place]
            while waiting and waiting[0][0] < before:
                withdrawn.append(waiting.popleft()[1][0])
            if not waiting:
                del self._waiting[place]
        self._waiting_count -= len(withdrawn)
        late = [entry[0] for since, entry in self.ready if since < before]
        self.ready = deque(one for one in self.ready if one[0] >= before)
        for task_id in late:
            self.release(task_id)
        return withdrawn + late
