"""The ledger (how many tasks were accepted and how they ended), and how many jobs are in each place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from qtask.store import keys
from qtask.store.queries import Steps, query
from qtask.store.scripts import NoArguments, Script


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How many jobs of one queue are in each place."""

    queued: int
    started: int
    dead: int
    cancelled_by_rq: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The ledger and the number of jobs in each place, at one instant.

    Attributes:
        ledger: name of a counter to queue to count: `accepted`, `duplicates`, `delivered`, `expired` (of those that
            died), `cancelled`, `removed`, `dropped` (because too many are dead), `deleted` (by another program),
            `written_off`. `held` is how many wait in flows now. The queue is empty if it is not known.
        scheduled: jobs in the schedule, of all queues.
        stock_retries: tasks that are in the schedule and among the dead, because a stock worker will retry them.
        queues: figures of each queue that a task was ever accepted for, by its name.
    """

    ledger: dict[str, dict[str, int]]
    scheduled: int
    stock_retries: int
    queues: dict[str, QueueFigures]

    def total(self, what: str) -> int:
        """A counter over all queues."""
        return sum(self.ledger.get(what, {}).values())

    @property
    def owed(self) -> int:
        """How many tasks were accepted and have not ended in a way that the ledger counts."""
        return self.total("accepted") - sum(map(self.total, _ENDS))

    @property
    def held(self) -> int:
        """How many jobs are in the places of tasks that have not ended in such a way."""
        rest = sum(one.queued + one.started + one.dead + one.cancelled_by_rq for one in self.queues.values())
        return self.scheduled + rest + self.total("held") - self.stock_retries

    def scheduled_of(self, queue: str) -> int | None:
        """How many jobs of a queue are in the schedule; None if it cannot be derived from the ledger."""
        if self.owed != self.held or self.stock_retries or any(self.ledger.get(end, {}).get("") for end in _ENDS):
            return None
        counts = {name: self._scheduled_of(name) for name in self.queues}
        return counts.get(queue, 0) if min(counts.values(), default=0) >= 0 else None

    def _scheduled_of(self, queue: str) -> int:
        accepted, *ends = (self.ledger.get(what, {}).get(queue, 0) for what in ("accepted", *_ENDS))
        one = self.queues[queue]
        in_flows = self.ledger.get("held", {}).get(queue, 0)
        return accepted - sum(ends) - in_flows - one.queued - one.started - one.dead - one.cancelled_by_rq


_ENDS = ("delivered", "cancelled", "removed", "dropped", "deleted", "written_off")


class AuditKeys(NamedTuple):
    """See audit.lua."""

    ledger: str
    schedule: str
    stock_retries: str


class AuditReply(NamedTuple):
    """See audit.lua."""

    counts: list[bytes]
    scheduled: int
    retrying: int
    by_queue: list[list[Any]]


class AuditRow(NamedTuple):
    """See audit.lua."""

    name: bytes
    queued: int
    intermediate: int
    started: int
    dead: int
    cancelled: int


AUDIT = Script("audit", AuditKeys, NoArguments, replies=(AuditReply, AuditRow))


@query
def read_figures() -> Steps[Figures]:
    """Reads the ledger and the number of jobs in each place, in one step."""
    script_keys = AuditKeys(ledger=keys.LEDGER, schedule=keys.SCHEDULE, stock_retries=keys.STOCK_RETRIES)
    reply = AuditReply._make((yield AUDIT.call(script_keys, NoArguments())))
    ledger: dict[str, dict[str, int]] = {}
    for name, count in zip(reply.counts[::2], reply.counts[1::2], strict=True):
        what, _, queue = name.decode().partition(":")
        ledger.setdefault(what, {})[queue] = int(count)
    rows = map(AuditRow._make, reply.by_queue)
    queues = {
        row.name.decode(): QueueFigures(row.queued + row.intermediate, row.started, row.dead, row.cancelled)
        for row in rows
    }
    return Figures(ledger, reply.scheduled, reply.retrying, queues)
