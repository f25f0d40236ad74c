"""The worker: claims tasks from its queues, delivers many at once, settles their outcomes.

A worker is one thread with one loop. It sends to Redis in batches and does not block for the replies. This module has
the process: how it starts, what it does in each turn of the loop, and how it stops. `link.py`, `registration.py`,
`claims.py`, `deliveries.py` and `settling.py` have the rest, and do not depend on this module.
"""

from __future__ import annotations

import gc
import logging
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from time import monotonic, sleep

from redis import Redis
from redis.exceptions import RedisError

from qtask.config import Config
from qtask.delivery.authorities import check_ca_file
from qtask.delivery.loop import Loop
from qtask.model.queues import Served, served_queues
from qtask.process import descriptors
from qtask.process.heartbeat import Heartbeat
from qtask.process.stopping import StopSignals
from qtask.process.supervisor import Member, Supervisor
from qtask.store import rights, workers
from qtask.store.connect import BACKOFF_SECONDS, REPLY_TIMEOUT_SECONDS, connect
from qtask.worker.claims import Claims
from qtask.worker.clock import RedisClock
from qtask.worker.deliveries import Deliveries
from qtask.worker.held import HeldTasks
from qtask.worker.link import LINK_ERRORS, Link
from qtask.worker.registration import Registration
from qtask.worker.settling import Settling

TICK_SECONDS = 1.0  # between heartbeats
GRACE_SECONDS = 8.0  # for deliveries in flight after a request to stop; less than the 10 s that Docker allows
STOOD_STILL_SECONDS = 3.0  # in one turn of the loop; a little later a scheduler takes this worker for dead
GARBAGE_OBJECTS = 20_000  # new objects between two garbage collections; Python's 700 are reached many times in a batch

logger = logging.getLogger("qtask.worker")


class Mode(Enum):
    """What a worker does now. STOPPING is final."""

    WORKING = "it claims and delivers"
    SUSPENDED = "`rq suspend` is in effect: it claims nothing, and delivers the tasks that it holds"
    STOPPING = "it was asked to stop: deliveries in flight end and are settled, other tasks are given back"


# Looked up once: in Python 3.11 access to a member of an enum costs as much as a call.
WORKING, SUSPENDED, STOPPING = Mode


