"""Tasks that wait in flows, on a real Redis: how they are listed and counted, and what each of them waits for."""

from __future__ import annotations

import random
import re

import pytest
from redis import Redis

from qtask.model.flow import Limits
from qtask.model.flow_record import Reason, Wait
from qtask.store import flows, keys, tasks
from qtask.store.flow_records import pause_flow, show_flow
from qtask.store.pages import Cursor
from qtask.store.queries import Commands
from qtask.store.waiting import FLOWS_AT_ONCE, waiting_page
from tests.integration.test_flows import claim, end_rest, release, send, settle, task, trip

INSTANT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"


def listed(redis: Redis, limit: int, queue: str = "qtask") -> list[str]:
    """The ids on all pages of the waiting tasks."""
    found: list[str] = []
    cursor = ""
    while True:
        page = tasks.list_page(redis, queue, "waiting", limit, cursor)
        assert len(page.items) <= limit
        assert {record.state for record in page.items} <= {"waiting"}
        found += [record.id for record in page.items]
        cursor = page.cursor
        if not cursor:
            return found


def wait_of(redis: Redis, task_id: str) -> Wait:
    waits_for = tasks.show(redis, task_id).waits_for
    assert waits_for is not None
    return waits_for


def paused(redis: Redis, *names: str) -> None:
    for name in names:
        pause_flow(redis, name)


# --- lists ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_count", [3, 129, 400])
@pytest.mark.parametrize("limit", [7, 1_000])
def test_each_waiting_task_is_listed_once(redis: Redis, flow_count: int, limit: int) -> None:
    """With as many flows as Redis keeps in a list, and with more."""
    if flow_count > 3 and limit == 1:
        limit = 3
    names = [f"flow-{number}" for number in range(flow_count)]
    paused(redis, *names)
    ids = send(redis, *[task(name) for name in names for _ in range(2)])
    release(redis, 2 * flow_count)
    found = listed(redis, limit)
    assert sorted(found) == sorted(ids)
    by_flow = [found.index(ids[at]) < found.index(ids[at + 1]) for at in range(0, len(ids), 2)]
    assert all(by_flow), "in a flow, tasks are listed in their order"


def test_waiting_tasks_are_listed_with_ranks_and_escaped_ids(redis: Redis) -> None:
    paused(redis, "k")
    names = ["order:1", "plain", "0__x"]
    send(redis, *[task({"key": "k", "ordered": True}, id=name) for name in names])
    release(redis)
    assert listed(redis, 2) == names
    assert [wait_of(redis, name).position for name in names] == [1, 2, 3]


def test_flows_without_waiting_tasks_are_passed_over(redis: Redis) -> None:
    for number in range(5 * FLOWS_AT_ONCE):
        flows.set_limits(f"idle-{number}", Limits(parallel=1)).run(redis)
    paused(redis, "busy")
    ids = send(redis, task("busy"), task("busy"))
    release(redis)
    assert listed(redis, 10) == ids


def test_waiting_tasks_are_listed_and_counted_by_queue(redis: Redis) -> None:
    paused(redis, "k")
    ours = send(redis, task("k"), task("k"))
    others = send(redis, task("k"), queue="other")
    release(redis)
    assert listed(redis, 10) == ours and listed(redis, 10, "other") == others
    assert listed(redis, 10, "") == listed(redis, 1, "") == [*ours, *others]
    assert tasks.count_tasks(redis, "qtask")["waiting"] == 2
    assert tasks.count_tasks(redis, "other")["waiting"] == 1


def test_list_is_whole_while_flows_come_and_go(redis: Redis) -> None:
    chosen = random.Random(7)
    names = [f"flow-{number}" for number in range(300)]
    paused(redis, *names)
    ids = send(redis, *[task(name) for name in names])
    release(redis, 300)
    found: list[str] = []
    cursor, made = "", 0
    while True:
        page = tasks.list_page(redis, "qtask", "waiting", 10, cursor)
        found += [record.id for record in page.items]
        cursor = page.cursor
        if not cursor:
            break
        for _ in range(40):  # so many that Redis makes its table larger, and smaller again
            flows.set_limits(f"more-{made}", Limits(parallel=1)).run(redis)
            made += 1
        if made > 400:
            for number in range(made):
                if chosen.random() < 0.9:
                    flows.remove(f"more-{number}").run(redis)
            made = 0
    assert set(found) == set(ids)


# --- reasons -------------------------------------------------------------------------------------------------------


def test_task_that_waits_for_nothing_has_no_wait(redis: Redis) -> None:
    (one,) = send(redis, task("k"))
    assert tasks.show(redis, one).waits_for is None
    release(redis)
    assert tasks.show(redis, one).waits_for is None


