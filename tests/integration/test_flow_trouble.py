"""Flows in trouble, by the scripts on a real Redis: probes of a circuit breaker, lost slots, stock workers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.model.flow import Limits
from qtask.store import flows, keys, leases, stock_delivery, tasks
from qtask.store.flow_records import pause_flow
from qtask.store.leases import Settlement
from tests.integration.test_flows import (
    claim,
    end_rest,
    flow_keys,
    queued,
    release,
    send,
    settle,
    task,
    trip,
    waiting,
)

# --- circuit breakers ------------------------------------------------------------------------------------------------


def open_breaker(redis: Redis, count: int = 3) -> list[str]:
    """Opens the breaker of the flow `k`, ends its rest, and returns the tasks of which the first is the probe."""
    trip(redis)
    ids = send(redis, *[task("k")] * count)
    end_rest(redis)
    release(redis)
    assert queued(redis) == ids[:1]
    return ids


def trips(redis: Redis) -> int:
    found: Any = redis.hget(keys.FLOW_PREFIX + "k", "trips")
    return int(found or 0)


def test_probe_that_fails_otherwise_or_succeeds_at_any_worker_closes_the_breaker(redis: Redis) -> None:
    open_breaker(redis)
    settle(redis, claim(redis).items(), "failed")  # such as 404: the destination answers
    assert trips(redis) == 0
    redis.flushall()
    open_breaker(redis)
    settle(redis, claim(redis).items())  # by a worker that saw none of the failures
    assert trips(redis) == 0


def test_probe_that_is_cancelled_or_expires_is_followed_by_another(redis: Redis) -> None:
    ids = open_breaker(redis, 4)
    assert tasks.cancel(redis, ids[0]) == "queued"
    assert queued(redis) == ids[1:2]
    settle(redis, claim(redis).items(), "failed", unbegun=True)
    assert trips(redis) == 1 and queued(redis) == ids[2:3]


def test_tasks_that_were_queued_before_the_breaker_opened_wait_for_the_probe(redis: Redis) -> None:
    send(redis, *[task({"key": "k", "parallel": 50})] * 26)
    release(redis)
    settle(redis, claim(redis, 20).items(), "failed", health="bad")
    assert trips(redis) == 1 and len(queued(redis)) == 6
    assert claim(redis, 1) == {}, "it rests"
    end_rest(redis)
    assert claim(redis) == {}, "none of them is the probe"
    release(redis)
    assert len(queued(redis)) == 1 and len(claim(redis)) == 1
    assert claim(redis) == {} and len(waiting(redis, "k")) == 5


def test_outcomes_of_deliveries_that_began_before_do_not_close_the_breaker(redis: Redis) -> None:
    send(redis, *[task("k")] * 22)
    release(redis)
    claimed = list(claim(redis).items())
    settle(redis, claimed[:20], "failed", health="bad")
    settle(redis, claimed[20:21], health="good")
    settle(redis, claimed[21:], "failed", health="bad")
    assert trips(redis) == 1


def test_breaker_of_a_flow_without_tasks_is_forgotten(redis: Redis) -> None:
    trip(redis)
    end_rest(redis)
    assert 500 < release(redis) <= 600
    redis.hset(keys.FLOW_PREFIX + "k", "rest", time.time() - 601)
    redis.zadd(keys.FLOWS, {"k": 0})
    release(redis)
    assert flow_keys(redis) == set()


def test_outcomes_of_more_than_a_minute_ago_do_not_count(redis: Redis) -> None:
    trip(redis, 19)
    fields: Any = redis.hkeys(keys.HEALTH_PREFIX + "k")
    bucket = int(fields[0].decode().removeprefix("bad"))
    redis.delete(keys.HEALTH_PREFIX + "k")
    redis.hset(keys.HEALTH_PREFIX + "k", mapping={f"bad{bucket - 6}": 19})
    trip(redis, 1)
    assert trips(redis) == 0
    redis.hset(keys.HEALTH_PREFIX + "k", mapping={f"bad{bucket - 4}": 19})
    trip(redis, 1)
    assert trips(redis) == 1
    assert redis.ttl(keys.HEALTH_PREFIX + "k") <= 70


# --- slots that are lost -------------------------------------------------------------------------------------------


def test_slots_of_deleted_tasks_are_freed_and_no_others(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 4})] * 6)
    release(redis)
    claim(redis, 2)
    redis.delete(keys.job(ids[0]), keys.job(ids[2]))  # one is in flight, one is queued
    redis.zadd(keys.FLOWS, {"k": 0})
    release(redis)
    assert redis.zcard(keys.SLOTS_PREFIX + "k") == 4, "they may be moving just now"
    now = time.time()
    ages = {ids[0]: keys.FOREVER_SECONDS + now - 700, ids[1]: keys.FOREVER_SECONDS + now - 700}
    redis.zadd(keys.SLOTS_PREFIX + "k", {**ages, ids[2]: now - 40, ids[3]: now - 40})
    redis.zadd(keys.FLOWS, {"k": 0})
    release(redis)
    slots: Any = redis.zrange(keys.SLOTS_PREFIX + "k", 0, -1)
    assert {one.decode() for one in slots} == {ids[1], ids[3], ids[4], ids[5]}
    assert queued(redis)[-2:] == ids[4:]


@pytest.mark.parametrize("stock", [False, True])
def test_slot_of_a_retry_in_an_ordered_flow_is_not_lost(redis: Redis, stock: bool) -> None:
    ids = send(redis, *[task({"key": "k", "ordered": True})] * 2)
    release(redis)
    ((one, _),) = claim(redis).items()
    options = {"flow": "k", "delay": 3_600.0, "stock": stock}
    record = Settlement(one, "retry", b"{}", "", "", "", "", json.dumps(options).encode())
    leases.settle(Config(), "worker", [record]).run(redis)
    redis.zadd(keys.SLOTS_PREFIX + "k", {one: keys.FOREVER_SECONDS + time.time() - 7_000})
    redis.zadd(keys.FLOWS, {"k": 0})
    release(redis)
    assert queued(redis) == [] and waiting(redis, "k") == ids[1:]
    assert tasks.cancel(redis, one) == "scheduled"
    assert queued(redis) == ids[1:], "its successor waits no more"


def test_retry_that_is_due_while_its_ordered_flow_is_paused_waits_in_front(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "ordered": True})] * 3)
    release(redis)
    settle(redis, claim(redis).items(), "retry")
    pause_flow(redis, "k")
    release(redis)
    assert queued(redis) == [] and waiting(redis, "k") == ids
    pause_flow(redis, "k", False)
    release(redis)
    assert queued(redis) == ids[:1]


# --- stock workers -------------------------------------------------------------------------------------------------


def begin(redis: Redis) -> tuple[str, bool]:
    """A stock worker takes the first task of the queue; returns its id, and whether it may begin."""
    raw: Any = redis.lpop(keys.queue("qtask"))
    task_id = raw.decode()
    redis.zadd(keys.started("qtask"), {f"{task_id}:stock": time.time() + 60})
    return task_id, stock_delivery.read_begun(stock_delivery.begin(task_id, "qtask", "http://a").run(redis)).may_begin


def held_back(redis: Redis, task_id: str) -> None:
    options = {"delay": 0.0, "unbegun": True, "again": True, "stock": True}
    record = Settlement(task_id, "retry", b"", "waits", "", "", "", json.dumps(options).encode())
    leases.settle(Config(), "stock", [record]).run(redis)


def test_stock_worker_begins_only_what_was_admitted(redis: Redis) -> None:
    ids = send(redis, *[task("k")] * 3)
    release(redis)
    flows.set_limits("k", Limits(parallel=1)).run(redis)
    assert begin(redis) == (ids[0], False)
    held_back(redis, ids[0])
    release(redis)
    assert waiting(redis, "k") == [] and queued(redis) == [*ids[1:], ids[0]], "it was admitted now"
    assert begin(redis) == (ids[1], False)
    assert begin(redis) == (ids[2], False)
    assert begin(redis) == (ids[0], True)


def test_stock_worker_takes_tokens_and_frees_the_slot_of_what_it_may_not_begin(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "rate": 0.001, "per": 1.0, "burst": 2, "parallel": 2})] * 3)
    release(redis)
    assert begin(redis) == (ids[0], True)
    score: Any = redis.zscore(keys.SLOTS_PREFIX + "k", ids[0])
    assert score > keys.FOREVER_SECONDS, "in flight"
    flows.set_limits("k", Limits(rate=0.001, burst=1)).run(redis)
    assert begin(redis) == (ids[1], False)
    assert redis.zrange(keys.SLOTS_PREFIX + "k", 0, -1) == [ids[0].encode()]
    held_back(redis, ids[1])
    release(redis)
    assert waiting(redis, "k") == ids[1:]


def test_stock_worker_keeps_the_slot_of_an_ordered_flow(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "ordered": True})] * 2)
    release(redis)
    pause_flow(redis, "k")
    assert begin(redis) == (ids[0], False)
    pause_flow(redis, "k", False)
    release(redis)
    assert queued(redis) == [], "its successor does not overtake it"
    held_back(redis, ids[0])
    release(redis)
    assert queued(redis) == ids[:1]
