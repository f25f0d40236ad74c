"""The scripts of a worker: claim tasks under a lease, give them back, and settle them.

Each function makes a call, which the caller runs over its own connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from qtask.config import Config
from qtask.model.outcome import OUTCOMES_KEEP
from qtask.model.task import DEFAULT_TIMEOUT_SECONDS
from qtask.store import keys
from qtask.store.scripts import Call, Script, Value

CLAIM_BYTES = 4_194_304  # of dicts; a claim that has reached this takes no more tasks
LEASE_MARGIN_SECONDS = 15.0  # by which a lease is longer than the task's timeout

# --- claiming ------------------------------------------------------------------------------------------------------


class ClaimKeys(NamedTuple):
    """See claim.lua."""

    queue: str
    started: str
    failed: str
    stock_retries: str
    ledger: str
    schedule: str
    flows: str
    queues: str


class ClaimArguments(NamedTuple):
    """See claim.lua."""

    limit: int
    bytes_limit: int
    token: str
    queue_name: str
    margin_seconds: float
    known_version: int
    default_timeout: float
    outcomes_keep: int


class ClaimReply(NamedTuple):
    """See claim.lua. It has a list per column, so that the hottest path makes no object per task."""

    now: bytes
    ids: list[bytes]
    attempts: list[int]
    dues: list[bytes]
    data: list[bytes]
    flow_names: list[Any]
    timeouts: list[Any]
    version: int
    destinations: list[bytes]
    paused: int


CLAIM = Script("claim", ClaimKeys, ClaimArguments, replies=(ClaimReply,))

Claimed = tuple[bytes, int, bytes, bytes]
"""Id; attempt, from 1, negative if the task was dead and has been retried; due in Unix seconds, empty if a stock
rqscheduler did not write it; the job's data."""


def claim(
    queue: str,
    token: str,
    limit: int,
    bytes_limit: int = CLAIM_BYTES,
    margin: float = LEASE_MARGIN_SECONDS,
    known_version: int = 0,
) -> Call:
    """Claims up to `limit` tasks of a queue; `read_claimed` reads the reply.

    Args:
        queue: its name.
        token: of the worker.
        limit: tasks.
        bytes_limit: bytes of dicts after which no more tasks are claimed.
        margin: seconds by which a lease is longer than the task's timeout.
    """
    return CLAIM.call(
        ClaimKeys(
            queue=keys.queue(queue),
            started=keys.started(queue),
            failed=keys.failed(queue),
            stock_retries=keys.STOCK_RETRIES,
            ledger=keys.LEDGER,
            schedule=keys.SCHEDULE,
            flows=keys.FLOWS,
            queues=keys.QUEUES,
        ),
        ClaimArguments(
            limit=limit,
            bytes_limit=bytes_limit,
            token=token,
            queue_name=queue,
            margin_seconds=margin,
            known_version=known_version,
            default_timeout=DEFAULT_TIMEOUT_SECONDS,
            outcomes_keep=OUTCOMES_KEEP,
        ),
    )


def read_claimed(reply: list[Any]) -> tuple[float, Iterator[Claimed]]:
    """Redis's time in Unix seconds, and what was claimed."""
    claimed = ClaimReply._make(reply)
    return float(claimed.now), zip(claimed.ids, claimed.attempts, claimed.dues, claimed.data, strict=True)


class ClaimedFlows(NamedTuple):
    """What a reply to a claim says of flows.

    Attributes:
        names: of the flow of each task that has one, by the task's id.
        timeouts: of the tasks whose timeout adapts: seconds, None where they are not known; by the task's id.
        version: to be given with the next claim.
        destinations: names of the flows with state that tasks belong to without naming them; None where they are as
            they were at the version that was given.
    """

    names: dict[bytes, str]
    timeouts: dict[bytes, float | None]
    version: int
    destinations: frozenset[str] | None


def read_flows(reply: list[Any], known_version: int) -> ClaimedFlows:
    """What a reply to a claim says of flows."""
    claimed = ClaimReply._make(reply)
    names = claimed.flow_names
    by_id = {claimed.ids[index]: name.decode() for index, name in zip(names[::2], names[1::2], strict=True)}
    timed = zip(claimed.timeouts[::2], claimed.timeouts[1::2], strict=True)
    seconds = {claimed.ids[index]: float(value) if value else None for index, value in timed}
    if claimed.version == known_version:
        return ClaimedFlows(by_id, seconds, known_version, None)
    return ClaimedFlows(by_id, seconds, claimed.version, frozenset(name.decode() for name in claimed.destinations))


# --- giving back ---------------------------------------------------------------------------------------------------


class NackKeys(NamedTuple):
    """See nack.lua."""

    started: str
    queue: str
    ledger: str


