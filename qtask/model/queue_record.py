"""A queue as it is shown."""

from __future__ import annotations

from msgspec import Struct


class QueueRecord(Struct, frozen=True):
    """A queue.

    Attributes:
        name: of the queue.
        paused: whether no delivery of its tasks begins.
        queued: tasks that are due and not claimed.
        in_flight: tasks that workers have claimed.
        waiting: tasks that wait in flows.
        dead: dead letters.
        workers: workers that are registered for it, also stock ones.
    """

    name: str
    paused: bool = False
    queued: int = 0
    in_flight: int = 0
    waiting: int = 0
    dead: int = 0
    workers: int = 0
