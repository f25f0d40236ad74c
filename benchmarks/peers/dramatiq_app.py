"""Dramatiq on its Redis broker."""

# mypy: disable-error-code="import-not-found, untyped-decorator"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

import math
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.requests_post import post
from benchmarks.plan import Task, redis_url

dramatiq.set_broker(RedisBroker(url=redis_url()))


@dramatiq.actor
def deliver(path: str) -> None:
    """The actor."""
    post(path)


def submit(tasks: list[Task]) -> None:
    """`send_with_options` with a `delay`, one call per task."""
    for due, path in tasks:
        deliver.send_with_options(args=(path,), delay=max(0, math.ceil((due - time.time()) * 1000)))