class Worker:
    """Delivers the tasks of its queues.

    Args:
        config: the settings.
        served: the queues.
        redis: a client of Redis.
        heartbeat: that of this process.
    """

    def __init__(self, config: Config, served: Sequence[Served], redis: Redis, heartbeat: Heartbeat) -> None:
        self._config = config
        queues = [one.name for one in served]
        self._redis = redis
        self._heartbeat = heartbeat
        self._token = token = secrets.token_urlsafe(6)
        self._loop = loop = Loop(self._on_defect)
        self._link = Link(redis, loop, self._prepare, self._on_connecting, self._on_lost, len(queues))
        clock, held = RedisClock(), HeldTasks()
        self._settling = Settling(config, queues, token, loop, held)
        self._deliveries = Deliveries(config, loop, clock, self._settling.add)
        self._claims = Claims(config, served, token, loop, self._link, clock, held, self._deliveries, self._settling)
        self._registration = Registration(queues, redis, token, self._deliveries, clock, self._on_suspended)
        self._mode = WORKING
        self._stop_at = float("inf")
        self._signals = StopSignals()
        self._defect: Exception | None = None

    def work(self) -> None:
        """Delivers until it is asked to stop. If a defect stopped it, raises its error."""
        self._signals.listen(self._on_signal)
        self._link.connect()
        self._tick()
        last = monotonic()
        while not self._finished():
            try:
                self._loop.run_once(TICK_SECONDS)
                last, before = monotonic(), last
                if last - before > STOOD_STILL_SECONDS and self._link.connected:
                    # Its tasks may have been reclaimed, so the results of all requests under way count as unknown.
                    self._link.lose(TimeoutError(f"this worker stood still for {last - before:.1f} s"))
                self._advance()
            except Exception as error:
                self._on_defect(error)
        self._leave()
        if self._defect is not None:
            raise self._defect

    def _advance(self) -> None:
        """Begins, claims and settles, after each turn of the loop."""
        stopping = self._mode is STOPPING
        if self._deliveries.shares and self._link.connected:
            self._park()  # before more begins: the loop has just shown which deliveries have ended
        if not stopping:
            self._deliveries.begin(self._claims.backlog)
        if not self._link.connected:
            return
        try:
            if stopping:
                self._claims.nack_unbegun()
            elif self._mode is WORKING and not self._settling.catching_up:
                self._claims.claim()
            self._settling.send(self._link.settles, at_once=stopping)
        except LINK_ERRORS as error:
            self._link.lose(error)

    def _park(self) -> None:
        try:
            self._claims.park()
        except LINK_ERRORS as error:
            self._link.lose(error)

    def _tick(self) -> None:
        """Sends the heartbeat, and gives back tasks that have waited too long."""
        self._loop.call_later(TICK_SECONDS, self._tick)
        self._deliveries.failures.flush()
        self._heartbeat.beat()
        if not self._link.connected:
            return
        try:
            self._link.check()
            self._claims.nack_late()
            self._registration.beat(self._link.settles)
        except LINK_ERRORS as error:
            self._link.lose(error)

    def _on_suspended(self, suspended: bool) -> None:
        if self._mode is not STOPPING:
            self._mode = SUSPENDED if suspended else WORKING

    # --- when the link is lost or made -----------------------------------------------------------------------

    def _prepare(self) -> None:
        """Runs in a thread: uses other connections, and may block."""
        rights.check(self._redis, "worker")
        self._registration.register()
        workers.load_scripts(self._redis)

    def _on_connecting(self) -> None:
        self._claims.on_connecting(self._redis)
        self._settling.on_connecting()
        served = self._config.queues or self._config.queue
        about = {"queue": served, "concurrency": self._config.concurrency, "token": self._token}
        logger.info("working", extra=about)
        self._registration.beat(self._link.settles)

    def _on_lost(self) -> None:
        self._claims.on_lost()
        self._settling.on_lost()

    # --- stopping --------------------------------------------------------------------------------------------

    def _on_signal(self) -> None:
        self._loop.call_from_thread(self._stop)

    def _on_defect(self, error: Exception) -> None:
        """Stops because of an error in the worker itself, not in a delivery: its state may be wrong.

        Deliveries in flight may end and are settled; other tasks are given back. If even that fails, the leases end and
        a scheduler reclaims the tasks.
        """
        logger.critical("worker_broke", exc_info=error, extra={"in_flight": len(self._deliveries.in_flight)})
        self._defect = self._defect or error
        self._stop()

    def _stop(self) -> None:
        now = monotonic()
        if self._signals.insisted:
            self._stop_at = now
        if self._mode is not STOPPING:
            self._mode = STOPPING
            self._stop_at = min(self._stop_at, now + GRACE_SECONDS)
            in_flight = len(self._deliveries.in_flight)
            logger.info("stopping", extra={"in_flight": in_flight, "grace_s": GRACE_SECONDS})

    def _finished(self) -> bool:
        if self._mode is not STOPPING:
            return False
        if monotonic() >= self._stop_at:
            return True
        return not self._deliveries.in_flight and self._settling.done and self._claims.idle

    def _leave(self) -> None:
        """Gives back tasks that are not delivered, and deregisters. Without Redis, the leases end by themselves."""
        try:
            self._link.leave()
            self._settling.finish(self._redis)
            back = self._claims.finish(self._redis)
            self._registration.leave()
            logger.info("stopped", extra={"given_back": back})
        except LINK_ERRORS as error:
            logger.warning("stopped_without_redis", extra={"error": str(error)})
        self._deliveries.close()
        self._registration.close()
        self._heartbeat.close()


def run(config: Config) -> None:
    """Runs a worker until it is asked to stop by a signal; a second signal does not wait for deliveries in flight.

    If `processes` is above 1, it runs that many workers as children and restarts those that end. Raises `ConfigError`
    if Redis runs in cluster mode, if a right in Redis is missing, or if a setting cannot be used.
    """
    check_ca_file(config.ca_file)
    served = served_queues(config.queues or config.queue)
    if config.processes > 1:
        _run_several(config)
        return
    config = descriptors.fit(config, "concurrency")
    signals = StopSignals()
    signals.listen(sys.exit)  # it holds no tasks yet
    heartbeat = Heartbeat("worker", config)
    redis = connect(config.redis, REPLY_TIMEOUT_SECONDS)
    pause = BACKOFF_SECONDS[0]
    while True:
        heartbeat.beat()
        try:
            rights.check(redis, "worker")
            worker = Worker(config, served, redis, heartbeat)  # RQ asks Redis for our address
            break
        except (RedisError, OSError) as error:
            logger.warning("redis_away", extra={"error": str(error), "retry_in_s": pause})
            sleep(pause)
            pause = min(pause * 2, BACKOFF_SECONDS[1])
    gc.collect()
    gc.freeze()  # what exists now stays, so the collector need not look at it
    gc.set_threshold(GARBAGE_OBJECTS)
    worker.work()


def _run_several(config: Config) -> None:
    """Runs several workers as children. `qtask health worker` then checks them and this process."""
    environment = replace(config, processes=1).as_environment()
    supervisor = Supervisor([Member("worker", environment) for _ in range(config.processes)])
    heartbeat = Heartbeat("worker", config, f"supervisor of {config.processes} workers")

    def beat() -> None:
        missing = sum(not member.running for member in supervisor.members)
        heartbeat.beat(f"{missing} of {config.processes} workers do not run" if missing else "")

    supervisor.listen()
    supervisor.start()
    supervisor.keep(beat)
    supervisor.stop()
    heartbeat.close()
