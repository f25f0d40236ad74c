"""A task in the hands of a worker, and what is called when its delivery has ended."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from qtask.outcome import Answer, Failure
from qtask.task import Task

Done = Callable[[Answer | Failure], None]


class Claim(Struct, frozen=True):
    """A task that a worker holds a lease of.

    Attributes:
        id: of the task.
        attempt: 1 for the first delivery.
        task: the dict.
        due: Unix seconds.
    """

    id: str
    attempt: int
    task: Task
    due: float
