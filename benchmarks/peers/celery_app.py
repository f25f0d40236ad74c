"""Celery on its Redis transport, without a result backend."""

# mypy: disable-error-code="import-not-found, untyped-decorator"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from datetime import UTC, datetime

from celery import Celery

from benchmarks.peers.requests_post import post
from benchmarks.plan import Task, redis_url

app = Celery("benchmarks.peers.celery_app", broker=redis_url())
app.conf.broker_connection_retry_on_startup = True


@app.task
def deliver(path: str) -> None:
    """The task."""
    post(path)


def submit(tasks: list[Task]) -> None:
    """`apply_async` with an `eta`, one call per task."""
    for due, path in tasks:
        deliver.apply_async((path,), eta=datetime.fromtimestamp(due, UTC))
