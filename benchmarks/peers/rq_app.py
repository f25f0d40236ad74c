"""RQ with rq-scheduler."""

from __future__ import annotations

from datetime import UTC, datetime

from redis import Redis
from rq_scheduler import Scheduler

from benchmarks.peers.requests_post import post
from benchmarks.plan import Task, redis_url


def deliver(path: str) -> None:
    """The job."""
    post(path)


def submit(tasks: list[Task]) -> None:
    """`enqueue_at`, one call per task: rq-scheduler has no batches."""
    scheduler = Scheduler(connection=Redis.from_url(redis_url()))
    for due, path in tasks:
        scheduler.enqueue_at(datetime.fromtimestamp(due, UTC), deliver, path)
