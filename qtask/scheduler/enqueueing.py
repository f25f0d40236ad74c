"""rq-scheduler's own calls for submitting, with due instants to the microsecond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import rq_scheduler
from redis import Redis
from rq.job import Job

from qtask.destinations.parsing import check_task
from qtask.model.ids import stored_id
from qtask.model.validation import Checked
from qtask.store import schedule
from qtask.store.health import now
from qtask.store.job import FUNCTION
from qtask.store.nodes import Nodes
from qtask.store.rq_job import TaskJob
from qtask.store.submit import Batch, Submission, submit


class EnqueueingScheduler(rq_scheduler.Scheduler):  # type: ignore[misc]  # rq-scheduler has no types
    """rq-scheduler's scheduler as programs use it to submit: tasks of QTask, and calls of any function.

    Args:
        queue_name: the queue that tasks go to.
        connection: a client of Redis.
        interval: seconds between two heartbeats, by which rq-scheduler's tools know that it is alive.
    """

    job_class = TaskJob

    def __init__(self, queue_name: str, connection: Redis, interval: float) -> None:
        super().__init__(queue_name, connection=connection, interval=interval)
        self._nodes = Nodes()

    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As rq-scheduler's `enqueue_at`, but keeps fractions of a second.

        Args:
            scheduled_time: the due instant; a naive one is UTC, as in rq-scheduler.
            func: any function. For `qtask.do` the only argument is a task; its `settings.time` or `settings.at` is
                replaced by `scheduled_time`.
        """
        instant = (scheduled_time if scheduled_time.tzinfo else scheduled_time.replace(tzinfo=UTC)).timestamp()
        if func == FUNCTION or (getattr(func, "__name__", "") == "do" and func.__module__.startswith("qtask.")):
            return self.enqueue_many([(instant, args[0])])[0]
        job: Job = super().enqueue_at(scheduled_time, func, *args, **kwargs)
        schedule.put(self.connection, job.id, instant)
        return job

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As `enqueue_at`, with a delay from now, by Redis's clock."""
        return self.enqueue_at(datetime.fromtimestamp(now(self.connection), UTC) + time_delta, func, *args, **kwargs)

    def enqueue_many(self, tasks: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Job]:
        """Submits many tasks in one round trip.

        Args:
            tasks: due instant in Unix seconds, and task, of each.

        Raises `Refused` for the first invalid task; then none of them is submitted.
        """
        submissions = [Submission(_due_at(instant, task)) for instant, task in tasks]
        places = submit(self.connection, self._nodes, Batch(self.queue_name, submissions))
        return [TaskJob(stored_id(place.id), self.connection) for place in places if place is not None]


def _due_at(instant: float, task: Mapping[str, Any]) -> Checked:
    """A task, checked, that is due at an instant in Unix seconds."""
    settings = {key: value for key, value in task.get("settings", {}).items() if key not in ("time", "at")}
    return check_task({**task, "settings": {**settings, "at": instant}})
