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

UNKNOWN = "unknown"  # in place of the type, for a job in the queue that is not a task


def status_of(outcome: Outcome) -> str:
    """`delivered`, or the kind of the error."""
    return outcome.error or outcome.status


def member(task_id: str, outcome: Outcome) -> str:
    """The member of the sorted set for an outcome."""
    lateness = "" if outcome.lateness is None else f"{outcome.lateness:.6f}"
    return f"{task_id}:{outcome.attempt}:{status_of(outcome)}:{lateness}:{outcome.duration:.9f}"


def counter(task_type: str, outcome: Outcome) -> str:
    """The field of the totals for an outcome: `http:delivered`, `http:timeout`, …"""
    return f"{task_type}:{status_of(outcome)}"


@dataclass(slots=True)
class Samples:
    """Outcomes of one type, oldest first, as columns of equal length.

    Attributes:
        type: `address.type`.
        ended: Unix seconds.
        lateness, duration: seconds; lateness is NaN for retries.
        status: `delivered` or the kind of the error.
    """

    type: str
    ended: list[float] = field(default_factory=list)
    lateness: list[float] = field(default_factory=list)
    duration: list[float] = field(default_factory=list)
    status: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ended)


def read(redis: Redis, types: Sequence[str] | None = None, newest: int | None = None) -> list[Samples]:
    """Reads the outcomes that are kept, by type.

    Args:
        redis: a client.
        types: by default those that come with QTask, and all others that have totals.
        newest: most outcomes of each type, the newest ones; None for all.
    """
    return [_read_type(redis, one, newest) for one in (_types(_totals(redis)) if types is None else types)]


def _types(totals: Mapping[str, object]) -> list[str]:
    """All types: those of QTask in their order, then those of installed packages, and `UNKNOWN` at the end."""
    own = [*built_in()]
    return [*own, *sorted(totals.keys() - {*own, UNKNOWN}), UNKNOWN]


def _totals(redis: Redis) -> dict[str, dict[str, int]]:
    """How many outcomes there have been: by type, then by status."""
    totals: dict[str, dict[str, int]] = {}
    for name, count in statistics.read_totals(redis).items():
        task_type, _, status = name.rpartition(":")
        totals.setdefault(task_type, {})[status] = count
    return totals


def _read_type(redis: Redis, task_type: str, newest: int | None) -> Samples:
    samples = Samples(task_type)
    for raw, ended in statistics.read_members(redis, task_type, newest):
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
class TypeSummary:
    """Statistics of one type: totals by status of all outcomes so far, and the spread of those that are kept."""

    type: str
    totals: dict[str, int]
    sampled: int
    lateness: Spread | None
    duration: Spread | None


def summary(redis: Redis) -> list[TypeSummary]:
    """A summary of each type that has outcomes."""
    totals = _totals(redis)
    found = []
    for samples in read(redis, _types(totals)):
        if samples.type in totals or samples.ended:
            lateness = spread([late for late in samples.lateness if not math.isnan(late)])
            duration = spread(samples.duration)
            found.append(TypeSummary(samples.type, totals.get(samples.type, {}), len(samples), lateness, duration))
    return found


def spread(figures: Sequence[float]) -> Spread | None:
    """Percentiles by nearest rank; None without figures."""
    if not figures:
        return None
    ranked = sorted(figures)

    def at(share: float) -> float:
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    return Spread(at(0.50), at(0.95), at(0.99), ranked[-1])
