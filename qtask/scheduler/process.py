"""The scheduler: moves due tasks from the schedule to their queues, never early, as soon as they are due.

Any number of schedulers run at once, and none of them leads: each move is one atomic script, so a task that one
scheduler moved is not there for the others.
"""

from __future__ import annotations

import logging
import sys
from time import monotonic, sleep

from redis import Redis
from redis.client import PubSub
from redis.exceptions import RedisError

from qtask.config import Config
from qtask.model.queues import one_queue
from qtask.process.heartbeat import BLOCKING_ALIVE_SECONDS, Heartbeat
from qtask.process.stopping import StopSignals
from qtask.scheduler.enqueueing import EnqueueingScheduler
from qtask.scheduler.foreign_jobs import release_foreign
from qtask.scheduler.housekeeping import Housekeeping
from qtask.scheduler.registration import Registration
from qtask.scheduler.sleeping import end_of_sleep, sleep_until
from qtask.store import rights, schedule
from qtask.store.connect import BACKOFF_SECONDS, REPLY_TIMEOUT_SECONDS, connect

BATCH = 500  # jobs moved by one script; a longer one would make others wait for Redis
GAP_SECONDS = 0.001  # least time between two moves, so that a stream of due tasks moves by the batch
TICK_SECONDS = 1.0  # between two runs of the housekeeping, and between two heartbeats

logger = logging.getLogger("qtask.scheduler")


class Scheduler(EnqueueingScheduler):
    """A scheduler that releases tasks in batches.

    Args:
        queue_name: the queue that tasks submitted through this object go to; tasks of all queues are released.
        connection: a client of Redis.

    Attributes:
        housekeeping: reclaims and forgets tasks.
        heartbeat_file: for `qtask health`; None when this is not a process of its own.
    """

    def __init__(self, queue_name: str, connection: Redis) -> None:
        super().__init__(queue_name, connection, TICK_SECONDS)
        self.housekeeping = Housekeeping(connection)
        self.heartbeat_file: Heartbeat | None = None
        self._registration = Registration(self)
        self._stopping = False

    def stop(self) -> None:
        """Makes `run` return after the current move."""
        self._stopping = True

    def run(self, burst: bool = False) -> None:
        """Moves due tasks until `stop`; with `burst` only those that are due now.

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
                    self._registration.restart()
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

    def _run_connected(self, wake: PubSub, burst: bool) -> None:
        next_tick = monotonic() + TICK_SECONDS
        while not self._stopping:
            began = monotonic()
            if began >= next_tick:
                self._tick()
                next_tick = began + TICK_SECONDS
            asked = monotonic()
            released = self.release()
            if released.moved == BATCH:
                continue
            if burst:
                return
            until = min(end_of_sleep(asked, released.wait), next_tick)
            if released.moved or released.looked:
                until = max(until, began + GAP_SECONDS)
            if sleep_until(until, wake):
                sleep(max(0.0, began + GAP_SECONDS - monotonic()))

    def release(self) -> schedule.Released:
        """Moves up to `BATCH` due jobs to their queues, in one round trip, foreign ones with several more.

        Returns what was moved; `moved` includes the foreign jobs.
        """
        released = schedule.release(self.connection, BATCH)
        for job_id in released.foreign:
            release_foreign(self, job_id)
        return released._replace(moved=released.moved + len(released.foreign))

    def _tick(self) -> None:
        self._beat()
        self._registration.renew()
        self.housekeeping.run()

    def _beat(self) -> None:
        if self.heartbeat_file is not None:
            self.heartbeat_file.beat()


def run(config: Config) -> None:
    """Runs a scheduler until it is asked to stop by a signal; a second signal does not wait for Redis."""
    scheduler = Scheduler(one_queue(config.queue), connect(config.redis, REPLY_TIMEOUT_SECONDS))
    scheduler.heartbeat_file = Heartbeat("scheduler", config, wait=BLOCKING_ALIVE_SECONDS)
    signals = StopSignals()

    def on_change() -> None:
        if signals.insisted:
            sys.exit()  # a scheduler holds no tasks, so it may end at any moment
        scheduler.stop()

    signals.listen(on_change)
    try:
        scheduler.run()
    finally:
        scheduler.heartbeat_file.close()
