"""As `qtask_submit`, but each task belongs to one of many flows, and sets its limit."""

from __future__ import annotations

from typing import Any

from benchmarks import qtask_submit
from benchmarks.plan import Task, receiver_url
from benchmarks.qtask_submit import submit

FLOWS = 1_000
PARALLEL = 50  # deliveries in flight of each flow

__all__ = ["prepare", "submit"]


def prepare(tasks: list[Task]) -> list[dict[str, Any]]:
    """The dicts, ready to be sent."""
    receiver = receiver_url()
    dicts = [qtask_submit.dictionary(due, receiver, path) for due, path in tasks]
    for number, one in enumerate(dicts):
        one["settings"]["flow"] = {"key": f"tenant-{number % FLOWS}", "parallel": PARALLEL}
    return dicts
