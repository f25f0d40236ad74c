"""The scheduler: moves due tasks from the schedule to their queues, never early, as soon as they are due.

Any number of schedulers run side by side and none of them leads: each move is one atomic script, so what one has
moved the others do not see any more.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any

import rq_scheduler
from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError
from rq.exceptions import DeserializationError
from rq.job import Job

from qtask.config import Config
from qtask.ids import IdSource
from qtask.outcome import Outcome, encode_outcome
from qtask.store import keys
from qtask.store.connect import REPLY_TIMEOUT_SECONDS, connect
from qtask.store.job import FUNCTION
from qtask.store.rq_job import TaskJob
from qtask.store.scripts import script
from qtask.store.submit import Submission, id_of, id_source, submit
from qtask.task import Checked, check_task

BATCH = 500  # jobs moved by one script; a longer one would make others wait for Redis
GAP_SECONDS = 0.001  # least time between two moves, so that a stream of due tasks moves by the batch
TICK_SECONDS = 1.0  # how often dead workers and RQ's registrations are looked after
DEAD_AFTER_SECONDS = 5.0  # without a heartbeat, after which a worker's tasks are taken back
LOCK_SECONDS = 10
BACKOFF_SECONDS = (0.05, 2.0)  # first and longest pause while Redis is away
FOREIGN_RETRY_SECONDS = 60.0
TAKE_BACK_BATCH = 5_000

logger = logging.getLogger("qtask.scheduler")


class Scheduler(rq_scheduler.Scheduler):  # type: ignore[misc]  # rq-scheduler has no types
    """rq-scheduler's scheduler, in batches and to the microsecond.

    Args:
        queue_name: the queue that tasks go to.
        connection: a client of Redis.
    """

    job_class = TaskJob

    def __init__(self, queue_name: str, connection: Redis) -> None:
        super().__init__(queue_name, connection=connection, interval=TICK_SECONDS)
        self._stopping = False
        self._ids: IdSource | None = None

    # --- submitting, in rq-scheduler's words ---------------------------------------------------------------

    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As rq-scheduler's `enqueue_at`, but keeps fractions of a second.

        Args:
            scheduled_time: the due instant; a naive one is UTC, as rq-scheduler has it.
            func: any function. For `qtask.deliver` the one argument is a dict; its `settings.time` or
                `settings.at` gives way to `scheduled_time`.
        """
        instant = (scheduled_time if scheduled_time.tzinfo else scheduled_time.replace(tzinfo=UTC)).timestamp()
        if func == FUNCTION or (getattr(func, "__name__", "") == "deliver" and func.__module__.startswith("qtask.")):
            return self.enqueue_many([(instant, args[0])])[0]
        job: Job = super().enqueue_at(scheduled_time, func, *args, **kwargs)
        self.connection.zadd(self.scheduled_jobs_key, {job.id: instant})
        self.connection.publish(keys.WAKE, instant)
        return job

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As `enqueue_at`, with a delay from now."""
        return self.enqueue_at(datetime.now(UTC) + time_delta, func, *args, **kwargs)

    def enqueue_many(self, tasks: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Job]:
        """Submits many dicts in one round trip.

        Args:
            tasks: due instant in Unix seconds, and dict, of each.

        Raises `Refused` for the first dict that is not sound; then none of them is submitted.
        """
        if self._ids is None:
            self._ids = id_source(self.connection)
        checked = [_due_at(instant, task) for instant, task in tasks]
        submissions = [Submission(id_of(one, self._ids), one) for one in checked]
        submit(self.connection, self.queue_name, submissions)
        return [TaskJob(submission.id, self.connection) for submission in submissions]

    # --- the process ---------------------------------------------------------------------------------------

    def stop(self, *_: Any) -> None:
        """Makes `run` return after the move under way; also a signal handler."""
        self._stopping = True

    def run(self, burst: bool = False) -> None:
        """Moves what is due until `stop`; with `burst` only what is due now."""
        pause = BACKOFF_SECONDS[0]
        while not self._stopping:
            try:
                with self.connection.pubsub(ignore_subscribe_messages=True) as wake:
                    # Subscribed before the head is looked at, so that no earlier task slips in between.
                    wake.subscribe(keys.WAKE)
                    wake.get_message(timeout=1.0)
                    self.register_birth()
                    logger.info("scheduling", extra={"queue": self.queue_name})
                    pause = BACKOFF_SECONDS[0]
                    self._run_connected(wake, burst)
                    self.register_death()
                return
            except (RedisError, OSError) as error:
                logger.warning("redis_away", extra={"error": str(error), "retry_in_s": pause})
                sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS[1])

    def register_birth(self) -> None:
        """Registers this scheduler as rq-scheduler does; again after a reconnection."""
        self.connection.delete(self.key)
        super().register_birth()

    def _run_connected(self, wake: PubSub, burst: bool) -> None:
        next_tick = 0.0
        while not self._stopping:
            began = monotonic()
            if began >= next_tick:
                self._tick()
                next_tick = began + TICK_SECONDS
            moved, wait = self.release()
            if moved == BATCH:
                continue
            if burst:
                return
            now = monotonic()
            wait = min(wait, next_tick - now)
            if moved:
                wait = max(wait, began + GAP_SECONDS - now)
            if wait > 0 and wake.get_message(timeout=wait) is not None:
                while wake.get_message() is not None:  # one look at the head answers every message so far
                    pass
                sleep(max(0.0, began + GAP_SECONDS - monotonic()))

    def release(self) -> tuple[int, float]:
        """Moves up to `BATCH` due jobs to their queues, in one round trip.

        Returns how many it moved, and seconds until the next is due (infinity when none waits).
        """
        moved, wait, *foreign = script("release").run(
            self.connection,
            [keys.SCHEDULE, keys.QUEUES],
            [BATCH, keys.JOB_PREFIX, keys.QUEUE_PREFIX, keys.FAILED_PREFIX],
        )
        for job_id in foreign:
            self._release_foreign(job_id.decode())
        return moved + len(foreign), float(wait) if wait else float("inf")

    def _release_foreign(self, job_id: str) -> None:
        """Moves a job of rq-scheduler's own API by its own rules (repeats, cron lines)."""
        try:
            super().enqueue_job(self._fetch_foreign(job_id))
        except RedisError:
            raise
        except Exception as error:  # whatever is wrong with somebody else's job, ours must go on
            logger.exception("foreign_job_failed", extra={"job": job_id, "error": str(error)})
            self.connection.zincrby(self.scheduled_jobs_key, FOREIGN_RETRY_SECONDS, job_id)

    def _fetch_foreign(self, job_id: str) -> Job:
        job = Job.fetch(job_id, connection=self.connection)
        try:
            job.func_name  # noqa: B018  # reading it shows whether this serializer is the right one
        except DeserializationError:
            return TaskJob.fetch(job_id, connection=self.connection)
        return job

    def _tick(self) -> None:
        self.heartbeat()
        self._hold_lock()
        queues = [key.decode().removeprefix(keys.QUEUE_PREFIX) for key in self.connection.smembers(keys.QUEUES)]
        taken = self.take_back(*queues)
        if taken:
            logger.warning("taken_back", extra={"tasks": len(taken), "first": taken[0]})

    def _hold_lock(self) -> None:
        """Keeps rq-scheduler's lock, so that a stock `rqscheduler` beside us stays passive."""
        if not self.connection.set(keys.SCHEDULER_LOCK, "qtask", nx=True, ex=LOCK_SECONDS):
            if self.connection.get(keys.SCHEDULER_LOCK) == b"qtask":
                self.connection.expire(keys.SCHEDULER_LOCK, LOCK_SECONDS)

    def take_back(self, *queues: str) -> list[str]:
        """Puts tasks whose lease ended, or whose worker died, back into their queues; returns their ids.

        It must be given every queue: what it is not given would wait for the lease of a dead worker to end.
        """
        pairs = [key for queue in queues for key in (keys.started(queue), keys.queue(queue))]
        taken: list[bytes] = script("take_back").run(
            self.connection,
            [keys.WORKERS, *pairs],
            [keys.JOB_PREFIX, keys.FOREVER_SECONDS, DEAD_AFTER_SECONDS, TAKE_BACK_BATCH, _LOST],
        )
        return [task_id.decode() for task_id in taken]


# The outcome of a delivery whose worker is gone; take_back.lua fills in what it knows.
_LOST = (
    encode_outcome(
        Outcome(
            status="failed",
            started=-1.0,
            ended=-1.0,
            lateness=None,
            duration=0.0,
            attempt=-1,
            error="lost",
            message="the worker died or hung; whether the receiver got it is not known",
        )
    )
    .replace(b'"attempt":-1', b'"attempt":%ATTEMPT%')
    .replace(b"-1.0", b"%NOW%")
)


def _due_at(instant: float, task: Mapping[str, Any]) -> Checked:
    settings = {key: value for key, value in task.get("settings", {}).items() if key not in ("time", "at")}
    return check_task({**task, "settings": {**settings, "at": instant}})


def run(config: Config) -> None:
    """Runs a scheduler until SIGTERM or SIGINT."""
    scheduler = Scheduler(config.queue, connect(config.redis, REPLY_TIMEOUT_SECONDS))
    signal.signal(signal.SIGTERM, scheduler.stop)
    signal.signal(signal.SIGINT, scheduler.stop)
    scheduler.run()
