"""Jobs in the schedule that rq-scheduler's own API wrote, for any function: released by rq-scheduler's rules."""

from __future__ import annotations

import logging

import rq_scheduler
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import DeserializationError
from rq.job import Job

from qtask.store import schedule
from qtask.store.rq_job import TaskJob

RETRY_SECONDS = 60.0  # until a job that could not be released is tried again

logger = logging.getLogger("qtask.scheduler")


def release_foreign(scheduler: rq_scheduler.Scheduler, job_id: str) -> None:
    """Moves a due job to its queue, and to its next instant if it repeats. Raises redis-py's errors."""
    try:
        scheduler.enqueue_job(_fetch(scheduler.connection, job_id))
    except RedisError:
        raise
    except Exception as error:  # an invalid job of another program must not hold up tasks
        logger.exception("foreign_job_failed", extra={"job": job_id, "error": str(error)})
        schedule.postpone(scheduler.connection, job_id, RETRY_SECONDS)


def _fetch(redis: Redis, job_id: str) -> Job:
    job = Job.fetch(job_id, connection=redis)
    try:
        job.func_name  # noqa: B018  # reading it shows whether this serializer is the right one
    except DeserializationError:
        return TaskJob.fetch(job_id, connection=redis)
    return job
