"""Flows by the scripts on a real Redis: who waits, who is admitted, in which order, and what is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from redis import Redis

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.model.errors import NotFound, Refused
from qtask.model.flow import Limits
from qtask.store import flows, keys, leases, schedule, tasks
from qtask.store.flow_records import list_flows, pause_flow, remove_flow, reset_flow, set_flow, show_flow
from qtask.store.leases import Fate, Settlement
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

NODES = Nodes()


def task(flow: Any = None, link: str = "http://a/", **settings: Any) -> dict[str, Any]:
    given = {"time": 0, **settings, **({} if flow is None else {"flow": flow})}
    return {"title": "t", "address": {"type": "http", "link": link}, "settings": given}


def send(redis: Redis, *dicts: dict[str, Any], queue: str = "qtask") -> list[str]:
    NODES.__init__()  # type: ignore[misc]  # Redis was emptied, and so were its node numbers
    places = submit(redis, NODES, Batch(queue, [Submission(check_task(one)) for one in dicts]))
    return [place.id for place in places if place is not None]


def release(redis: Redis, limit: int = 500) -> float:
    return schedule.release(redis, limit).wait


def queued(redis: Redis, queue: str = "qtask") -> list[str]:
    found: Any = redis.lrange(keys.queue(queue), 0, -1)
    return [one.decode() for one in found]


def claim(redis: Redis, limit: int = 100, token: str = "worker") -> dict[str, str]:
    """Claims; returns the ids in order, each with the name of its flow."""
    reply = leases.claim("qtask", token, limit).run(redis)
    names = leases.read_flows(reply, 0).names
    return {raw.decode(): names.get(raw, "") for raw, *_ in leases.read_claimed(reply)[1]}


def settle(
    redis: Redis, claimed: Iterable[tuple[str, str]], fate: Fate = "finished", token: str = "worker", **more: Any
) -> int:
    now = f"{time.time():.6f}"
    options = {**more, **({"delay": 0.0} if fate == "retry" else {})}
    records = [
        Settlement(
            one, fate, b"{}", "", "http:delivered", now, f"{one}:{now}", msgspec.json.encode({"flow": flow, **options})
        )
        for one, flow in claimed
    ]
    return leases.read_settled(leases.settle(Config(), token, records).run(redis)).settled


def waiting(redis: Redis, flow: str) -> list[str]:
    found: Any = redis.zrange(keys.WAITING_PREFIX + flow, 0, -1)
    return [one.decode().rpartition(":")[2] for one in found]


def flow_keys(redis: Redis) -> set[str]:
    found = (key.decode() for key in redis.scan_iter())
    return {
        key
        for key in found
        if key.startswith(("qtask:flow", "qtask:waiting", "qtask:slots")) and key != keys.FLOW_VERSION
    }


def test_flow_without_limits_leaves_no_key(redis: Redis) -> None:
    ids = send(redis, task("plain"), task("plain"))
    assert redis.hget(keys.job(ids[0]), "extra") == b'{"flow":"plain"}'
    release(redis)
    assert queued(redis) == ids
    assert claim(redis) == dict.fromkeys(ids, "plain")
    assert settle(redis, [(one, "plain") for one in ids]) == 2
    assert flow_keys(redis) == set()


def test_plain_task_has_no_extra_field(redis: Redis) -> None:
    (one,) = send(redis, task())
    assert set(redis.hkeys(keys.job(one))) == {b"data", b"origin"}


def test_parallel_bounds_what_is_queued_and_in_flight(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 2})] * 5)
    release(redis)
    assert queued(redis) == ids[:2] and waiting(redis, "k") == ids[2:]
    assert redis.hget(keys.job(ids[2]), "status") == b"deferred"
    first = claim(redis)
    assert list(first) == ids[:2]
    assert claim(redis) == {} and queued(redis) == []
    assert settle(redis, [(ids[0], "k")]) == 1
    assert queued(redis) == ids[2:3]
    assert settle(redis, [(ids[0], "k"), (ids[1], "k")]) == 1
    assert queued(redis) == ids[2:4] and waiting(redis, "k") == ids[4:]


def test_limits_of_the_newest_task_win_and_admit_those_that_wait(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 1})] * 4)
    release(redis)
    assert len(queued(redis)) == 1
    ids += send(redis, task({"key": "k", "parallel": 3}, time=60))
    assert release(redis) > 1
    assert queued(redis) == ids[:3]
    flows.set_limits("k", Limits(parallel=10)).run(redis)
    release(redis)
    assert queued(redis) == ids[:4]


def test_each_flow_of_a_batch_gets_its_limits(redis: Redis) -> None:
    given = [("a", 1), ("b", 1), ("a", 2), ("c", 2), ("b", 1)]
    send(redis, *[task({"key": key, "parallel": parallel}) for key, parallel in given])
    assert [show_flow(redis, key).parallel for key in "abc"] == [2, 1, 2]


def test_scheduler_sleeps_when_no_task_of_a_limited_flow_waits(redis: Redis) -> None:
    for limits in (Limits(parallel=1), Limits(rate=5), Limits(ordered=True)):
        set_flow(redis, "k", limits)
        release(redis)
        assert schedule.release(redis, 500).wait > 60


def test_slot_is_freed_by_death_cancellation_and_a_retry(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 1})] * 4)
    release(redis)
    settle(redis, claim(redis).items(), "failed")
    assert queued(redis) == ids[1:2]
    assert tasks.cancel(redis, ids[1]) == "queued"
    assert queued(redis) == ids[2:3]
    assert tasks.cancel(redis, ids[3]) == "waiting"
    assert waiting(redis, "k") == []
    settle(redis, claim(redis).items(), "retry")
    assert redis.zcard(keys.SLOTS_PREFIX + "k") == 0
    release(redis)
    assert queued(redis) == ids[2:3] and redis.zcard(keys.SLOTS_PREFIX + "k") == 1


def test_ordered_flow_keeps_its_slot_for_a_retry(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "ordered": True})] * 3)
    release(redis)
    assert queued(redis) == ids[:1]
    settle(redis, claim(redis).items(), "retry")
    assert queued(redis) == [] and waiting(redis, "k") == ids[1:]
    release(redis)
    assert queued(redis) == ids[:1]
    settle(redis, claim(redis).items())
    assert queued(redis) == ids[1:2]


@pytest.mark.parametrize("batch", [3, 5, 12, 50])
def test_ordered_tasks_due_together_are_in_order_of_submission(redis: Redis, batch: int) -> None:
    names = [f"order-{number}" for number in range(20, 8, -1)]
    at = time.time() - 1
    one = {"address": {"type": "http", "link": "http://a/"}, "title": "t"}
    flow = {"key": "k", "ordered": True}
    send(redis, *[{**one, "settings": {"at": at, "id": name, "flow": flow}} for name in names])
    seen: list[str] = []
    for _ in range(30):
        release(redis, batch)
        claimed = claim(redis)
        seen += claimed
        if claimed:
            settle(redis, claimed.items())
    assert seen == names


def test_rate_takes_its_token_when_a_delivery_begins(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "rate": 2, "burst": 2})] * 5)
    wait = release(redis)
    assert queued(redis) == ids[:2]
    assert 0.4 < wait <= 0.52, "the token after those of these two"
    claimed = claim(redis)
    assert list(claimed) == ids[:2]
    assert 0 < release(redis) <= 0.52 and queued(redis) == []
    time.sleep(0.55)
    release(redis)
    assert queued(redis) == ids[2:3]


def test_task_whose_flow_is_limited_after_it_was_queued_waits_at_its_claim(redis: Redis) -> None:
    ids = send(redis, *[task("k")] * 3)
    release(redis)
    assert queued(redis) == ids
    flows.set_limits("k", Limits(parallel=1)).run(redis)
    assert claim(redis) == {}
    assert queued(redis) == ids[:1] and waiting(redis, "k") == ids[1:]
    assert list(claim(redis)) == ids[:1]


def test_pause_and_resume(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 2})] * 3)
    release(redis)
    flows.pause("k", True).run(redis)
    release(redis)
    assert claim(redis) == {} and queued(redis) == [] and waiting(redis, "k") == ids
    flows.pause("k", False).run(redis)
    release(redis)
    assert list(claim(redis)) == ids[:2]


def test_parked_tasks_wait_and_their_flow_leaves_no_key(redis: Redis) -> None:
    ids = send(redis, *[task()] * 4)
    release(redis)
    claim(redis)
    parked = flows.park("qtask", "worker", "http://a", ids[:2], ids[2:]).run(redis)
    assert parked == 2
    assert waiting(redis, "http://a") == ids[2:] and queued(redis) == []
    assert redis.hget(keys.job(ids[2]), "attempt") == b"0"
    settle(redis, [(ids[0], "http://a")])
    assert claim(redis) == dict.fromkeys(ids[2:], "http://a"), "a delivery that succeeds makes room for two"
    assert redis.hget(keys.FLOW_PREFIX + "http://a", "share") == b"3"
    settle(redis, [(one, "http://a") for one in ids[1:]])
    assert flow_keys(redis) == set()


def test_share_of_a_parked_flow_ends_when_limits_are_set(redis: Redis) -> None:
    ids = send(redis, *[task("k")] * 6)
    release(redis)
    claim(redis)
    flows.park("qtask", "worker", "k", ids[:1], ids[1:]).run(redis)
    assert queued(redis) == [] and waiting(redis, "k") == ids[1:]
    flows.set_limits("k", Limits(rate=1_000.0)).run(redis)
    release(redis)
    assert queued(redis) == ids[1:], "it has no other limit than the rate"


@pytest.mark.parametrize("count", [1, 600, 1_200])
def test_many_tasks_of_one_flow_are_admitted_in_pages(redis: Redis, count: int) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 10_000})] * count)
    for _ in range(20):
        release(redis)
    assert queued(redis) == ids and waiting(redis, "k") == []


def test_flow_rests_for_as_long_as_its_destination_asks(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "parallel": 1})] * 3)
    release(redis)
    settle(redis, claim(redis).items(), "failed", rest=0.3)
    assert 0.1 < release(redis) <= 0.3
    assert queued(redis) == [] and waiting(redis, "k") == ids[1:]
    time.sleep(0.31)
    release(redis)
    assert queued(redis) == ids[1:2]


def trip(redis: Redis, count: int = 20) -> None:
    """Lets deliveries of the flow `k` fail."""
    send(redis, *[task("k")] * count)
    release(redis)
    settle(redis, claim(redis).items(), "failed", health="bad")


def end_rest(redis: Redis, flow: str = "k") -> None:
    """The rest of a flow is over."""
    redis.hset(keys.FLOW_PREFIX + flow, "rest", redis.time()[0] - 1)
    redis.zadd(keys.FLOWS, {flow: 0})


def test_breaker_opens_probes_and_closes(redis: Redis) -> None:
    trip(redis, 19)
    assert not redis.exists(keys.FLOW_PREFIX + "k")
    trip(redis, 1)
    assert redis.hget(keys.FLOW_PREFIX + "k", "why") == b"breaker"
    ids = send(redis, *[task("k")] * 3)
    assert 4 < release(redis) <= 5 and waiting(redis, "k") == ids
    end_rest(redis)
    release(redis)
    assert queued(redis) == ids[:1], "one probe"
    settle(redis, claim(redis).items(), "failed", health="bad")
    assert 9 < release(redis) <= 10 and queued(redis) == []
    end_rest(redis)
    release(redis)
    settle(redis, claim(redis).items(), health="good")
    assert not redis.hexists(keys.FLOW_PREFIX + "k", "trips")
    assert queued(redis) == ids[2:]
    settle(redis, claim(redis).items())
    assert flow_keys(redis) == set()


def test_breaker_stays_closed_while_a_fifth_succeeds(redis: Redis) -> None:
    for _ in range(10):
        ids = send(redis, *[task("k")] * 10)
        release(redis)
        claim(redis)
        settle(redis, [(one, "k") for one in ids[:7]], "failed", health="bad")
        settle(redis, [(one, "k") for one in ids[7:]], health="good")
    assert not redis.exists(keys.FLOW_PREFIX + "k")


# --- showing and deciding ------------------------------------------------------------------------------------------


def test_flow_is_shown_with_its_limits_and_counts(redis: Redis) -> None:
    ids = send(redis, *[task({"key": "k", "rate": 5, "burst": 2, "parallel": 3})] * 5)
    release(redis)
    claim(redis)
    shown = show_flow(redis, "k")
    assert (shown.parallel, shown.rate, shown.per, shown.burst, shown.ordered) == (3, 5, 1, 2, False)
    assert (shown.state, shown.waiting, shown.in_flight) == ("waiting", 3, 2)
    assert shown.oldest_due == redis.zscore(keys.WAITING_PREFIX + "k", ids[2])
    assert (shown.queued, shown.begun, shown.limit) == (0, 2, 3)
    assert shown.next_token is not None and shown.oldest_seconds is not None
    assert [one.key for one in list_flows(redis).items] == ["k"]


@pytest.mark.parametrize(
    ("windows_ago", "share_of_begun", "share_of_before"), [(0, 1, 1), (1, 1, 0), (2, 0, 0), (1_000, 0, 0)]
)
def test_rate_used_counts_the_last_span(
    redis: Redis, windows_ago: int, share_of_begun: int, share_of_before: int
) -> None:
    """The current span whole, and the part of the one before it that is within the last `per` seconds."""
    per = 86_400.0
    flows.set_limits("k", Limits(rate=1_000.0, per=per)).run(redis)
    window, part = divmod(redis.time()[0] / per, 1)
    counted: dict[Any, Any] = {"window": int(window) - windows_ago, "begun": 400, "begun_before": 600}
    redis.hset(keys.FLOW_PREFIX + "k", mapping=counted)
    rest = 1 - part
    expected = share_of_begun * 400 * (rest if windows_ago else 1) + share_of_before * 600 * rest
    assert show_flow(redis, "k").begun == pytest.approx(expected, abs=2)


def test_begun_deliveries_are_counted_in_their_span(redis: Redis) -> None:
    send(redis, *[task({"key": "k", "rate": 50, "burst": 4, "per": 0.5})] * 4)
    release(redis)
    assert len(claim(redis)) == 4
    assert show_flow(redis, "k").begun == 4
    time.sleep(1.1)
    assert show_flow(redis, "k").begun == 0
    send(redis, task("k"))
    release(redis)
    assert len(claim(redis)) == 1
    assert show_flow(redis, "k").begun == 1


def test_decisions_on_a_flow(redis: Redis) -> None:
    with pytest.raises(NotFound):
        show_flow(redis, "k")
    assert set_flow(redis, "k", Limits(parallel=2, ordered=False)).parallel == 2
    assert set_flow(redis, "k", Limits(rate=5)).parallel == 2
    assert pause_flow(redis, "k").state == "paused"
    assert pause_flow(redis, "k", False).state == "idle"
    remove_flow(redis, "k")
    trip(redis)
    assert (show_flow(redis, "k").state, show_flow(redis, "k").breaker) == ("open", "open")
    assert show_flow(redis, "k").why == "its deliveries keep failing"
    assert reset_flow(redis, "k").state == "idle"
    set_flow(redis, "k", Limits(parallel=2))
    remove_flow(redis, "k")
    release(redis)
    assert list_flows(redis).items == []
    assert flow_keys(redis) == set()


@pytest.mark.parametrize("cursor", ["x", "-1", "١"])
def test_wrong_cursor_is_refused(redis: Redis, cursor: str) -> None:
    with pytest.raises(Refused):
        list_flows(redis, cursor)


def test_wrong_limits_are_refused(redis: Redis) -> None:
    with pytest.raises(Refused, match="parallel"):
        set_flow(redis, "k", Limits(parallel=0))
    with pytest.raises(Refused, match="key"):
        set_flow(redis, "", Limits(parallel=1))
    assert flow_keys(redis) == set()
