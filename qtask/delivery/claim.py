"""A task in the hands of a worker, and what is called when its delivery has ended."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from qtask.model.outcome import Answer, Failure
from qtask.model.task import Task

Done = Callable[[Answer | Failure], None]


class Claim(Struct, frozen=True):
    """A task that a worker holds a lease of.

    Attributes:
        id: of the task, as it is stored; `ids.client_id` gives the client's.
        attempt: 1 for the first delivery.
        task: the dict.
        due: Unix seconds.
        retried: whether the task was dead before and is tried again, so that its first delivery lies behind it.
        foreign: whether another program put the job into Redis, so that QTask never accepted it.
    """

    id: str
    attempt: int
    task: Task
    due: float
    retried: bool = False
    foreign: bool = False
