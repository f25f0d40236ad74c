"""Statistics in Redis sorted sets: limits, percentiles, summaries, and foreign members."""

from __future__ import annotations

import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.model.outcome import Outcome
from qtask.observe import stats
from qtask.observe.stats import Spread
from qtask.store import keys
from tests.support.statistics import KEPT_FOR_LONG, record

NOW = 1_795_489_515.0


def outcome(ended: float, lateness: float = 0.001, duration: float = 0.01, error: Any = "") -> Outcome:
    status = "failed" if error else "delivered"
    return Outcome(status, ended - duration, ended, lateness, duration, error=error)  # type: ignore[arg-type]


def test_recorded_outcome_is_read_back(redis: Redis) -> None:
    record(redis, "http", "ID--1", outcome(NOW, 0.0025, 0.125))
    record(redis, "http", "ID--2", outcome(NOW + 1, 0.5, 30.0, "timeout"))
    record(redis, "pipe", "ID--3", outcome(NOW + 2))
    by_kind = {samples.type: samples for samples in stats.read(redis)}
    http = by_kind["http"]
    assert (http.ended, http.lateness, http.duration) == ([NOW, NOW + 1], [0.0025, 0.5], [0.125, 30.0])
    assert http.status == ["delivered", "timeout"]
    assert {kind: len(samples) for kind, samples in by_kind.items()} == {
        "http": 2,
        "socket": 0,
        "udp": 0,
        "pipe": 1,
        "redis": 0,
        "websocket": 0,
        "__graph__": 0,
        "unknown": 0,
    }
    assert redis.hgetall(keys.COUNTERS) == {b"http:delivered": b"1", b"http:timeout": b"1", b"pipe:delivered": b"1"}


def test_each_attempt_of_a_task_counts_once(redis: Redis) -> None:
    for attempt in (1, 2):
        one = Outcome("delivered", NOW, NOW, 0.0, 0.0, attempt=attempt)
        record(redis, "http", "ID", one)
    assert len(stats.read(redis, ["http"])[0]) == 2


def test_retried_dead_letter_counts_again_even_with_an_equal_duration(redis: Redis) -> None:
    """Equal in microseconds. Its attempts start at 1 again, and its lateness is not measured a second time."""
    for duration in (0.000_842_1, 0.000_842_3):
        record(redis, "http", "ID", Outcome("delivered", NOW, NOW, None, duration))
    assert len(stats.read(redis, ["http"])[0]) == 2


def test_samples_are_bounded_in_number_and_totals_are_not(redis: Redis) -> None:
    config = replace(KEPT_FOR_LONG, stats_retention_count=100)
    for number in range(150):
        record(redis, "http", f"ID{number}", outcome(NOW + number), config)
    (samples,) = stats.read(redis, ["http"])
    assert samples.ended == [NOW + number for number in range(50, 150)], "the newest are kept"
    assert stats.summary(redis)[0].totals == {"delivered": 150}


def test_samples_are_bounded_in_age(redis: Redis) -> None:
    config = Config(stats_retention_seconds=600)
    now = float(redis.time()[0])
    for age in (3_000, 601, 300, 0):
        record(redis, "http", f"ID{age}", outcome(now - age), config)
    assert stats.read(redis, ["http"])[0].ended == [now - 300, now]


def test_only_the_newest_can_be_read(redis: Redis) -> None:
    for number in range(10):
        record(redis, "socket", f"ID{number}", outcome(NOW + number))
    assert stats.read(redis, ["socket"], newest=3)[0].ended == [NOW + 7, NOW + 8, NOW + 9]
    assert len(stats.read(redis, ["socket"], newest=30)[0]) == 10


def test_several_chunks_are_read_completely_and_in_order(redis: Redis) -> None:
    members = {f"ID{number:05}:1:delivered:0.001000:0.002000": NOW + number for number in range(45_000)}
    redis.zadd(keys.stats("http"), members)
    (samples,) = stats.read(redis, ["http"])
    assert samples.ended == [NOW + number for number in range(45_000)]


@pytest.mark.parametrize(
    "foreign", [b"", b"x", b"a:b:c:d:e", b"\xff\xfe", b"ID:1:delivered:0.1", b"ID:1:delivered:0.1:"]
)
def test_foreign_members_are_ignored(redis: Redis, foreign: bytes) -> None:
    record(redis, "http", "ID", outcome(NOW))
    redis.zadd(keys.stats("http"), {foreign: NOW - 1})
    assert stats.read(redis, ["http"])[0].ended == [NOW]
    assert stats.summary(redis)[0].sampled == 1


@pytest.mark.parametrize("count", [100, 1_000, 12_345])
def test_percentiles_match_a_reference(count: int) -> None:
    """By the nearest rank: the share of samples up to it is at least p, and less than p without it. The cut points of
    the standard library are at most one sample away."""
    generator = random.Random(count)
    figures = [generator.lognormvariate(-6, 1) for _ in range(count)]
    ranked = sorted(figures)
    found = stats.spread(figures)
    assert found is not None
    cuts = statistics.quantiles(figures, n=100, method="inclusive")
    for percent, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        up_to = sum(figure <= value for figure in figures)
        assert 100 * up_to >= percent * count > 100 * (up_to - 1)
        rank = ranked.index(value)
        assert ranked[max(0, rank - 1)] <= cuts[percent - 1] <= ranked[min(count - 1, rank + 1)]
    assert found.largest == max(figures)


def test_percentiles_of_few_samples() -> None:
    assert stats.spread([]) is None
    assert stats.spread([3.0]) == Spread(3.0, 3.0, 3.0, 3.0)
    assert stats.spread([2.0, 1.0]) == Spread(1.0, 2.0, 2.0, 2.0)
    assert stats.spread([float(n) for n in range(100, 0, -1)]) == Spread(50.0, 95.0, 99.0, 100.0)


def test_summary_has_each_type_with_outcomes(redis: Redis) -> None:
    assert stats.summary(redis) == []
    for number in range(1, 101):
        error = "status" if number > 90 else ""
        record(redis, "http", f"ID{number}", outcome(NOW + number, number / 1000, number / 100, error))
    record(redis, "unknown", "ID", outcome(NOW, 0.0, 0.0, "refused"))
    http, unknown = stats.summary(redis)
    assert (http.type, http.totals, http.sampled) == ("http", {"delivered": 90, "status": 10}, 100)
    assert http.lateness == Spread(0.05, 0.095, 0.099, 0.1)
    assert http.duration == Spread(0.5, 0.95, 0.99, 1.0)
    assert (unknown.type, unknown.totals, unknown.sampled) == ("unknown", {"refused": 1}, 1)


def test_summary_without_samples_has_the_totals(redis: Redis) -> None:
    redis.hset(keys.COUNTERS, "pipe:delivered", 7)
    (pipe,) = stats.summary(redis)
    assert (pipe.type, pipe.totals, pipe.sampled, pipe.lateness, pipe.duration) == (
        "pipe",
        {"delivered": 7},
        0,
        None,
        None,
    )
