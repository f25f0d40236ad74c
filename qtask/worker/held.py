"""The tasks that a worker has claimed and whose outcomes it has not sent to Redis."""

from __future__ import annotations

from collections.abc import Iterable


class HeldTasks:
    """Ids and sizes of claimed tasks.

    Attributes:
        sizes: bytes of each task, by its id.
        total: the sum of these.
        claimed_again: ids that are held, were reclaimed, and were claimed by this worker a second time.
        queues: name of the queue of each task, by its id; empty if the worker serves only one.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.total = 0
        self.claimed_again: set[str] = set()
        self.queues: dict[str, str] = {}

    def take(self, task_id: str, size: int) -> bool:
        """Adds a task; returns False if it is held already, so its delivery must not begin a second time.

        This happens when a worker hung: its task was reclaimed, and it claimed it again, which renewed the lease.
        """
        if task_id in self.sizes:
            self.claimed_again.add(task_id)
            return False
        self.sizes[task_id] = size
        self.total += size
        return True

    def let_go(self, ids: Iterable[str]) -> None:
        """Removes tasks; ids that are not held are ignored."""
        if self.queues:
            ids = list(ids)
            for task_id in ids:
                self.queues.pop(task_id, None)
        for task_id in ids:
            self.total -= self.sizes.pop(task_id, 0)
            self.claimed_again.discard(task_id)

    def by_queue(self, ids: Iterable[str]) -> dict[str, list[str]]:
        """Tasks by their queue; to be called only if the worker serves several."""
        found: dict[str, list[str]] = {}
        for task_id in ids:
            found.setdefault(self.queues[task_id], []).append(task_id)
        return found
