"""The scheduler: moves due tasks from the schedule to their queues, never early, as soon as they are due.

Any number of schedulers run side by side and none of them leads: each move is one atomic script, so what one has
moved the others do not see any more.
"""

from __future__ import annotations

import logging
import select
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any

import rq_scheduler
from redis import Redis
from redis.client import PubSub
from redis.exceptions import OutOfMemoryError, RedisError
from rq.exceptions import DeserializationError
from rq.job import Job

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.destinations.registry import destination_of
from qtask.model.errors import Refused
from qtask.model.ids import client_id, stored_id
from qtask.model.validation import Checked
from qtask.private import redis_py
from qtask.process.heartbeat import BLOCKING_ALIVE_SECONDS, Heartbeat
from qtask.process.stopping import StopSignals
from qtask.store import rights, schedule
from qtask.store.connect import BACKOFF_SECONDS, REPLY_TIMEOUT_SECONDS, connect
from qtask.store.job import FUNCTION, read_data
from qtask.store.nodes import Nodes
from qtask.store.rq_job import TaskJob
from qtask.store.submit import Batch, Submission, submit

BATCH = 500  # jobs moved by one script; a longer one would make others wait for Redis
GAP_SECONDS = 0.001  # least time between two moves, so that a stream of due tasks moves by the batch
AHEAD_SECONDS = 0.001  # by which a sleep ends before the next task is due
TICK_SECONDS = 1.0  # how often dead workers and RQ's registrations are looked after
DEAD_AFTER_SECONDS = 5.0  # without a heartbeat, after which a worker's tasks are reclaimed
GAP_IN_TICKS_SECONDS = 3.0  # between two ticks, after which Redis must have been away; less than it takes to be dead
LOCK_SECONDS = 10
FOREIGN_RETRY_SECONDS = 60.0
RECLAIM_BATCH = 5_000
LOST_LINES = 10  # of the deliveries that are reclaimed in a tick, so many are logged one by one
FORGET_BATCH = 1_000  # delivered tasks whose keeping has ended, a script
FORGET_BATCHES = 10  # a tick

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
        self._registered = False
        self._last_tick = self._watching_since = 0.0  # by Redis's clock
        self.heartbeat_file: Heartbeat | None = None
        self._nodes = Nodes()

    # --- submitting, in rq-scheduler's words ---------------------------------------------------------------

    def enqueue_at(self, scheduled_time: datetime, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As rq-scheduler's `enqueue_at`, but keeps fractions of a second.

        Args:
            scheduled_time: the due instant; a naive one is UTC, as rq-scheduler has it.
            func: any function. For `qtask.do` the one argument is a dict; its `settings.time` or
                `settings.at` gives way to `scheduled_time`.
        """
        instant = (scheduled_time if scheduled_time.tzinfo else scheduled_time.replace(tzinfo=UTC)).timestamp()
        if func == FUNCTION or (getattr(func, "__name__", "") == "do" and func.__module__.startswith("qtask.")):
            return self.enqueue_many([(instant, args[0])])[0]
        job: Job = super().enqueue_at(scheduled_time, func, *args, **kwargs)
        schedule.put(self.connection, job.id, instant)
        return job

    def enqueue_in(self, time_delta: timedelta, func: Any, *args: Any, **kwargs: Any) -> Job:
        """As `enqueue_at`, with a delay from now."""
        return self.enqueue_at(datetime.fromtimestamp(self._now(), UTC) + time_delta, func, *args, **kwargs)

    def enqueue_many(self, tasks: Sequence[tuple[float, Mapping[str, Any]]]) -> list[Job]:
        """Submits many dicts in one round trip.

        Args:
            tasks: due instant in Unix seconds, and dict, of each.

        Raises `Refused` for the first dict that is not sound; then none of them is submitted.
        """
        submissions = [Submission(_due_at(instant, task)) for instant, task in tasks]
        places = submit(self.connection, self._nodes, Batch(self.queue_name, submissions))
        return [TaskJob(stored_id(place.id), self.connection) for place in places if place is not None]

    def _now(self) -> float:
        """Unix seconds by Redis's clock: that of this host may be wrong."""
        seconds, microseconds = self.connection.time()
        return float(seconds + microseconds / 1e6)

    # --- the process ---------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping

    def stop(self) -> None:
        """Makes `run` return after the move under way."""
        self._stopping = True

    def run(self, burst: bool = False) -> None:
        """Moves what is due until `stop`; with `burst` only what is due now.

        Raises `ConfigError` when Redis runs in cluster mode or lacks a right.
        """
        pause = BACKOFF_SECONDS[0]
        while not self._stopping:
            self._beat()
            try:
                rights.check(self.connection, "scheduler")
                with self.connection.pubsub(ignore_subscribe_messages=True) as wake:
                    # Subscribed before the head is looked at, so that no earlier task slips in between.
                    schedule.subscribe(wake)
                    self._registered = False
                    self._tick()
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
        next_tick = monotonic() + TICK_SECONDS
        while not self._stopping:
            began = monotonic()
            if began >= next_tick:
                self._tick()
                next_tick = began + TICK_SECONDS
            asked = monotonic()
            moved, wait = self.release()
            if moved == BATCH:
                continue
            if burst:
                return
            # Reckoned from when Redis was asked, not from its reply: so the next request arrives as the task is due. A
            # process that has slept is slow at first: so a longer sleep ends early, with a request that is too early.
            until = min(asked + (wait - AHEAD_SECONDS if wait > 2 * AHEAD_SECONDS else wait), next_tick)
            if moved:
                until = max(until, began + GAP_SECONDS)
            if _wait(wake, until):
                sleep(max(0.0, began + GAP_SECONDS - monotonic()))

    def release(self) -> tuple[int, float]:
        """Moves up to `BATCH` due jobs to their queues, in one round trip.

        Returns how many it moved, and seconds until the next is due (infinity when none waits).
        """
        released = schedule.release(self.connection, BATCH)
        for job_id in released.foreign:
            self._release_foreign(job_id)
        return released.moved + len(released.foreign), released.wait

    def _release_foreign(self, job_id: str) -> None:
        """Moves a job of rq-scheduler's own API by its own rules (repeats, cron lines)."""
        try:
            super().enqueue_job(self._fetch_foreign(job_id))
        except RedisError:
            raise
        except Exception as error:  # whatever is wrong with somebody else's job, ours must go on
            logger.exception("foreign_job_failed", extra={"job": job_id, "error": str(error)})
            schedule.postpone(self.connection, job_id, FOREIGN_RETRY_SECONDS)

    def _fetch_foreign(self, job_id: str) -> Job:
        job = Job.fetch(job_id, connection=self.connection)
        try:
            job.func_name  # noqa: B018  # reading it shows whether this serializer is the right one
        except DeserializationError:
            return TaskJob.fetch(job_id, connection=self.connection)
        return job

    def _beat(self) -> None:
        if self.heartbeat_file is not None:
            self.heartbeat_file.beat()

    def _tick(self) -> None:
        self._beat()
        self._say_alive()
        queues = schedule.queue_names(self.connection)
        reclaimed = self.reclaim(*queues, silent_since=self._silent_since())
        if reclaimed:
            logger.warning("reclaimed", extra={"tasks": len(reclaimed), "first": client_id(reclaimed[0])})
            self._log_lost(reclaimed[:LOST_LINES])
        for _ in range(FORGET_BATCHES):
            if self.forget(*queues) < FORGET_BATCH:
                break

    def _log_lost(self, ids: list[str]) -> None:
        """Logs deliveries whose worker died or hung; the event `reclaimed` says how many there are in all."""
        for one in schedule.read_reclaimed(self.connection, ids):
            try:
                task, _ = read_data(one.data or b"")
            except Refused:
                continue  # it was cancelled in the meantime, or is no task
            about = {"task": client_id(one.id), "type": task.kind, "attempt": one.attempt, "outcome": "lost"}
            destination = destination_of(task.kind, task.address.link)
            logger.warning("delivery_lost", extra={**about, "destination": destination})

    def _say_alive(self) -> None:
        """Tells RQ's tools, and a stock `rqscheduler`, that we are at work."""
        try:
            if not self._registered:
                self.register_birth()
                self._registered = True
            self.heartbeat()
            schedule.hold_lock(self.connection, LOCK_SECONDS)
        except OutOfMemoryError as error:  # moving tasks takes no memory, and frees it in the end
            logger.warning("out_of_memory", extra={"error": str(error)})

    def _silent_since(self) -> float:
        """The instant since which a worker must have been silent to count as dead, in Unix seconds.

        Where we have not looked all the while, because Redis was away or hung or its clock was set, workers could not
        be heard either: then they are given the time to say that they are alive.
        """
        now = self._now()
        if not 0 <= now - self._last_tick <= GAP_IN_TICKS_SECONDS:
            self._watching_since = now
        self._last_tick = now
        return now - DEAD_AFTER_SECONDS if now - self._watching_since >= DEAD_AFTER_SECONDS else 0.0

    def reclaim(self, *queues: str, silent_since: float | None = None) -> list[str]:
        """Puts tasks whose lease ended, or whose worker died, back into their queues; returns their ids.

        Args:
            queues: it must be given every one: what it is not given would wait for the lease of a dead worker to end.
            silent_since: a worker whose last heartbeat is not later counts as dead, in Unix seconds by Redis's clock;
                by default some seconds ago.
        """
        if silent_since is None:
            silent_since = self._now() - DEAD_AFTER_SECONDS
        return schedule.reclaim(self.connection, queues, silent_since, RECLAIM_BATCH)

    def forget(self, *queues: str) -> int:
        """Forgets up to `FORGET_BATCH` delivered tasks of these queues whose keeping has ended; returns how many."""
        return schedule.forget(self.connection, queues, FORGET_BATCH)


def _wait(wake: PubSub, until: float) -> bool:
    """Waits for a message, but no longer than until an instant of `monotonic`; returns whether one came.

    Not by `get_message(timeout=…)`: that goes by whole milliseconds, rounded up, so tasks would be late by half of one.
    """
    while True:
        came = False
        while wake.get_message() is not None:  # one look at the head of the schedule answers every message so far
            came = True
        seconds = until - monotonic()
        if came or seconds <= 0:
            return came
        select.select([redis_py.socket_of(wake.connection)], [], [], seconds)


def _due_at(instant: float, task: Mapping[str, Any]) -> Checked:
    settings = {key: value for key, value in task.get("settings", {}).items() if key not in ("time", "at")}
    return check_task({**task, "settings": {**settings, "at": instant}})


def run(config: Config) -> None:
    """Runs a scheduler until it is asked to stop by a signal; a second signal does not wait for Redis."""
    scheduler = Scheduler(config.queue, connect(config.redis, REPLY_TIMEOUT_SECONDS))
    scheduler.heartbeat_file = Heartbeat("scheduler", config, wait=BLOCKING_ALIVE_SECONDS)
    signals = StopSignals()

    def on_change() -> None:
        if signals.insisted:
            sys.exit()  # nothing is in its hands, at whatever moment
        scheduler.stop()

    signals.listen(on_change)
    try:
        scheduler.run()
    finally:
        scheduler.heartbeat_file.close()
