"""The job class for RQ's own tools: `rqscheduler -j qtask.store.rq_job.TaskJob`, `rq-dashboard -j …`."""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from qtask.config import Config
from qtask.store import keys


class TaskJob(Job):
    """An RQ job whose data is JSON by default. RQ's default is pickle, which QTask never writes."""

    def __init__(self, id: str | None = None, connection: Redis | None = None, serializer: Any = None) -> None:
        super().__init__(id, connection, serializer or JSONSerializer)


def set_retention(job: Job, config: Config) -> None:
    """Makes a stock worker keep a task as QTask's worker would: QTask's schedulers forget it, RQ never does."""
    job.result_ttl = config.retention_seconds + keys.FOREVER_SECONDS
    job.failure_ttl = keys.FOREVER_SECONDS
