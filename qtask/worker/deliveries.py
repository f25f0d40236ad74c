"""The deliveries of a worker: how each begins and ends, and which are in flight."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic

from msgspec import UNSET

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.deliverer import Deliverer, deliverer
from qtask.delivery.ending import (
    log_failure,
    log_unread,
    reason_not_to_deliver,
    retry_in,
    settlement,
    undelivered,
    unread,
)
from qtask.delivery.exchange import broken
from qtask.delivery.flow_signs import Suspects
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import Entry, HostSlots
from qtask.destinations.registry import flow_name_of
from qtask.model.errors import Refused
from qtask.model.link import http_place
from qtask.model.outcome import Answer, Failure
from qtask.model.task import Task, with_timeout
from qtask.observe.failure_log import FailureLog
from qtask.store.job import due_of, is_foreign, read_data
from qtask.store.leases import Settlement
from qtask.worker.clock import RedisClock
from qtask.worker.shares import UNANSWERED_LIMIT, Shares

ORIGINS_KEEP = 10_000
_AFTER_SCHEME = 8  # position in a link after `http://` or `https://`
LOOK_SECONDS = 0.005  # between two looks at tasks that wait because their flow has its share

logger = logging.getLogger("qtask.worker")


class Deliveries:
    """Begins the deliveries of claimed tasks, and makes their settlements.

    Args:
        config: `concurrency`, `host_connections`, and the settings of the deliverers.
        loop: runs the deliveries.
        clock: for the instants in outcomes.
        on_outcome: gets each settlement.

    Attributes:
        flows: the name of the flow of each task that is held here and may hold a slot in one; by the task's id.
        timeouts: seconds of each task held here whose timeout adapts, None where they are not known; by the task's id.
        limited: names of the flows with state that tasks belong to without naming them.
        shares: has the tasks that wait because their flow has its share of the places.
        in_flight: the start of each delivery under way, by `monotonic`; by the task's id.
        slots: holds the tasks that wait for a connection to their host.
        failures: the log of failed deliveries.
        delivered, failed: how many deliveries have ended, by result.
        seconds: how long they took together.
    """

    def __init__(self, config: Config, loop: Loop, clock: RedisClock, on_outcome: Callable[[Settlement], None]) -> None:
        self._config = config
        self._loop = loop
        self._clock = clock
        self._on_outcome = on_outcome
        self._deliverers: dict[str, Deliverer] = {}
        self._limits_hosts = config.host_connections > 0
        self.flows: dict[str, str] = {}
        self.timeouts: dict[str, float | None] = {}
        self.limited: frozenset[str] = frozenset()
        self.shares = Shares(config.concurrency)
        self._threshold = self.shares.threshold_from
        self._claims: dict[str, Claim] = {}  # of the deliveries in flight
        self._origins: dict[str, str] = {}  # names of flows by the beginnings of links
        self._suspects = Suspects()
        self._wakes = False  # a timer is set that ends a turn of the loop
        self._unanswered = 0  # deliveries begun since one has ended
        self._has_flows = False  # some task that is held here has a flow, or may have one
        self.in_flight: dict[str, float] = {}
        self.slots = HostSlots(config.host_connections)
        self.failures = FailureLog(logger)
        self.delivered = 0
        self.failed = 0
        self.seconds = 0.0

    def begin(self, backlog: deque[Entry]) -> None:
        """Begins as many deliveries as there is room for, first those that have waited for their host."""
        concurrency, slots = self._config.concurrency, self.slots
        self._has_flows = bool(self.flows or self.timeouts or self.limited)
        while slots.ready and len(self.in_flight) < concurrency:
            self._begin(*slots.ready.popleft()[1])
        while len(self.shares) and len(self.in_flight) < concurrency and (entry := self.shares.next(monotonic())):
            self._begin(*entry)
        while backlog and len(self.in_flight) < concurrency:
            self._begin(*backlog.popleft())

    def _begin(self, task_id: str, attempt: int, written_due: bytes, data: bytes) -> None:
        began = self.in_flight[task_id] = monotonic()
        claim: Claim | None = None
        try:
            task, accepted = read_data(data)
            due = due_of(task, task_id, written_due)
            retried, attempt = attempt < 0, abs(attempt)
            if self._has_flows:
                flow, timed = self.flows.get(task_id, ""), task_id in self.timeouts
                if timed:
                    task = with_timeout(task, self.timeouts[task_id], attempt)
                claim = Claim(task_id, attempt, task, due, retried, not accepted, flow, timed)
            else:
                claim = Claim(task_id, attempt, task, due, retried, not accepted)
            self._claims[task_id] = claim
            if attempt > 1 or task.settings.expires is not UNSET:
                reason = reason_not_to_deliver(claim, began + self._clock.offset)
                if reason is not None:
                    self._end_undelivered(claim, reason)
                    return
            if self._has_flows and self.limited and not claim.flow and (name := self._flow_of(task)) in self.limited:
                del self.in_flight[task_id], self._claims[task_id]
                self.shares.hold(name, (task_id, -attempt if retried else attempt, written_due, data), began)
                return
            self._unanswered += 1
            if self.shares.counts or self._unanswered > UNANSWERED_LIMIT or len(self.in_flight) > self._threshold:
                entry = (task_id, -attempt if retried else attempt, written_due, data)
                if not self._take_share(claim, entry, began):
                    return
            task_type = task.type
            if self._limits_hosts and task_type == "http":
                entry = (task_id, -attempt if retried else attempt, written_due, data)
                if not self.slots.take(http_place(task.address.link), entry, began):
                    del self.in_flight[task_id], self._claims[task_id]
                    return
            deliver = self._deliverers.get(task_type)
            if deliver is None:
                deliver = self._deliverers[task_type] = deliverer(task_type, self._loop, self._config, self.slots)
            deliver.start(claim, partial(self._end, claim))
        except Refused as refused:
            # Another program put it into the queue; QTask would have refused it when it was submitted.
            self._end_broken(task_id, abs(attempt), claim, Failure("refused", refused.message), data)
        except Exception as error:  # an error in one task must not stop the others
            if task_id not in self.in_flight:  # its result was reported, so the error is not that of the task
                raise
            self._end_broken(task_id, abs(attempt), claim, broken(task_id, error), data)

    def _take_share(self, claim: Claim, entry: Entry, now: float) -> bool:
        if not self.shares.counts:
            self.shares.start(
                (one.id, one.flow or self._flow_of(one.task), self.in_flight[one.id])
                for one in self._claims.values()
                if one is not claim
            )
        if self.shares.take(claim.flow or self._flow_of(claim.task), entry, now):
            return True
        del self.in_flight[claim.id], self._claims[claim.id]
        if not self._wakes:
            self._wakes = True
            self._loop.call_later(LOOK_SECONDS, self._wake)
        return False

    def _flow_of(self, task: Task) -> str:
        """The name of the flow of a task that names none. Names of HTTP links are kept, because parsing is slow."""
        link = task.address.link
        if task.type != "http":
            return flow_name_of(task)
        origin = link[: end if (end := link.find("/", _AFTER_SCHEME)) > 0 else None]
        name = self._origins.get(origin)
        if name is None:
            name = flow_name_of(task)
            if len(self._origins) < ORIGINS_KEEP and not origin.endswith(":"):  # else the path of a unix socket follows
                self._origins[origin] = name
        return name

    def _wake(self) -> None:
        self._wakes = False
        if len(self.shares):
            self._wakes = True
            self._loop.call_later(LOOK_SECONDS, self._wake)

    def _end(self, claim: Claim, result: Answer | Failure) -> None:
        began, ended = self.in_flight.pop(claim.id), monotonic()
        self._unanswered = 0
        del self._claims[claim.id]
        if self.shares.counts:
            self.shares.end(claim.id, ended)
        flow = self.flows.pop(claim.id, "") if self.flows else ""
        if claim.timed:
            self.timeouts.pop(claim.id, None)
        if self._limits_hosts:
            self.slots.release(claim.id)
        self.seconds += ended - began
        started = began + self._clock.offset
        signs = None
        if flow or self._suspects.until or isinstance(result, Failure):  # else there are none, and this is the hot path
            signs = self._suspects.signs_of(claim, result, flow, started, self._config)
        outcome = settlement(claim, result, started, ended - began, self._config.idempotency_seconds, signs)
        if isinstance(result, Failure):
            self.failed += 1
            log_failure(self.failures, claim, result, retry_in(outcome))
        else:
            self.delivered += 1
        self._on_outcome(outcome)

    def _end_undelivered(self, claim: Claim, failure: Failure) -> None:
        """For a claimed task that must not be delivered any more."""
        self.failed += 1
        log_failure(self.failures, claim, failure, None)
        self.slots.release(claim.id)  # it may have waited for its host until it expired
        self.shares.end(claim.id, monotonic())
        del self._claims[claim.id]
        flow = self.flows.pop(claim.id, "")
        self.timeouts.pop(claim.id, None)
        self._on_outcome(undelivered(claim, failure, self.in_flight.pop(claim.id) + self._clock.offset, flow))

    def _end_broken(self, task_id: str, attempt: int, claim: Claim | None, failure: Failure, data: bytes) -> None:
        """For a job that cannot be read as a task, and for a task whose delivery could not be begun."""
        if claim is not None:
            self._end(claim, failure)
            return
        self.failed += 1
        log_unread(self.failures, task_id, attempt, failure)
        now = self.in_flight.pop(task_id) + self._clock.offset
        self.flows.pop(task_id, None)
        self.timeouts.pop(task_id, None)
        self._on_outcome(unread(task_id, attempt, failure, now, is_foreign(data)))

    def close(self) -> None:
        """Closes kept connections, and writes the last lines about failures."""
        self.failures.flush(everything=True)
        for deliver in self._deliverers.values():
            deliver.close()
