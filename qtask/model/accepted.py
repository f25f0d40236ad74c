"""The answer to a task that was accepted, the same in the gateway and in the client."""

from __future__ import annotations

from msgspec import Struct


class Accepted(Struct, frozen=True):
    """A task that Redis holds.

    Attributes:
        id: of the task.
        due: Unix seconds.
        duplicate: whether a task with this id, which the client chose, was accepted before. Then `id` and `due` are
            those of the first task.
    """

    id: str
    due: float
    duplicate: bool = False
