"""The rate of a flow, by the scripts on a real Redis: series of claims, of which each window is counted.

Time in Redis cannot be moved, but the state of a rate is one instant, `tat`. Moving that back is the same as letting
time pass. So each claim has an exact instant: Redis's own, which it replies, and all that has passed in this way.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from qtask.destinations.parsing import check_task
from qtask.model.flow import Limits
from qtask.store import flows, keys, leases, schedule, stock_delivery
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

FLOW = "k"
QUEUE = "qtask"
RESERVE = 0.01  # of the span, which the windows keep for the way from a claim to its delivery
RESERVE_LIMIT = 0.05  # seconds
LEAST = 0.97
RATES = [
    *[Limits(rate=1.0), Limits(rate=1.0, burst=4), Limits(rate=0.5), Limits(rate=2.5), Limits(rate=2.5, burst=3)],
    *[Limits(rate=1.0, per=0.1), Limits(rate=7.0, per=0.1, burst=2), Limits(rate=100.0), Limits(rate=100.0, burst=50)],
    *[Limits(rate=1_000.0), Limits(rate=3.0, per=86_400.0, burst=2), Limits(rate=600.0, per=60.0, burst=30)],
    *[Limits(rate=0.7, per=3.0, burst=2), Limits(rate=20_000.0, per=1.0), Limits(rate=1.5, per=1.0)],
]


class Series:
    """Claims of the tasks of one flow.

    Args:
        redis: an empty database.
        limits: of the flow.
        count: tasks that are due.

    Attributes:
        instants: of the claims so far, in seconds.
    """

    def __init__(self, redis: Redis, limits: Limits, count: int) -> None:
        redis.flushall()
        self._redis = redis
        self._passed = 0.0
        self.instants: list[float] = []
        flows.set_limits(FLOW, limits).run(redis)
        settings = {"time": 0, "flow": FLOW}
        one = {"title": "t", "address": {"type": "http", "link": "http://a/"}, "settings": settings}
        submit(redis, Nodes(), Batch(QUEUE, [Submission(check_task(one))] * count))

    def pass_time(self, seconds: float) -> None:
        """Lets time pass for the flow."""
        self._passed += seconds
        if self._redis.hexists(keys.FLOW_PREFIX + FLOW, "tat"):
            self._redis.hincrbyfloat(keys.FLOW_PREFIX + FLOW, "tat", -seconds)
        self._redis.zadd(keys.FLOWS, {FLOW: 0})

    def claim(self, limit: int = 500) -> int:
        """Releases, admits and claims what may begin now; returns how many."""
        schedule.release(self._redis, 500)
        now, claimed = leases.read_claimed(leases.claim(QUEUE, "worker", limit).run(self._redis))
        count = len(list(claimed))
        self.instants += [now + self._passed] * count
        return count

    def wait(self) -> float:
        """Seconds until a scheduler looks at the flow; 0 when the claims of queued tasks will, or none waits."""
        wait = schedule.release(self._redis, 500).wait
        return 0.0 if self._redis.exists(keys.queue(QUEUE)) or math.isinf(wait) else wait


def spacing_of(limits: Limits) -> float:
    return limits.spacing


def per_of(limits: Limits) -> float:
    return 1.0 if not isinstance(limits.per, float) else limits.per


def burst_of(limits: Limits) -> int:
    return limits.burst if isinstance(limits.burst, int) else 1


def rate_of(limits: Limits) -> float:
    assert isinstance(limits.rate, float)
    return limits.rate


def check_windows(instants: list[float], limits: Limits) -> None:
    """No window of the span, and of a little more, has more than rate + burst - 1; a rate of 2.5 may have 3."""
    per = per_of(limits)
    window = per + min(RESERVE * per, RESERVE_LIMIT) - 1e-5  # instants are in microseconds
    most = math.ceil(rate_of(limits)) + burst_of(limits) - 1
    for first, last in zip(instants, instants[most:], strict=False):
        assert last - first >= window, (last - first, window, most)


STEPS = st.lists(
    st.one_of(
        st.just(0.0),  # of a spacing
        st.floats(0.0, 1.2),
        st.sampled_from([0.5, 0.98, 0.99, 1.0, 1.01, 1.02, 30.0]),
        st.just(-1.0),  # until a scheduler looks
    ),
    min_size=5,
    max_size=25,
)


def run_series(redis: Redis, limits: Limits, steps: list[float], limit: int) -> Series:
    series = Series(redis, limits, 250)
    series.claim(limit)
    for step in steps:
        series.pass_time(series.wait() if step < 0 else step * limits.spacing)
        series.claim(limit)
    return series


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=st.sampled_from(RATES), steps=STEPS, limit=st.sampled_from([1, 3, 500]))
@example(limits=RATES[0], steps=[0.99] * 20, limit=500)
@example(limits=RATES[8], steps=[30.0, 0.0, 0.5, 0.5, *[0.98] * 20], limit=500)
def test_no_window_has_more_than_rate_and_burst(redis: Redis, limits: Limits, steps: list[float], limit: int) -> None:
    series = run_series(redis, limits, steps, limit)
    assert series.instants
    check_windows(series.instants, limits)


@pytest.mark.parametrize("limits", [one for one in RATES if one.spacing < 20], ids=str)
def test_backlog_is_worked_off_at_the_rate_when_claims_follow_the_looks(redis: Redis, limits: Limits) -> None:
    series = Series(redis, limits, 120)
    began = time.monotonic()
    series.claim()
    looks = 0
    while len(series.instants) < 120:
        wait = series.wait()
        assert 0 <= wait <= max(30.0, limits.spacing)
        series.pass_time(wait)
        series.claim()
        looks += 1
        assert looks < 3_000
    check_windows(series.instants, limits)
    took = series.instants[-1] - series.instants[0]
    rest = 120 - series.instants.count(series.instants[0])
    late = time.monotonic() - began  # the steps of this test take time as well, by which each claim may be late
    assert took <= rest * limits.spacing / LEAST + late, (took, rest * limits.spacing, late)


@pytest.mark.parametrize("burst", [1, 2, 10, 100])
def test_burst_begins_at_once_after_a_pause(redis: Redis, burst: int) -> None:
    series = Series(redis, Limits(rate=1.0, burst=burst), 250)
    assert series.claim() == burst
    series.pass_time(2.5 * 1.02)
    assert series.claim() == 2 if burst > 1 else 1
    series.pass_time(1_000.0)
    assert series.claim() == burst


def test_faster_rate_does_not_wait_for_the_tokens_of_the_slower_one(redis: Redis) -> None:
    series = Series(redis, Limits(rate=1.0, per=86_400.0), 250)
    assert series.claim() == 1
    flows.set_limits(FLOW, Limits(rate=10.0)).run(redis)
    assert series.claim() == 0, "but it begins with no token"
    series.pass_time(0.1)
    assert series.claim() == 1
    changed = len(series.instants)
    for _ in range(30):
        series.pass_time(0.05)
        series.claim()
    check_windows(series.instants[changed - 1 :], Limits(rate=10.0))
    assert len(series.instants) - changed >= 13


def test_slower_rate_holds_from_its_first_delivery(redis: Redis) -> None:
    series = Series(redis, Limits(rate=100.0, burst=5), 250)
    assert series.claim() == 5
    flows.set_limits(FLOW, Limits(rate=1.0)).run(redis)
    for _ in range(40):
        series.pass_time(0.1)
        series.claim()
    check_windows(series.instants[5:], Limits(rate=1.0))
    assert 3 <= len(series.instants[5:]) <= 8


def test_same_limits_again_give_no_token_back(redis: Redis) -> None:
    limits = Limits(rate=1.0, burst=5)
    series = Series(redis, limits, 250)
    for _ in range(30):
        flows.set_limits(FLOW, limits).run(redis)
        series.claim()
        series.pass_time(0.1)
    check_windows(series.instants, limits)
    assert 7 <= len(series.instants) <= 12


def test_stock_workers_and_ours_share_the_tokens(redis: Redis) -> None:
    limits = Limits(rate=4.0, burst=2)
    series = Series(redis, limits, 60)
    for number in range(40):
        schedule.release(redis, 500)
        raw: Any = redis.lpop(keys.queue(QUEUE)) if number % 2 else None
        if raw is not None:
            begun = stock_delivery.read_begun(stock_delivery.begin(raw.decode(), QUEUE).run(redis))
            series.instants += [begun.now + series._passed] * begun.may_begin
        series.claim()
        series.pass_time(0.11)
    check_windows(series.instants, limits)
    took = series.instants[-1] - series.instants[0]
    assert len(series.instants) >= 4 * took * 0.8
    assert all(one <= following for one, following in pairwise(series.instants))
    assert time.time() < series.instants[-1], "time has passed"
