"""Timing statistics in Redis sorted sets: one member per outcome, by the end of its delivery.

A member is `id:attempt:status:lateness:duration` (in seconds; lateness has six decimals, duration nine). The status is
`delivered` or the kind of the error. The lateness is empty for retries. The sorted sets are bounded in number and age;
a hash has the exact totals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from redis import Redis

from qtask.destinations.registry import built_in
from qtask.model.outcome import Outcome
from qtask.store import statistics

UNKNOWN = "unknown"  # in place of the kind, for a job in the queue that is not a task


def status_of(outcome: Outcome) -> str:
    """`delivered`, or the kind of the error."""
    return outcome.error or outcome.status


def member(task_id: str, outcome: Outcome) -> str:
    """The member of the sorted set for an outcome."""
    lateness = "" if outcome.lateness is None else f"{outcome.lateness:.6f}"
    return f"{task_id}:{outcome.attempt}:{status_of(outcome)}:{lateness}:{outcome.duration:.9f}"


def counter(kind: str, outcome: Outcome) -> str:
    """The field of the totals for an outcome: `http:delivered`, `http:timeout`, …"""
    return f"{kind}:{status_of(outcome)}"


@dataclass(slots=True)
class Samples:
    """Outcomes of one kind, oldest first, as columns of equal length.

    Attributes:
        kind: `address.type`.
        ended: Unix seconds.
        lateness, duration: seconds; lateness is NaN for retries.
        status: `delivered` or the kind of the error.
    """

    kind: str
    ended: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    duration: list[float] = field(default_factory=list)
    status: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ended)


def read(redis: Redis, kinds: Sequence[str] | None = None, newest: int | None = None) -> list[Samples]:
    """Reads the outcomes that are kept, by kind.

    Args:
        redis: a client.
        kinds: by default those that come with QTask, and all others that have totals.
        newest: most outcomes of each kind, the newest ones; None for all.
    """
    return [_read_kind(redis, kind, newest) for kind in (_kinds(_totals(redis)) if kinds is None else kinds)]


def _kinds(totals: Mapping[str, object]) -> list[str]:
    """All kinds: those of QTask in their order, then those of installed packages, and `UNKNOWN` at the end."""
    own = [*built_in()]
    return [*own, *sorted(totals.keys() - {*own, UNKNOWN}), UNKNOWN]


def _totals(redis: Redis) -> dict[str, dict[str, int]]:
    """How many outcomes there have been: by kind, then by status."""
    totals: dict[str, dict[str, int]] = {}
    for name, count in statistics.read_totals(redis).items():
        kind, _, status = name.rpartition(":")
        totals.setdefault(kind, {})[status] = count
    return totals


def _read_kind(redis: Redis, kind: str, newest: int | None) -> Samples:
    samples = Samples(kind)
    for raw, ended in statistics.read_members(redis, kind, newest):
        parts = raw.decode("utf-8", "replace").rsplit(":", 3)
        try:
            lateness, duration = float(parts[2] or "nan"), float(parts[3])
        except (IndexError, ValueError):
            continue  # a member from another program must not hide ours
        samples.ended.append(ended)
        samples.lateness.append(lateness)
        samples.duration.append(duration)
        samples.status.append(parts[1])
    return samples


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a figure, in seconds."""

    p50: float
    p95: float
    p99: float
    largest: float


@dataclass(frozen=True, slots=True)
class KindSummary:
    """Statistics of one kind: totals by status of all outcomes so far, and the spread of those that are kept."""

    kind: str
    totals: dict[str, int]
    sampled: int
    lateness: Spread | None
    duration: Spread | None


def summary(redis: Redis) -> list[KindSummary]:
    """A summary of each kind that has outcomes."""
    totals = _totals(redis)
    found = []
    for samples in read(redis, _kinds(totals)):
        if samples.kind in totals or samples.ended:
            lateness = spread([late for late in samples.lateness if not math.isnan(late)])
            duration = spread(samples.duration)
            found.append(KindSummary(samples.kind, totals.get(samples.kind, {}), len(samples), lateness, duration))
    return found


def spread(figures: Sequence[float]) -> Spread | None:
    """Percentiles by nearest rank; None without figures."""
    if not figures:
        return None
    ranked = sorted(figures)

    def at(share: float) -> float:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    return Spread(at(0.50), at(0.95), at(0.99), ranked[-1])