def test_wait_for_a_slot(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "x", "parallel": 2})] * 4)
    release(redis)
    assert wait_of(redis, ids[3]).words == "2nd in flow x, which has 2 of 2 deliveries queued or in flight"
    claim(redis)
    assert wait_of(redis, ids[2]) == Wait(
        "x", 1, "parallel", None, "1st in flow x, which has 2 of 2 deliveries in flight"
    )


def test_wait_for_a_rate(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "x", "rate": 1, "per": 60})] * 2)
    release(redis)
    assert wait_of(redis, ids[1]).reason == "rate"
    claim(redis)
    wait = wait_of(redis, ids[1])
    assert wait.reason == "rate" and wait.until is not None
    assert redis.time()[0] + 50 < wait.until < redis.time()[0] + 65
    assert wait.words.startswith("1st in flow x, whose rate admits the next at 20")


def test_wait_for_a_pause(redis: Redis) -> None:
    pause_flow(redis, "x")
    (one,) = send(redis, task("x"))
    release(redis)
    assert wait_of(redis, one) == Wait("x", 1, "paused", None, "1st in flow x, which is paused")


def test_wait_for_a_rest(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "x", "parallel": 1})] * 2)
    release(redis)
    settle(redis, claim(redis).items(), "failed", rest=30)
    wait = wait_of(redis, ids[1])
    assert wait.reason == "resting" and wait.until == show_flow(redis, "x").until
    assert re.fullmatch(
        rf"1st in flow x, which rests until {INSTANT} \(its destination asked for a pause\)", wait.words
    )


def test_wait_for_a_circuit_breaker(redis: Redis) -> None:
    trip(redis)
    ids = send(redis, *[task("k")] * 3)
    release(redis)
    wait = wait_of(redis, ids[1])
    assert (wait.reason, wait.position, wait.until) == ("open", 2, show_flow(redis, "k").until)
    assert wait.words.startswith("2nd in flow k, whose circuit breaker is open, and the next probe is at 20")
    end_rest(redis)
    release(redis)
    assert wait_of(redis, ids[1]).reason == "half-open"
    assert show_flow(redis, "k").state == show_flow(redis, "k").breaker == "half-open"


def test_wait_for_the_task_before_in_an_ordered_flow(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "x", "ordered": True})] * 3)
    release(redis)
    words = f"2nd in flow x, which is ordered, and task {ids[0]} before it is not delivered yet"
    assert wait_of(redis, ids[2]) == Wait("x", 2, "ordered", None, words)
    settle(redis, claim(redis).items(), "retry")
    wait = wait_of(redis, ids[1])
    assert wait.until == redis.zscore(keys.SCHEDULE, ids[0])
    assert f"task {ids[0]} before it waits for a retry at 20" in wait.words


def test_wait_of_a_flow_that_nothing_holds_back(redis: Redis) -> None:
    pause_flow(redis, "k")
    (one,) = send(redis, task("k"))
    release(redis)
    redis.hdel(keys.FLOW_PREFIX + "k", "paused")
    reason: Reason = "next"
    assert wait_of(redis, one).reason == reason


def test_parked_task_waits_in_the_flow_of_its_destination(redis: Redis) -> None:
    ids = send(redis, *[task(link="http://a:8000/x?y=1")] * 4)
    release(redis)
    claim(redis)
    flows.park("qtask", "worker", "http://a:8000", ids[:2], ids[2:]).run(redis)
    assert (
        wait_of(redis, ids[3]).words == "2nd in flow http://a:8000, which is slow and has 2 of 2 deliveries in flight"
    )
    assert listed(redis, 10) == ids[2:]


def test_flow_that_grows_while_it_is_listed_loses_no_task(redis: Redis) -> None:
    """A task that is due before the others comes between counting a flow and reading it."""
    paused(redis, "k")
    ids = send(redis, *[task("k")] * 3)
    release(redis)
    for task_id in ids:
        redis.zincrby(keys.WAITING_PREFIX + "k", 100.0, task_id)
    steps = waiting_page(Cursor("waiting", "qtask"), 3)
    step = next(steps)
    try:
        while True:
            if isinstance(step, Commands) and step.commands[0][0] == "ZRANGE":
                send(redis, task("k"))
                release(redis)
            step = steps.send(step.run(redis))
    except StopIteration as end:
        page = end.value
    assert len(page.items) == 3 and page.cursor
    rest = tasks.list_page(redis, "qtask", "waiting", 3, page.cursor)
    assert set(ids) <= {*page.items, *(record.id for record in rest.items)}
