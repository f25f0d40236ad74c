"""Limits and timeouts that adapt, by the scripts on a real Redis: what they do after given outcomes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.model.errors import NotFound, Refused
from qtask.model.flow import Limits
from qtask.model.flow_record import FlowRecord
from qtask.store import flow_records, keys, leases, schedule
from qtask.store.leases import Settlement
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

KEY = "partner"
AHEAD = 5.0  # by which a worker's clock is ahead here, so that a delivery of seconds need not last seconds


class Adapting:
    """One flow, and a worker that delivers its tasks."""

    def __init__(self, redis: Redis, config: Config | None = None, **settings: Any) -> None:
        self.redis = redis
        self.settings = settings or {"flow": {"key": KEY, "parallel": "auto"}}
        self._config = config or Config(circuit_breaker=0)
        self._nodes = Nodes()
        self._count = 0
        if not settings:
            flow_records.set_flow(redis, KEY, Limits(parallel="auto"))

    @property
    def record(self) -> FlowRecord:
        return flow_records.show_flow(self.redis, KEY)

    @property
    def limit(self) -> int:
        limit = self.record.adapted
        assert limit is not None
        return limit

    @property
    def state(self) -> dict[str, Any]:
        """The field `adapting`."""
        found: Any = self.redis.hget(keys.FLOW_PREFIX + KEY, "adapting")
        return dict(json.loads(found))

    def set_state(self, **fields: Any) -> None:
        self.redis.hset(keys.FLOW_PREFIX + KEY, "adapting", json.dumps({**self.state, **fields}))

    def send(self, count: int) -> None:
        one = {"title": "t", "address": {"type": "http", "link": "http://a/"}, "settings": {"time": 0, **self.settings}}
        submit(self.redis, self._nodes, Batch("qtask", [Submission(check_task(one))] * count))
        schedule.release(self.redis, 1_000)

    def claim(self, limit: int) -> list[str]:
        reply = leases.claim("qtask", "worker", limit).run(self.redis)
        return [raw.decode() for raw, *_ in leases.read_claimed(reply)[1]]

    def settle(self, ids: list[str], results: Sequence[float | str], ago: float = -AHEAD, **options: Any) -> int:
        """Settles tasks in one batch; a result is the duration of a delivery, or the error of one of 50 ms."""
        ended = time.time() - ago
        records = []
        for task_id, result in zip(ids, results, strict=True):
            status, duration = (result, 0.05) if isinstance(result, str) else ("delivered", result)
            fate: Any = "failed" if isinstance(result, str) else "finished"
            bad = {"health": "bad"} if status in ("timeout", "connect", "status") else {}
            self._count += 1
            member = f"{task_id}:1:{status}:0.001:{duration:.9f}"
            more = json.dumps({"flow": KEY, **bad, **options}).encode()
            records.append(Settlement(task_id, fate, b"{}", "", f"http:{status}", f"{ended:.6f}", member, more))
        call = leases.settle(self._config, "worker", records)
        return leases.read_settled(call.run(self.redis)).settled

    def deliver(self, results: Sequence[float | str], waiting: int = 20, **settling: Any) -> None:
        """Delivers so many tasks, as many at once as the limit allows, while others wait."""
        self.send(len(results) + waiting)
        left = list(results)
        while left:
            ids = self.claim(len(left))
            assert 0 < len(ids) <= max(self.limit, 1)
            self.settle(ids, left[: len(ids)], **settling)
            left = left[len(ids) :]

    def round(self, duration: float, count: int = 0) -> None:
        """One round of deliveries that take equally long."""
        self.deliver([duration] * (count or max(8, self.limit)))


# --- parallel ----------------------------------------------------------------------------------------------------


def test_limit_doubles_at_first_and_grows_by_a_fifth_after_durations_rose(redis: Redis) -> None:
    flow = Adapting(redis)
    flow.send(1)
    assert (flow.limit, flow.record.adapted_why, flow.record.share) == (keys.FIRST_PARALLEL, "", None)
    limits = []
    for _ in range(4):
        flow.round(0.05)
        limits.append(flow.limit)
    assert limits == [10, 20, 40, 80]
    assert flow.record.adapted_why == "grew while tasks waited"
    flow.round(0.5)
    assert flow.limit < 40
    before = flow.limit
    flow.round(0.05)
    assert flow.limit == round(before * 1.2)


def test_limit_shrinks_when_durations_rise_and_says_so(redis: Redis) -> None:
    flow = Adapting(redis)
    for duration in (0.05, 0.05, 0.05):
        flow.round(duration)
    assert flow.limit == 40
    flow.round(0.12)  # with the 20 ms in QTask twice as long, so half of the 40 waits in the destination
    assert flow.limit == 28
    assert flow.record.adapted_why == "durations rose from 50 ms to 120 ms"
    assert flow.record.adapted_at == pytest.approx(time.time(), abs=30)
    for _ in range(12):
        flow.round(60.0 if flow.limit > 1 else 0.05)
        assert flow.limit >= 1


def test_limit_falls_at_once_when_deliveries_fail_and_recovers_slowly(redis: Redis) -> None:
    flow = Adapting(redis)
    for _ in range(3):
        flow.round(0.05)
    flow.round(0.2)
    high = flow.limit
    assert high > 20
    flow.deliver([0.05] * 17 + ["status"] * 3)
    assert flow.limit == high * 7 // 10
    assert flow.record.adapted_why == "3 of 20 failed"
    for _ in range(5):
        flow.round(0.05)
    assert flow.limit < high, "growth is slow near the limit that failed"
    flow.set_state(fell=time.time() - 60)
    for _ in range(3):
        flow.round(0.05)
    assert flow.limit > high, "a minute later that does not count any more"


@pytest.mark.parametrize("results", [["status"] * 2 + [0.5] * 28, ["rejected"] * 20 + [0.5] * 80])
def test_few_failures_and_quick_rejections_are_no_sign_of_load(redis: Redis, results: list[float | str]) -> None:
    flow = Adapting(redis)
    for _ in range(3):
        flow.round(0.5)
    flow.deliver(results)
    flow.round(0.5)
    assert flow.limit >= 80 and "grew" in flow.record.adapted_why


def test_durations_that_differ_by_nature_do_not_stop_growth(redis: Redis) -> None:
    flow, numbers = Adapting(redis), random.Random(1)
    for _ in range(25):
        flow.deliver([0.1 * numbers.lognormvariate(0, 0.8) for _ in range(max(8, flow.limit))])
    assert flow.limit > 200


def test_single_slow_delivery_hardly_counts(redis: Redis) -> None:
    flow = Adapting(redis)
    for _ in range(2):
        flow.round(0.05)
    flow.deliver([0.05] * 19 + [29.0], ago=-9.0)  # that one began before the round
    flow.deliver([0.05] * 19 + [8.0], ago=-9.0)
    assert flow.limit >= 20


def test_limit_that_is_not_used_does_not_grow(redis: Redis) -> None:
    flow = Adapting(redis)
    flow.round(0.05)
    flow.settle(flow.claim(100), [0.05] * flow.record.in_flight)
    while flow.record.waiting or flow.record.slots_used:
        ids = flow.claim(100)
        flow.settle(ids, [0.05] * len(ids))
    before = flow.limit
    for _ in range(5 * before):
        flow.deliver([0.05], waiting=0)
    assert flow.limit == before


def test_limit_stays_within_the_configured_most(redis: Redis) -> None:
    flow = Adapting(redis, Config(flow_parallel_limit=12, circuit_breaker=0))
    for _ in range(4):
        flow.round(0.05)
    assert flow.limit == 12
    flow.round(0.05)
    assert flow.limit == 12
    for _ in range(8):
        flow.deliver(["timeout"] * 4)
    assert flow.limit == 1
    assert flow.record.adapted_why in ("4 of 4 failed", "2 of 2 failed", "3 of 3 failed")


@pytest.mark.parametrize(("ago", "since"), [(60.0, 0.0), (5.0, None)])
def test_outcomes_from_before_the_last_change_or_long_ago_do_not_count(
    redis: Redis, ago: float, since: float | None
) -> None:
    flow = Adapting(redis)
    flow.round(0.05)
    before = flow.limit
    if since is not None:
        flow.set_state(since=since)
    for _ in range(3):
        flow.deliver(["timeout"] * before, ago=ago)
        flow.deliver([1.0] * before, ago=ago)
    assert flow.limit == before


def test_clock_that_is_set_back_does_not_stop_adapting(redis: Redis) -> None:
    flow = Adapting(redis)
    flow.round(0.05)
    hour = time.time() + 3_600
    flow.set_state(since=hour, based=hour, began=hour)
    flow.round(0.05)
    assert flow.limit == 20


def test_duration_without_load_is_measured_again_with_half_of_the_limit(redis: Redis) -> None:
    flow = Adapting(redis)
    for _ in range(3):
        flow.round(0.05)
    flow.round(0.2)
    for _ in range(3):
        flow.round(0.06)  # the destination has become slower
    before = flow.limit
    flow.set_state(based=time.time() - 60, rounds=100)
    flow.round(0.06)
    assert flow.limit == before // 2
    assert flow.record.adapted_why == "durations are measured with half of it"
    for _ in range(2):
        assert flow.limit == before // 2
        flow.round(0.06)
    assert flow.limit == before
    flow.round(0.06)
    assert flow.limit == round(1.2 * before), "60 ms are what it takes now"


def test_settlements_sent_again_count_once(redis: Redis) -> None:
    flow = Adapting(redis)
    flow.send(20)
    ids = flow.claim(100)
    results: list[float | str] = ["status", *[0.05] * (len(ids) - 1)]
    assert flow.settle(ids, results) == len(ids)
    assert flow.state["bad"] == 1
    assert flow.settle(ids, results) == 0
    assert flow.state["bad"] == 1 and flow.limit == keys.FIRST_PARALLEL


def test_flow_with_a_fixed_limit_keeps_no_state_of_adapting(redis: Redis) -> None:
    flow = Adapting(redis, flow={"key": KEY, "parallel": 5})
    flow.send(20)
    flow.settle(flow.claim(5), [0.05] * 5)
    assert set(redis.hkeys(keys.FLOW_PREFIX + KEY)) == {b"made", b"parallel", b"waits"}
    assert flow.record.adapted is None
    flow_records.set_flow(redis, KEY, Limits(parallel="auto"))
    assert flow.record.adapted == keys.FIRST_PARALLEL
    flow_records.remove_flow(redis, KEY)
    assert set(redis.hkeys(keys.FLOW_PREFIX + KEY)) == {b"made"}


def test_other_texts_than_auto_are_rejected(redis: Redis) -> None:
    with pytest.raises(Refused) as refused:
        Adapting(redis, flow={"key": KEY, "parallel": "many"}).send(1)
    assert refused.value.field == "settings.flow.parallel"
    assert refused.value.message.endswith("deliveries in flight at most, such as 50, or auto")


# --- timeout -----------------------------------------------------------------------------------------------------


def timed(redis: Redis) -> Adapting:
    return Adapting(redis, flow=KEY, timeout="auto")


def claimed_timeouts(flow: Adapting) -> list[float | None]:
    flow.send(3)
    reply = leases.claim("qtask", "worker", 3).run(flow.redis)
    found = leases.read_flows(reply, 0)
    assert set(found.names.values()) == {KEY}
    return list(found.timeouts.values())


def learn(flow: Adapting, *results: float | str, ago: float = 0.0) -> None:
    flow.send(len(results))
    flow.settle(flow.claim(len(results)), list(results), ago=ago, timed=True)


def test_timeout_is_unknown_at_first_and_then_twice_what_deliveries_need(redis: Redis) -> None:
    flow = timed(redis)
    assert claimed_timeouts(flow) == [None] * 3
    learn(flow, 3.0)
    assert claimed_timeouts(flow) == [18.0] * 3, "2 * (3 + 4 * 1.5)"
    learn(flow, *[3.0] * 100)
    assert claimed_timeouts(flow) == [pytest.approx(6.0, abs=0.01)] * 3
    record = flow.record
    assert record.timeout == pytest.approx(6.0, abs=0.01) and record.duration_mean == pytest.approx(3.0)
    assert 0 < int(redis.ttl(keys.TIMEOUT_PREFIX + KEY)) <= 86_400


def test_timeout_is_at_least_a_second_and_at_most_the_default(redis: Redis) -> None:
    flow = timed(redis)
    learn(flow, *[0.01] * 50)
    assert claimed_timeouts(flow) == [1.0] * 3
    learn(flow, *[25.0] * 5)
    assert claimed_timeouts(flow) == [30.0] * 3


def test_slowest_delivery_of_the_last_minutes_stays_possible(redis: Redis) -> None:
    flow = timed(redis)
    learn(flow, 5.0, *[0.01] * 300)
    assert claimed_timeouts(flow) == [10.0] * 3
    found: Any = redis.get(keys.TIMEOUT_PREFIX + KEY)
    timing = {**json.loads(found), "turned": time.time() - 400}
    redis.set(keys.TIMEOUT_PREFIX + KEY, json.dumps(timing))
    learn(flow, 0.01)
    assert claimed_timeouts(flow) == [10.0] * 3
    redis.set(keys.TIMEOUT_PREFIX + KEY, json.dumps({**timing, "turned": time.time() - 700}))
    learn(flow, 0.01)
    assert claimed_timeouts(flow) == [1.0] * 3


def test_timeout_doubles_once_for_deliveries_that_began_together(redis: Redis) -> None:
    flow = timed(redis)
    learn(flow, *[0.01] * 50)
    learn(flow, *["timeout"] * 3)
    assert claimed_timeouts(flow) == [2.0] * 3
    learn(flow, "timeout", ago=10)  # it began before
    assert claimed_timeouts(flow) == [2.0] * 3
    for expected in (4.0, 8.0, 16.0, 30.0, 30.0):
        learn(flow, "timeout", ago=-AHEAD)
        assert claimed_timeouts(flow) == [expected] * 3
    learn(flow, 6.0)
    assert claimed_timeouts(flow) == [pytest.approx(12, abs=3)] * 3


def test_task_with_a_fixed_timeout_teaches_nothing(redis: Redis) -> None:
    flow = Adapting(redis, flow=KEY, timeout=5)
    flow.send(3)
    assert leases.read_flows(leases.claim("qtask", "worker", 3).run(redis), 0).timeouts == {}
    assert redis.keys(keys.TIMEOUT_PREFIX + "*") == []
    with pytest.raises(NotFound):
        flow_records.show_flow(redis, KEY)


def test_task_with_timeout_auto_belongs_to_its_destination(redis: Redis) -> None:
    flow = Adapting(redis, timeout="auto")
    flow.send(1)
    (one,) = flow.claim(1)
    assert redis.hget(keys.job(one), "extra") == b'{"flow":"http://a","timed":true}'
    assert redis.hget(keys.job(one), "timeout") is None, "its lease lasts as long as that of any other task"
