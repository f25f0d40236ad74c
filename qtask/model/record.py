"""A task as it is shown to people and programs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from qtask.model.flow_record import Wait
from qtask.model.outcome import Outcome

State = Literal["scheduled", "waiting", "queued", "started", "delivered", "dead"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task.

    A job that another program put into the queue and that is not a task is shown as well: with the type `unknown`, no
    title, and None for the dict.

    Attributes:
        id: its id.
        state: its state.
        queue: name of its RQ queue.
        due: Unix seconds.
        retry_at: Unix seconds of the next delivery, while the task waits for a retry.
        accepted: Unix seconds; None if the client chose the id.
        attempts: deliveries begun so far, since it was last retried as a dead letter.
        title, type, link: of the dict.
        task: the dict.
        outcomes: the outcomes of its deliveries, oldest first.
        waits_for: what it waits for in its flow, while its state is `waiting`; only for a task that is shown by its id.
    """

    id: str
    state: State
    queue: str
    due: float
    retry_at: float | None
    accepted: float | None
    attempts: int
    title: str
    type: str
    link: str
    task: dict[str, Any] | None
    outcomes: list[Outcome] = field(default_factory=list)
    waits_for: Wait | None = None
