"""Tasks that gather to be submitted together. Pure, but for the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Generic, TypeVar

from qtask.client.protocol import Answer, TaskLike
from qtask.model.errors import Refused

BATCH = 500  # tasks
BATCH_BYTES = 1_048_576
GATHER_SECONDS = 0.005  # a task waits no longer for others that come slowly

Ready = TypeVar("Ready")


class Gathered(Generic[Ready]):
    """Tasks that go together in one round trip, and their answers in order.

    Args:
        prepare: makes of a task what is submitted; raises `Refused` for one that cannot be.
        size: of what is submitted, in bytes.
    """

    def __init__(self, prepare: Callable[[TaskLike], Ready], size: Callable[[Ready], int]) -> None:
        self._prepare = prepare
        self._size_of = size
        self._begun = monotonic()
        self._size = 0
        self._refused: list[Refused | None] = []
        self.ready: list[Ready] = []

    @property
    def full(self) -> bool:
        """Whether it is time to submit it."""
        return len(self._refused) >= BATCH or self._size >= BATCH_BYTES or monotonic() - self._begun > GATHER_SECONDS

    def add(self, task: TaskLike) -> None:
        """Takes a task; one that is refused is kept for `answers`."""
        try:
            ready = self._prepare(task)
        except Refused as refused:
            self._refused.append(refused)
        else:
            self._refused.append(None)
            self.ready.append(ready)
            self._size += self._size_of(ready)

    def answers(self, submitted: Iterable[Answer]) -> list[Answer]:
        """The answer to each task, in the order in which they were added; `submitted` has those to `ready`."""
        answers = iter(submitted)
        return [next(answers) if refused is None else refused for refused in self._refused]
