"""Flows that have only a parallel limit: their score in the set of all flows says it, and stays true."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from redis import Redis

from qtask.destinations.parsing import check_task
from qtask.model.flow import Changes, Limits
from qtask.model.flow_rule import FlowRule
from qtask.store import flows, keys
from qtask.store.flow_records import pause_flow, set_flow
from qtask.store.flow_rules import set_rules
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit
from tests.integration.test_flows import claim, queued, release, send, settle, task, trip, waiting

SIMPLE = {"key": "k", "parallel": 2}


def score(redis: Redis) -> float:
    found: Any = redis.zscore(keys.FLOWS, "k")
    return float(found)


def parallel(redis: Redis) -> float | None:
    """The limit that the score tells; None if it tells none."""
    return score(redis) - keys.SIMPLE_FLOW if keys.SIMPLE_FLOW <= score(redis) < math.inf else None


def test_score_tells_the_limit_while_no_task_waits(redis: Redis) -> None:
    ids = send(redis, task(SIMPLE), task(SIMPLE))
    assert parallel(redis) == 2
    assert math.isinf(release(redis)), "there is nothing to look at"
    assert queued(redis) == ids and parallel(redis) == 2
    third = send(redis, task(SIMPLE))
    release(redis)
    assert waiting(redis, "k") == third and score(redis) < time.time() + 60
    settle(redis, claim(redis).items())
    assert queued(redis) == third and parallel(redis) == 2
    settle(redis, claim(redis).items())
    assert parallel(redis) == 2 and redis.zcard(keys.SLOTS_PREFIX + "k") == 0
    assert redis.hkeys(keys.FLOW_PREFIX + "k") == [b"made", b"parallel"]


def test_limit_that_a_task_changes_holds_at_once(redis: Redis) -> None:
    send(redis, task(SIMPLE))
    ids = send(redis, *[task({"key": "k", "parallel": 3})] * 3)
    assert parallel(redis) == 3
    release(redis)
    assert len(queued(redis)) == 3 and waiting(redis, "k") == ids[2:]


@pytest.mark.parametrize(
    "limits", [{"rate": 1.0}, {"parallel": 2, "rate": 1.0}, {"ordered": True}, {"parallel": "auto"}], ids=str
)
def test_further_limits_of_a_task_end_it(redis: Redis, limits: dict[str, Any]) -> None:
    send(redis, task(SIMPLE))
    assert parallel(redis) == 2
    send(redis, task({"key": "k", **limits}))
    assert parallel(redis) is None


def test_limits_that_people_set_end_it_and_may_begin_it(redis: Redis) -> None:
    send(redis, task(SIMPLE))
    set_flow(redis, "k", Changes(rate=5.0))
    release(redis)
    assert parallel(redis) is None
    set_flow(redis, "k", Changes(rate=None, parallel=7))
    release(redis)
    assert parallel(redis) == 7
    send(redis, task({"key": "k", "parallel": 7}))
    assert parallel(redis) == 7


def test_pause_ends_it_until_the_flow_is_resumed(redis: Redis) -> None:
    ids = send(redis, *[task(SIMPLE)] * 2)
    release(redis)
    pause_flow(redis, "k", True)
    assert claim(redis) == {} and waiting(redis, "k") == ids
    pause_flow(redis, "k", False)
    release(redis)
    assert queued(redis) == ids and parallel(redis) == 2


def test_rest_ends_it(redis: Redis) -> None:
    flows.set_limits("k", Limits(parallel=50)).run(redis)
    release(redis)
    assert parallel(redis) == 50
    trip(redis)
    assert parallel(redis) is None
    ids = send(redis, task("k"))
    release(redis)
    assert waiting(redis, "k") == ids


def test_rule_ends_it_and_tasks_that_wait_meanwhile_are_looked_at(redis: Redis) -> None:
    send(redis, task({"key": "k", "parallel": 1}))
    release(redis)
    send(redis, task("k"))
    rules = (FlowRule("k", Limits(rate=100.0)),)
    set_rules(rules).run(redis)
    assert submit(redis, Nodes(rules), Batch("qtask", [Submission(check_task(task("k")))]))
    release(redis)
    assert len(waiting(redis, "k")) == 2 and redis.hget(keys.FLOW_PREFIX + "k", "rule") == b"k"
    assert score(redis) < time.time() + 60
