"""A task that a worker has claimed, and the callback for the end of its delivery."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from qtask.model.outcome import Answer, Failure
from qtask.model.task import Task

Done = Callable[[Answer | Failure], None]


class Claim(Struct, frozen=True):
    """A task that a worker holds a lease of.

    Attributes:
        id: of the task, as it is stored; `ids.client_id` gives the one that the client knows.
        attempt: 1 for the first delivery.
        task: what was submitted.
        due: Unix seconds.
        retried: whether the task was dead and is retried, so its first delivery was measured before.
        foreign: whether another program put the job into Redis, so QTask never accepted it.
        flow: name of its flow, empty where it names none and was never parked.
        timed: whether its timeout adapts, so that its duration is noted.
    """

    id: str
    attempt: int
    task: Task
    due: float
    retried: bool = False
    foreign: bool = False
    flow: str = ""
    timed: bool = False
