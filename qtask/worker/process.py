"""The worker: claims tasks from its queue, delivers many at once, settles their outcomes.

An RQ worker in what others see of it (registration, heartbeat, `rq info`, suspend and resume, commands); the way
of a task through it is its own: one thread, one loop, and Redis spoken to by the batch and without waiting.
"""

from __future__ import annotations

import gc
import logging
import secrets
import sys
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from time import monotonic, sleep
from typing import Any

from msgspec import UNSET
from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import now as utc_now
from rq.utils import utcformat
from rq.worker.base import BaseWorker, WorkerStatus
from rq.worker_registration import clean_worker_registry

from qtask.config import Config
from qtask.delivery.authorities import check_ca_file
from qtask.delivery.claim import Claim
from qtask.delivery.deliverer import Deliverer, deliverer
from qtask.delivery.ending import (
    hindrance,
    log_failure,
    log_unread,
    retry_in,
    settlement,
    undelivered,
    unread,
    with_history,
)
from qtask.delivery.exchange import broken
from qtask.delivery.loop import READ, Loop
from qtask.destinations.http.host_slots import HostSlots
from qtask.model.errors import ConfigError, Refused
from qtask.model.ids import client_id
from qtask.model.link import http_place
from qtask.model.outcome import Answer, Failure
from qtask.observe.failure_log import FailureLog
from qtask.process import descriptors
from qtask.process.heartbeat import Heartbeat
from qtask.process.stopping import StopSignals
from qtask.process.supervisor import Crew, Member
from qtask.store import keys, leases, rights
from qtask.store.channel import Channel
from qtask.store.connect import REPLY_TIMEOUT_SECONDS, connect
from qtask.store.job import due_of, is_foreign, read_data
from qtask.store.leases import Settlement
from qtask.store.rq_job import TaskJob
from qtask.store.scripts import Call, Value, script

CLAIM_BATCH = 250  # tasks a claim
HELD_BYTES = 67_108_864  # of dicts that were claimed and are not settled; beyond it no more are claimed
SETTLE_BATCH = 100  # outcomes that are settled without waiting for more
SETTLE_MOST = 400  # outcomes that are settled at once
SETTLE_WAIT_SECONDS = 0.002  # how long the first outcome of a smaller batch waits for more
BACKLOG_SECONDS = 5.0  # for which a claimed task waits for its turn; later its lease might end before its delivery
TICK_SECONDS = 1.0  # between heartbeats
IDLE_WAIT_SECONDS = 30  # Redis answers a blocked wait at least this often
GRACE_SECONDS = 8.0  # for deliveries in flight when asked to stop; below the 10 s that Docker gives
BACKOFF_SECONDS = (0.05, 2.0)  # first and longest pause while Redis is away
STEADY_SECONDS = 5.0  # a connection that has lasted so long starts with the first pause again
STOOD_STILL_SECONDS = 3.0  # in one turn of the loop; with a little more, others may have taken this worker for dead
STALL_SECONDS = 10.0  # without a reply that is owed, after which the connection counts as broken
OUT_OF_MEMORY_PAUSE_SECONDS = 0.05
GARBAGE_OBJECTS = 20_000  # made between two looks for cycles of garbage; Python's 700 come many times a batch
LEAVE_WAIT_SECONDS = 1.0  # for an attempt to connect, when asked to stop

logger = logging.getLogger("qtask.worker")


