"""The tasks that a worker has claimed and whose outcomes are not on their way to Redis."""

from __future__ import annotations

from collections.abc import Iterable


class HeldTasks:
    """Ids of claimed tasks, and how many bytes they take.

    Attributes:
        sizes: bytes of each dict, by the task's id.
        total: of these.
        claimed_again: ids that are held, were reclaimed, and came here a second time.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.total = 0
        self.claimed_again: set[str] = set()

    def take(self, task_id: str, size: int) -> bool:
        """Holds a task from now on; returns False when it is held already, so that nothing is to be begun.

        That happens to a worker that hung: its task was reclaimed, and claimed by it again, which renewed the lease.
        """
        if task_id in self.sizes:
            self.claimed_again.add(task_id)
            return False
        self.sizes[task_id] = size
        self.total += size
        return True

    def let_go(self, ids: Iterable[str]) -> None:
        """Holds these no longer."""
        for task_id in ids:
            self.total -= self.sizes.pop(task_id, 0)
            self.claimed_again.discard(task_id)
