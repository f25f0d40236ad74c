"""Batches of tasks that a client submits in one round trip. Pure, except for the clock."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import Generic, TypeVar

from qtask.client.protocol import Answer, TaskLike
from qtask.model.errors import Refused

BATCH = 500  # tasks
BATCH_BYTES = 1_048_576
GATHER_SECONDS = 0.005  # the longest time that a task waits for others

Ready = TypeVar("Ready")


class Gathered(Generic[Ready]):
    """One batch: tasks that are submitted together, and their answers in order.

    Args:
        prepare: converts a task to the form in which it is submitted; raises `Refused` for an invalid one.
        size: the size of a prepared task in bytes.

    Attributes:
        ready: the prepared tasks, without those that were refused.
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
        """Whether the batch should be submitted now."""
        return len(self._refused) >= BATCH or self._size >= BATCH_BYTES or monotonic() - self._begun > GATHER_SECONDS

    def add(self, task: TaskLike) -> None:
        """Adds a task. When it is refused, `answers` will hold the refusal."""
        try:
            ready = self._prepare(task)
        except Refused as refused:
            self._refused.append(refused)
        else:
            self._refused.append(None)
            self.ready.append(ready)
            self._size += self._size_of(ready)

    def answers(self, submitted: Iterable[Answer]) -> list[Answer]:
        """The answers to all tasks, in the order in which they were added; `submitted` are the answers to `ready`."""
        answers = iter(submitted)
        return [next(answers) if refused is None else refused for refused in self._refused]


def submit_gathered(
    tasks: Iterable[TaskLike],
    new_batch: Callable[[], Gathered[Ready]],
    submit: Callable[[Gathered[Ready]], list[Answer]],
) -> Iterator[Answer]:
    """Submits tasks batch by batch and yields their answers in order."""
    batch = new_batch()
    for task in tasks:
        batch.add(task)
        if batch.full:
            yield from submit(batch)
            batch = new_batch()
    yield from submit(batch)


async def submit_gathered_async(
    tasks: AsyncIterable[TaskLike],
    new_batch: Callable[[], Gathered[Ready]],
    submit: Callable[[Gathered[Ready]], Awaitable[list[Answer]]],
) -> AsyncIterator[Answer]:
    """As `submit_gathered`, for asyncio."""
    batch = new_batch()
    async for task in tasks:
        batch.add(task)
        if batch.full:
            for answer in await submit(batch):
                yield answer
            batch = new_batch()
    for answer in await submit(batch):
        yield answer