class NackArguments(NamedTuple):
    """See nack.lua."""

    token: str
    queue_name: str


NACK = Script("nack", NackKeys, NackArguments)


def nack(queue: str, token: str, kept: Iterable[Value]) -> Call:
    """Gives a worker's claimed tasks back to their queue, except the ids in `kept`; the reply is how many."""
    return NACK.call(
        NackKeys(started=keys.started(queue), queue=keys.queue(queue), ledger=keys.LEDGER),
        NackArguments(token=token, queue_name=queue),
        rest=kept,
    )


# --- settling ------------------------------------------------------------------------------------------------------

Fate = Literal["finished", "failed", "retry"]
Health = Literal["good", "bad"]


class Settlement(Struct, gc=False):
    """How a claim ends; see settle.lua. A struct, because a named tuple takes three times as long to make.

    Attributes:
        id: stored id of the task.
        fate: where the task goes.
        outcome: JSON on one line, empty for none.
        error: the error in words.
        counter: counter to increment, `type:status`.
        ended: end of the delivery in Unix seconds.
        member: member of the statistics.
        options: `SettleOptions` as JSON, empty for none.
    """

    id: str
    fate: Fate
    outcome: bytes
    error: str
    counter: str
    ended: str
    member: str
    options: bytes = b""


class SettleOptions(Struct, omit_defaults=True):
    """Options that only some settlements have.

    Attributes:
        again: the task has earlier outcomes, which this one is added to.
        unbegun: the claim led to no delivery, so its attempt does not count.
        delay: seconds until the next attempt.
        remember: seconds for which the id, which the client chose, is remembered.
        foreign: another program put the job into Redis.
        stock: the settlement comes from a stock RQ worker.
        attempt: the settlement is sent again because its reply was lost; it is for this attempt and no later one.
        flow: name of the flow in which the task may hold a slot, or which the outcome counts for.
        health: what the outcome says of the destination, where that is counted.
        rest: seconds for which the destination wants no deliveries.
        timed: the timeout of the task adapts, so its duration is noted.
    """

    again: bool = False
    unbegun: bool = False
    delay: float | None = None
    remember: float | None = None
    foreign: bool = False
    stock: bool = False
    attempt: int | None = None
    flow: str | None = None
    health: Health | None = None
    rest: float | None = None
    timed: bool = False


class SettleKeys(NamedTuple):
    """See settle.lua."""

    started: str
    finished: str
    failed: str
    queue: str
    counters: str
    schedule: str
    ledger: str
    stock_retries: str
    flows: str
    queues: str


class SettleArguments(NamedTuple):
    """See settle.lua."""

    token: str
    queue_name: str
    retention_count: int
    retention_seconds: float
    stats_retention_count: int
    stats_retention_seconds: float
    dead_retention_count: int
    outcomes_keep: int
    breaker_outcomes: int
    flow_parallel_limit: int
    timeout_limit: float


class Settled(NamedTuple):
    """The reply of `settle`.

    Attributes:
        settled: how many tasks were settled; the leases of the others had been reclaimed, or were of a later attempt.
        dropped: stored ids of dead tasks that were removed because too many are dead.
    """

    settled: int
    dropped: list[bytes]


SETTLE = Script("settle", SettleKeys, SettleArguments, each=Settlement, replies=(Settled,))


def settle(config: Config, token: str, settlements: Iterable[Settlement]) -> Call:
    """Ends claims of a worker of `config.queue`; `read_settled` reads the reply."""
    queue = config.queue
    return SETTLE.call(
        SettleKeys(
            started=keys.started(queue),
            finished=keys.finished(queue),
            failed=keys.failed(queue),
            queue=keys.queue(queue),
            counters=keys.COUNTERS,
            schedule=keys.SCHEDULE,
            ledger=keys.LEDGER,
            stock_retries=keys.STOCK_RETRIES,
            flows=keys.FLOWS,
            queues=keys.QUEUES,
        ),
        SettleArguments(
            token=token,
            queue_name=queue,
            retention_count=config.retention_count,
            retention_seconds=config.retention_seconds,
            stats_retention_count=config.stats_retention_count,
            stats_retention_seconds=config.stats_retention_seconds,
            dead_retention_count=config.dead_retention_count,
            outcomes_keep=OUTCOMES_KEEP,
            breaker_outcomes=config.circuit_breaker,
            flow_parallel_limit=config.flow_parallel_limit,
            timeout_limit=DEFAULT_TIMEOUT_SECONDS,
        ),
        records=settlements,
    )


def read_settled(reply: list[Any]) -> Settled:
    """Parses the reply of `settle`."""
    return Settled._make(reply)
