"""Huey on Redis."""

# mypy: disable-error-code="import-not-found, untyped-decorator"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from datetime import datetime

from huey import RedisHuey

from benchmarks.peers.requests_post import post
from benchmarks.plan import Task, redis_url

huey = RedisHuey("bench", url=redis_url())


@huey.task()
def deliver(path: str) -> None:
    """The task."""
    post(path)


def submit(tasks: list[Task]) -> None:
    """`schedule` with an `eta` in local time, one call per task."""
    for due, path in tasks:
        deliver.schedule(args=(path,), eta=datetime.fromtimestamp(due))
