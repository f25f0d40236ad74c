"""How many deliveries of one flow a worker has in flight, so that no destination takes all of its places. No I/O.

The rule is that of dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on Networking, 1998): a flow has at
most FAST_SHARE times as many deliveries in flight as there are free places, and after HUNG_SECONDS in which none has
ended as many as are free. So each of two flows gets up to seven eighths of all places, n flows that hang get 1/(n + 1)
each, and as much stays free for all others. A flow that is alone may have all places while its deliveries end.

A flow of which no delivery has ended lately begins with a few, so that a host that does not answer costs little.

Nothing is counted while deliveries end and an eighth of all places is free, because a fast flow cannot be above its
threshold then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from qtask.destinations.http.host_slots import Entry

UNANSWERED_LIMIT = 300  # deliveries begun, more than a claim, since one has ended; after that deliveries are counted
FAST_SHARE = 7
FIRST_SHARE = 16  # a flow of which no delivery has ended lately gets this part of all places
LATELY_SECONDS = 60.0
HUNG_SECONDS = 2.0
ENDS_KEEP = 10_000  # flows whose last end is known
SLOW_SECONDS = 0.05  # a flow at its threshold of which no delivery has ended for so long is slow
PATIENCE_SECONDS = 0.25  # for which its tasks wait here otherwise
PARKED_SECONDS = 1.0  # for which further tasks of a flow are parked at once


class Parking(NamedTuple):
    """Tasks of one flow that are to wait in Redis.

    Attributes:
        flow: its name.
        in_flight: ids of its tasks that are in flight here.
        waiting: ids of those that are to wait.
    """

    flow: str
    in_flight: list[str]
    waiting: list[str]


class Shares:
    """The shares of all flows in the places of one worker.

    Args:
        places: deliveries that the worker has in flight at most.

    Attributes:
        counts: whether deliveries are counted.
        threshold_from: so many are in flight before a flow can be above its threshold.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self.threshold_from = places - max(1, places // (FAST_SHARE + 1))
        self._flows: dict[str, str] = {}  # of each task in flight, while they are counted
        self._used: dict[str, int] = {}
        self._first = max(1, places // FIRST_SHARE)
        self._ended: dict[str, float] = {}  # when a delivery of a flow ended last, as far as it was counted
        self._quiet_since: dict[str, float] = {}  # when a delivery of a flow ended last, or its first one began
        self._waiting: dict[str, deque[tuple[float, Entry]]] = {}
        self._parked: dict[str, float] = {}  # until when further tasks of a flow are parked at once
        self._waiting_count = 0
        self.counts = False

    def __len__(self) -> int:
        """How many tasks wait here."""
        return self._waiting_count

    def start(self, in_flight: Iterable[tuple[str, str, float]]) -> None:
        """Begins to count, with the id, the flow and the begin of each delivery in flight, the oldest first."""
        self.counts = True
        for task_id, flow, began in in_flight:
            self._add(task_id, flow, began)

    def _add(self, task_id: str, flow: str, began: float) -> None:
        self._flows[task_id] = flow
        used = self._used[flow] = self._used.get(flow, 0) + 1
        if used == 1:
            self._quiet_since[flow] = began

    def take(self, flow: str, entry: Entry, now: float) -> bool:
        """Returns whether a delivery may begin. If not, the task waits here; see `next` and `parkings`.

        Args:
            flow: name of its flow.
            entry: the task.
            now: an instant of `monotonic`.
        """
        if entry[0] in self._flows:
            return True  # `next` has given it its place
        if flow in self._waiting or self._used.get(flow, 0) >= self._threshold(flow, now):
            self._waiting.setdefault(flow, deque()).append((now, entry))
            self._waiting_count += 1
            return False
        self._add(entry[0], flow, now)
        return True

    def _threshold(self, flow: str, now: float) -> int:
        free = self._places - len(self._flows)
        if now - self._ended.get(flow, -LATELY_SECONDS) >= LATELY_SECONDS:
            return min(free, self._first)
        if now - self._quiet_since.get(flow, now) > HUNG_SECONDS:
            return free
        is_alone = len(self._used) == 1 and flow in self._used and (not self._waiting or [*self._waiting] == [flow])
        return self._places if is_alone else FAST_SHARE * free

    def hold(self, flow: str, entry: Entry, now: float) -> None:
        """Has a task wait that has no slot in a flow with limits, until `parkings` takes it."""
        self._waiting.setdefault(flow, deque()).append((now, entry))
        self._waiting_count += 1
        self._parked[flow] = now + PARKED_SECONDS

    def end(self, task_id: str, now: float) -> None:
        """A delivery has ended. Stops counting when there is nothing to share any more."""
        flow = self._flows.pop(task_id, None)
        if flow is None:
            return
        if self._used[flow] > 1:
            self._used[flow] -= 1
        else:
            del self._used[flow]
        self._ended[flow] = self._quiet_since[flow] = now
        if not self._waiting and len(self._flows) < self._places // 4:
            self.counts = False
            self._flows.clear()
            self._used.clear()
            self._quiet_since.clear()
            if len(self._ended) > ENDS_KEEP:
                self._ended.clear()

    def next(self, now: float) -> Entry | None:
        """A task that has waited here and may begin now, from one flow after the other; None when there is none."""
        for flow in list(self._waiting):
            if self._used.get(flow, 0) < self._threshold(flow, now):
                waiting = self._waiting.pop(flow)
                _, entry = waiting.popleft()
                self._waiting_count -= 1
                if waiting:
                    self._waiting[flow] = waiting  # behind the others
                self._add(entry[0], flow, now)
                return entry
        return None

    def parkings(self, now: float) -> list[Parking]:
        """Takes out the tasks of slow flows, and of those whose tasks have waited for too long."""
        found = []
        for flow, waiting in list(self._waiting.items()):
            slow = now - self._quiet_since.get(flow, now) > SLOW_SECONDS or self._parked.get(flow, 0.0) > now
            if slow or now - waiting[0][0] > PATIENCE_SECONDS:
                del self._waiting[flow]
                self._waiting_count -= len(waiting)
                self._parked[flow] = now + PARKED_SECONDS
                in_flight = [task_id for task_id, one in self._flows.items() if one == flow]
                found.append(Parking(flow, in_flight, [entry[0] for _, entry in waiting]))
        return found

    def withdraw(self) -> list[str]:
        """Takes out all tasks that wait here; returns their ids."""
        ids = [entry[0] for waiting in self._waiting.values() for _, entry in waiting]
        self._waiting.clear()
        self._waiting_count = 0
        return ids
