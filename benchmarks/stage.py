"""A system that is ready for measuring: a new Redis, the processes of the system, and the receiver."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from benchmarks import processes
from benchmarks.plan import Plan, Submitted
from benchmarks.receiver import Arrivals, Receiver
from benchmarks.redis_server import RedisServer
from benchmarks.system import Place, System

READY_SECONDS = 60.0  # for the first deliveries after the start of a system
_PROBES = 20
_LEAD_SECONDS = 1.0  # before the first task is due, in addition to the expected time of the submission
_FAR_SPREAD_SECONDS = 600.0
_LEARN_FROM = 100  # tasks; smaller submissions do not change the expected rate
_CAUTION = 0.7  # share of the measured rate that is expected of the next submission
_SETTLE_SECONDS = 1.0  # after which all processes are assumed to be ready


@dataclass(frozen=True)
class Used:
    """CPU seconds used until an instant."""

    delivering: float
    accepting: float
    redis: float
    receiver: float
    busy: float
    machine: float

    def minus(self, earlier: Used) -> Used:
        """The CPU seconds used since then."""
        return Used(
            self.delivering - earlier.delivering,
            self.accepting - earlier.accepting,
            self.redis - earlier.redis,
            self.receiver - earlier.receiver,
            self.busy - earlier.busy,
            self.machine - earlier.machine,
        )


class Stage:
    """A system with its own Redis; a context manager.

    Args:
        system: the system to measure.
        receiver: the receiver of all deliveries.
    """

    def __init__(self, system: System, receiver: Receiver) -> None:
        self.system = system
        self.receiver = receiver
        self.redis = RedisServer(system.shipped_redis)
        self._next_number = 1
        self._last = Plan(0, 0.0)

    def __enter__(self) -> Stage:
        self.redis.__enter__()
        self.place = Place(self.redis.url, self.receiver.url)
        try:
            self.system.start_accepting(self.place)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.system.stop()
        self.redis.__exit__()

    def start_delivering(self, slow: bool = False) -> None:
        """Starts schedulers and workers, and returns when they have delivered something."""
        self.system.start_delivering(self.place, slow)
        self.receiver.reset()
        probes = self._submit(Plan(_PROBES, 0.3, 0.5))
        if not self.wait(probes.last_due + READY_SECONDS):
            raise RuntimeError(f"{self.system.name} delivers nothing:\n{self.system.log_end()}")
        time.sleep(_SETTLE_SECONDS)

    def submit(self, count: int, spread: float = 0.0) -> Submitted:
        """Submits early enough for the submission to end before the first task is due."""
        return self._submit(Plan(count, count / self.system.submit_rate + _LEAD_SECONDS, spread))

    def submit_far(self, count: int, lead: float) -> Submitted:
        """Submits tasks that are due at random instants within minutes after `lead` seconds."""
        return self._submit(Plan(count, lead, _FAR_SPREAD_SECONDS))

    def wait(self, until: float) -> bool:
        """Waits until every task of the last submission has arrived; returns False if some have not by `until`."""
        wanted = self._last.count
        while self.receiver.wait(wanted, until):
            arrivals = self.receiver.arrivals()
            missing = self._last.count - arrivals.of(self._last.first, self._last.count).distinct
            if not missing:
                return True
            wanted = len(arrivals.number) + missing  # other tasks arrived as well, or some arrived twice
        return False

    def arrivals(self) -> Arrivals:
        """The arrivals of the last submission."""
        return self.receiver.arrivals().of(self._last.first, self._last.count)

    def _submit(self, plan: Plan) -> Submitted:
        plan = self._last = replace(plan, first=self._next_number)
        self._next_number += plan.count
        submitted = self.system.submit(self.place, plan)
        if plan.count >= _LEARN_FROM:
            self.system.submit_rate = _CAUTION * plan.count / submitted.seconds
        return submitted

    def used(self) -> Used:
        """CPU seconds used until now."""
        busy, machine = processes.machine_seconds()
        return Used(
            processes.cpu_seconds(self.system.delivering()),
            processes.cpu_seconds(self.system.accepting()),
            processes.cpu_seconds([self.redis.pid]),
            processes.cpu_seconds([self.receiver.pid]),
            busy,
            machine,
        )