class Worker(BaseWorker):
    """Delivers the tasks of one queue.

    Args:
        config: `queue`, `concurrency`, and what the kinds of delivery need.
        redis: a client of Redis.
        heartbeat: this process's signs of life.
    """

    def __init__(self, config: Config, redis: Redis, heartbeat: Heartbeat | None = None) -> None:
        super().__init__(
            [config.queue], connection=redis, serializer=JSONSerializer, job_class=TaskJob, log_job_description=False
        )
        self._config = config
        self._token = secrets.token_urlsafe(6)
        self._loop = Loop(self._on_defect)
        self._defect: Exception | None = None
        self._signals = StopSignals()
        self._heartbeat = heartbeat or Heartbeat("worker", config)
        self._failures = FailureLog(logger)
        self._deliverers: dict[str, Deliverer] = {}
        self._claims = Channel(redis)
        self._settles = Channel(redis)
        self._queue_key = keys.queue(config.queue)
        self._prefetch = min(CLAIM_BATCH, config.concurrency // 8)

        # Ids that were claimed and whose outcome is not on its way to Redis, and bytes of each dict.
        self._held: dict[Value, int] = {}
        self._held_bytes = 0
        self._claimed_again: set[Value] = set()  # ids that are held, were taken back, and came here a second time
        self._backlog: deque[tuple[str, int, bytes, bytes]] = deque()  # claimed, not begun
        self._limits_hosts = config.host_connections > 0
        self._slots = HostSlots(config.host_connections)  # has what was claimed and waits for a connection to its host
        self._in_flight: dict[str, float] = {}  # id to the start, by monotonic
        self._outcomes: deque[Settlement] = deque()  # ended, not settled
        self._settling: list[Settlement] = []  # on their way to Redis
        # Outcomes from before the connection was made: Redis may have them already, and the tasks be queued again.
        # Until they are settled nothing is claimed, or one of them would end the new claim of its task.
        self._settle_first = 0
        self._settle_at = 0.0
        self._claiming = False
        self._claimed_at = 0.0
        self._waiting = False  # for the queue to hold something
        self._more = True  # the queue may hold something
        self._suspended = False
        self._stopping = False
        self._stop_at = float("inf")
        self._clock_offset = float("-inf")  # Redis's clock minus ours
        self._registered = False
        self._connecting: threading.Thread | None = None
        self._connected = False
        self._connected_at = 0.0
        self._pause = BACKOFF_SECONDS[0]

    # --- life ------------------------------------------------------------------------------------------------

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Delivers until asked to stop; returns whether anything was delivered."""
        self._signals.listen(self._on_signal)
        self._connect()
        self._tick()
        last = monotonic()
        while not self._finished():
            try:
                self._loop.run_once(TICK_SECONDS)
                last, before = monotonic(), last
                if last - before > STOOD_STILL_SECONDS and self._connected:
                    # Its tasks may be with others, or on their way here anew: what was under way counts as unknown.
                    self._on_redis_error(TimeoutError(f"this worker stood still for {last - before:.1f} s"))
                self._advance()
            except Exception as error:
                self._on_defect(error)
        self._leave()
        if self._defect is not None:
            raise self._defect
        return bool(self.successful_job_count)

    def _on_signal(self) -> None:
        self._loop.call_from_thread(self._stop)

    def _on_defect(self, error: Exception) -> None:
        """Stops, because an error came from no delivery but from the worker itself, whose state may be wrong.

        What is in flight gets its time to end, and is settled; the rest is put back. At a second error it does not
        wait. If even that fails, the leases end and a scheduler takes the tasks back.
        """
        logger.critical("worker_broke", exc_info=error, extra={"in_flight": len(self._in_flight)})
        self._defect = self._defect or error
        self._stop()

    def _stop(self) -> None:
        now = monotonic()
        if self._signals.insisted:
            self._stop_at = now
        if not self._stopping:
            self._stopping = True
            self._stop_at = min(self._stop_at, now + GRACE_SECONDS)
            logger.info("stopping", extra={"in_flight": len(self._in_flight), "grace_s": GRACE_SECONDS})

    def _finished(self) -> bool:
        if not self._stopping:
            return False
        if monotonic() >= self._stop_at:
            return True
        return not (self._in_flight or self._outcomes or self._settling or self._claiming)

    def _leave(self) -> None:
        """Puts back what will not be delivered, and says goodbye. Without Redis the leases will end by themselves."""
        if self._connecting is not None:
            self._connecting.join(LEAVE_WAIT_SECONDS)  # it must not register us again when we have said goodbye
        try:
            self._claims.close()
            self._keep_settling()
            while self._outcomes:
                outcomes = self._next_outcomes()
                reply = leases.settle(self._config, self._token, outcomes).run(self.connection)
                self._report_settled(reply, len(outcomes))
            self._held.clear()  # so that all that is left goes back
            back = self._put_back().run(self.connection)
            self.connection.zadd(keys.WORKERS, {self._token: 0})  # dead from now on: a scheduler takes back any rest
            self.register_death()
            logger.info("stopped", extra={"put_back": back})
        except (RedisError, OSError) as error:
            logger.warning("stopped_without_redis", extra={"error": str(error)})
        self._failures.flush(everything=True)
        for deliver in self._deliverers.values():
            deliver.close()
        if self.pubsub_thread is not None:
            self.pubsub_thread.stop()
        self._heartbeat.close()

    def _connect(self) -> None:
        """Connects, in a thread: a Redis that hangs must not hold up what is in flight."""
        self._connecting = threading.Thread(target=self._try_to_connect, daemon=True)
        self._connecting.start()

    def _try_to_connect(self) -> None:
        try:
            self._claims.connect()
            self._settles.connect()
            rights.check(self.connection, "worker")
            if not self._registered:
                self._register()
            if self.pubsub_thread is None:
                self.subscribe()
            for name in ("claim", "settle", "heartbeat"):  # a text sent late would stand behind the wait for the queue
                self.connection.script_load(script(name).text)
        except (RedisError, OSError, ConfigError) as error:  # a right may be taken away, and given again, at any time
            self._loop.call_from_thread(partial(self._on_redis_error, error))
        except Exception as error:  # a defect: without its thread the worker would stand still, so let it end
            self._loop.call_from_thread(partial(_raise, error))
        else:
            self._loop.call_from_thread(self._on_connected)

    def _register(self) -> None:
        try:
            self.connection.delete(self.key)  # an earlier attempt may have come through without our knowing
            self.register_birth()
            self._registered = True
            clean_worker_registry(self.queues[0])  # of those that were killed; only a stock worker would else do it
        except OutOfMemoryError as error:  # RQ's tools do not see us then, but claiming and settling free memory
            logger.warning("not_registered", extra={"error": str(error)})

    def _on_connected(self) -> None:
        try:
            self._forget_backlog()
            self._put_back().run(self.connection)
        except (RedisError, OSError) as error:
            self._on_redis_error(error)
            return
        self._loop.watch(self._claims.descriptor, READ, partial(self._on_readable, self._claims))
        self._loop.watch(self._settles.descriptor, READ, partial(self._on_readable, self._settles))
        self._connected = True
        self._connected_at = monotonic()
        self._settle_first = len(self._outcomes)
        about = {"queue": self._config.queue, "concurrency": self._config.concurrency, "token": self._token}
        logger.info("working", extra=about)
        self._beat()

    def _on_redis_error(self, error: Exception) -> None:
        if self._connected and monotonic() - self._connected_at > STEADY_SECONDS:
            self._pause = BACKOFF_SECONDS[0]
        logger.warning("redis_away", extra={"error": str(error), "retry_in_s": self._pause})
        for channel in (self._claims, self._settles):
            if channel.descriptor >= 0:
                self._loop.unwatch(channel.descriptor)
            channel.close()
        self._connected = self._claiming = self._waiting = False
        self._more = True
        self._keep_settling()
        self._loop.call_later(self._pause, self._connect)
        self._pause = min(self._pause * 2, BACKOFF_SECONDS[1])

    def _on_readable(self, channel: Channel, events: int) -> None:
        try:
            channel.read()
        except (RedisError, OSError) as error:
            self._on_redis_error(error)

    def _tick(self) -> None:
        """The heartbeat, and whether `rq suspend` holds us."""
        self._loop.call_later(TICK_SECONDS, self._tick)
        self._failures.flush()
        self._heartbeat.beat()
        if not self._connected:
            return
        if self._settles.waited() > STALL_SECONDS or self._claims.waited() > IDLE_WAIT_SECONDS + STALL_SECONDS:
            self._on_redis_error(TimeoutError(f"no reply within {STALL_SECONDS:g} s"))
            return
        if monotonic() - self._claimed_at > BACKLOG_SECONDS:
            self._return_backlog()
        elif self._limits_hosts:
            self._return_waiting(monotonic() - BACKLOG_SECONDS)
        if self._connected:
            self._beat()

    def _beat(self) -> None:
        fields: list[Value] = [
            *("last_heartbeat", utcformat(utc_now())),
            *("state", str(WorkerStatus.BUSY.value if self._in_flight else WorkerStatus.IDLE.value)),
            *("successful_job_count", self.successful_job_count, "failed_job_count", self.failed_job_count),
            *("total_working_time", self.total_working_time),
            *("qtask", self._token),  # tells `qtask doctor` that it is one of QTask's
        ]
        try:
            beat = Call(script("heartbeat"), [keys.WORKERS, self.key], [self._token, self.worker_ttl, *fields])
            self._settles.run(self._on_clock, beat)
            self._settles.send(self._on_suspended, "EXISTS", WORKERS_SUSPENDED)
        except (RedisError, OSError) as error:
            self._on_redis_error(error)

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Keeps listening for RQ's commands, whatever Redis goes through.

        RQ's own gives up at a timeout. And an error may be the answer to the subscription: connecting anew repeats it.
        """
        if not isinstance(exc, RedisError | OSError):
            raise exc
        if pubsub.connection is not None:
            pubsub.connection.disconnect()
        sleep(BACKOFF_SECONDS[1])

    def _on_suspended(self, reply: Any) -> None:
        self._suspended = reply == 1

    def _on_clock(self, reply: Any) -> None:
        if not isinstance(reply, ResponseError):
            self._set_clock(float(reply))

    def _set_clock(self, redis_now: float) -> None:
        # The reply is a little older than now, so the true offset is never less than this one; the greatest of
        # late is the best. A much smaller one means that Redis's clock was set back.
        offset = redis_now - monotonic()
        if offset > self._clock_offset or offset < self._clock_offset - 0.1:
            self._clock_offset = offset

    # --- the way of a task -------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """What is to be done after each turn of the loop: begin, claim, settle."""
        while self._slots.ready and len(self._in_flight) < self._config.concurrency and not self._stopping:
            self._begin(*self._slots.ready.popleft()[1])
        while self._backlog and len(self._in_flight) < self._config.concurrency and not self._stopping:
            self._begin(*self._backlog.popleft())
        if self._connected and self._stopping:
            self._return_backlog()
        if not self._connected:
            return
        try:
            held_up = self._claiming or self._waiting or self._suspended or self._stopping or self._settle_first
            if self._more and not held_up:
                unbegun = len(self._backlog) + len(self._slots)
                room = self._config.concurrency + self._prefetch - len(self._in_flight) - unbegun
                if self._held_bytes < HELD_BYTES and (room > self._prefetch or not self._in_flight):
                    self._claim(min(room, CLAIM_BATCH))
            if self._outcomes and not self._settling:
                now = monotonic()
                if len(self._outcomes) >= SETTLE_BATCH or now >= self._settle_at or self._stopping:
                    self._settle()
        except (RedisError, OSError) as error:
            self._on_redis_error(error)

    def _claim(self, most: int) -> None:
        self._claiming = True
        self._more = False
        self._claims.run(self._on_claimed, leases.claim(self._config.queue, self._token, most))
        # Sent in the same breath: the wait for more. It moves the head of the queue onto itself, so it answers as
        # soon as the queue holds something and changes nothing; no task is ever in the hands of a mere reply.
        self._waiting = True
        self._claims.send(self._on_more, "BLMOVE", self._queue_key, self._queue_key, "LEFT", "LEFT", IDLE_WAIT_SECONDS)

    def _on_claimed(self, reply: Any) -> None:
        self._claiming = False
        if isinstance(reply, ResponseError):
            raise reply
        now, claimed = leases.read_claimed(reply)
        self._set_clock(now)
        self._claimed_at = monotonic()
        for raw_id, attempt, due, data in claimed:
            task_id = raw_id.decode()
            if task_id in self._held:  # it was taken back while this worker hung, and its lease holds anew
                self._claimed_again.add(task_id)
            else:
                self._held[task_id] = len(data)
                self._held_bytes += len(data)
                self._backlog.append((task_id, attempt, due, data))

    def _return_backlog(self) -> None:
        """Puts back what is not begun: other workers may have room, and a lease does not wait.

        That is so behind receivers that hang, and when this worker is asked to end.
        """
        if not (self._backlog or self._slots) or self._claiming or self._settling:
            return  # what is claimed or settled at this moment is neither held nor to go back
        self._forget_backlog()
        self._put_back_unheld()

    def _return_waiting(self, before: float) -> None:
        """Puts back what has waited for a connection to its host since before an instant of `monotonic`."""
        if self._claiming or self._settling:
            return  # as above
        withdrawn = self._slots.withdraw(before)
        if withdrawn:
            self._let_go(withdrawn)
            self._put_back_unheld()

    def _put_back_unheld(self) -> None:
        self._claiming = True  # in a way: what would be claimed before this is done would be put back as well
        try:
            self._settles.run(self._on_returned, self._put_back())
        except (RedisError, OSError) as error:
            self._on_redis_error(error)

    def _on_returned(self, reply: Any) -> None:
        self._claiming = False
        if isinstance(reply, ResponseError):
            raise reply
        self._more = True

    def _forget_backlog(self) -> None:
        self._let_go(entry[0] for entry in self._backlog)
        self._backlog.clear()
        self._let_go(self._slots.withdraw())

    def _let_go(self, ids: Iterable[Value]) -> None:
        for task_id in ids:
            self._held_bytes -= self._held.pop(task_id, 0)
            self._claimed_again.discard(task_id)

    def _on_more(self, reply: Any) -> None:
        self._waiting = False
        if isinstance(reply, OutOfMemoryError):
            # Redis lets nobody wait who might write, but claiming and settling free its memory: look again and again.
            self._loop.call_later(OUT_OF_MEMORY_PAUSE_SECONDS, self._look_again)
        elif isinstance(reply, ResponseError):
            raise reply
        else:
            self._more = True

    def _look_again(self) -> None:
        self._more = True

    def _begin(self, task_id: str, attempt: int, written_due: bytes, data: bytes) -> None:
        began = self._in_flight[task_id] = monotonic()
        claim: Claim | None = None
        try:
            task, accepted = read_data(data)
            due = due_of(task, task_id, written_due)
            retried, attempt = attempt < 0, abs(attempt)
            claim = Claim(task_id, attempt, task, due, retried, not accepted)
            if attempt > 1 or task.settings.expires is not UNSET:
                hindered = hindrance(claim, began + self._clock_offset)
                if hindered is not None:
                    self._end_undelivered(claim, hindered)
                    return
            kind = task.kind
            if self._limits_hosts and kind == "http":
                entry = (task_id, attempt, written_due, data)
                if not self._slots.take(http_place(task.address.link), entry, began):
                    del self._in_flight[task_id]
                    return
            deliver = self._deliverers.get(kind)
            if deliver is None:
                deliver = self._deliverers[kind] = deliverer(kind, self._loop, self._config, self._slots)
            deliver.start(claim, partial(self._end, claim))
        except Refused as refused:
            # What another program put into the queue; QTask's own ways in would have refused it.
            self._end_broken(task_id, abs(attempt), claim, Failure("refused", refused.message), data)
        except Exception as error:  # whatever is wrong with one task, the others must go on
            if task_id not in self._in_flight:  # then it is not the task: its result was reported
                raise
            self._end_broken(task_id, abs(attempt), claim, broken(task_id, error), data)

    def _end(self, claim: Claim, result: Answer | Failure) -> None:
        began, ended = self._in_flight.pop(claim.id), monotonic()
        if self._limits_hosts:
            self._slots.release(claim.id)
        self.total_working_time += ended - began
        started = began + self._clock_offset
        outcome = settlement(claim, result, started, ended - began, self._config.id_seconds)
        if isinstance(result, Failure):
            self.failed_job_count += 1
            log_failure(self._failures, claim, result, retry_in(outcome))
        else:
            self.successful_job_count += 1
        self._add_outcome(outcome)

    def _end_undelivered(self, claim: Claim, failure: Failure) -> None:
        """For a task that was claimed and that no delivery was begun for."""
        self.failed_job_count += 1
        log_failure(self._failures, claim, failure, None)
        self._slots.release(claim.id)  # the time in which it was to be delivered passed while it waited
        self._add_outcome(undelivered(claim, failure, self._in_flight.pop(claim.id) + self._clock_offset))

    def _end_broken(self, task_id: str, attempt: int, claim: Claim | None, failure: Failure, data: bytes) -> None:
        """For a job that is no task, and for a task that no delivery could be begun for."""
        if claim is not None:
            self._end(claim, failure)
            return
        self.failed_job_count += 1
        log_unread(self._failures, task_id, attempt, failure)
        now = self._in_flight.pop(task_id) + self._clock_offset
        self._add_outcome(unread(task_id, attempt, failure, now, is_foreign(data)))

    def _add_outcome(self, outcome: Settlement) -> None:
        if not self._outcomes:
            self._settle_at = monotonic() + SETTLE_WAIT_SECONDS
            self._loop.call_at(self._settle_at, _nothing)
        self._outcomes.append(outcome)

    def _settle(self) -> None:
        self._settling = self._next_outcomes()
        self._settles.run(self._on_settled, leases.settle(self._config, self._token, self._settling))

    def _next_outcomes(self) -> list[Settlement]:
        """Takes the next batch to be settled. Its tasks may be claimed anew before the reply is here: to be retried."""
        outcomes = [self._outcomes.popleft() for _ in range(min(len(self._outcomes), SETTLE_MOST))]
        if self._claimed_again:
            outcomes = [with_history(one) if one[0] in self._claimed_again else one for one in outcomes]
        self._let_go(one[0] for one in outcomes)
        return outcomes

    def _keep_settling(self) -> None:
        """Has what was on its way settled again; but what was claimed anew since is not ended by its former outcome."""
        kept = [outcome for outcome in self._settling if outcome[0] not in self._held]
        self._held.update((outcome[0], 0) for outcome in kept)
        self._outcomes.extendleft(reversed(kept))
        self._settling = []

    def _on_settled(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply
        self._report_settled(reply, len(self._settling))
        self._settle_first = max(0, self._settle_first - len(self._settling))
        self._settling = []

    def _report_settled(self, reply: Any, sent: int) -> None:
        settled, *dropped = reply
        if settled < sent:
            logger.warning("leases_lost", extra={"tasks": sent - settled})
        for task_id in dropped:
            about = {"task": client_id(task_id.decode()), "dead_keep": self._config.dead_keep}
            logger.error("dead_dropped", extra=about)

    def _put_back(self) -> Call:
        return leases.put_back(self._config.queue, self._token, self._held)


def _raise(error: Exception) -> None:
    raise error


def _nothing() -> None:
    """A timer that only ends a turn of the loop."""


def run(config: Config) -> None:
    """Runs a worker until it is asked to stop by a signal; a second signal does not wait for deliveries in flight.

    With `processes` above 1 it runs so many of them as children, and keeps them running. Raises `ConfigError` when
    Redis runs in cluster mode or lacks a right, or when it cannot use a setting.
    """
    check_ca_file(config.ca_file)
    if config.processes > 1:
        _run_crew(config)
        return
    config = descriptors.fit(config, "concurrency")
    signals = StopSignals()
    signals.listen(sys.exit)  # nothing is in its hands yet
    heartbeat = Heartbeat("worker", config)
    redis = connect(config.redis, REPLY_TIMEOUT_SECONDS)
    pause = BACKOFF_SECONDS[0]
    while True:
        heartbeat.beat()
        try:
            rights.check(redis, "worker")
            worker = Worker(config, redis, heartbeat)  # RQ asks Redis what our address is
            break
        except (RedisError, OSError) as error:
            logger.warning("redis_away", extra={"error": str(error), "retry_in_s": pause})
            sleep(pause)
            pause = min(pause * 2, BACKOFF_SECONDS[1])
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked at
    gc.set_threshold(GARBAGE_OBJECTS)
    worker.work()


def _run_crew(config: Config) -> None:
    """Runs several workers as children. `qtask health worker` then looks at them and at this process."""
    environment = replace(config, processes=1).as_environment()
    crew = Crew([Member("worker", environment) for _ in range(config.processes)])
    heartbeat = Heartbeat("worker", config, f"supervisor of {config.processes} workers")

    def beat() -> None:
        missing = sum(not member.running for member in crew.members)
        heartbeat.beat(f"{missing} of {config.processes} workers do not run" if missing else "")

    crew.listen()
    crew.start()
    crew.keep(beat)
    crew.stop()
    heartbeat.close()
