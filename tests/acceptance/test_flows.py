"""Flows with real processes: what a receiver sees of limits, order, rests and breakers, while workers are killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from qtask.store import flow_records, keys
from qtask.store.audit import audit
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.request_log import Decide, Delivery, Reply, RequestLog, most_at_once, most_in_window
from tests.support.waiting import until

STOCK = ("rq", "worker", "-S", "rq.serializers.JSONSerializer", "-w", "rq.SimpleWorker")
# Between a claim, which takes the token of a rate, and the arrival of its request lie the worker and the network. Tests
# that share two cores with others have longer ways than those that run alone.
BUSY_SECONDS, ALONE_SECONDS = 0.5, 0.01
LEAST_OF_RATE = 0.97
ONCE = {"attempts": 1}
SOON = {"attempts": 8, "backoff": "fixed", "base": 0.1}


class Workers:
    """Four workers of QTask on a queue and perhaps a stock one, which can be killed and are replaced.

    Args:
        live: the Redis.
        queue: name of the queue.
        settings: of the workers, by field name.
    """

    def __init__(self, live: Live, queue: str, count: int = 4, stock: int = 0, **settings: Any) -> None:
        self._live = live
        self._settings = {"queue": queue, "concurrency": 20, **settings}
        self._queue = queue
        self.running = [live.start("worker", **self._settings) for _ in range(count)]
        self.stock = [live.program(*STOCK, "-u", live.url, queue) for _ in range(stock)]

    def kill_one(self) -> None:
        """Kills the oldest worker; another one takes its place. Its heartbeat is made old, so that nobody need wait."""
        victim = self.running.pop(0)
        victim.kill()
        self._live.redis.zadd(keys.WORKERS, {token_of(victim): 0})
        self.running.append(self._live.start("worker", **self._settings))

    def stop(self) -> None:
        for one in self.running:
            one.stop()
        for stock in self.stock:
            stock.terminate()
            stock.wait(30)


def token_of(worker: Process) -> str:
    """The token of a worker, by its log."""
    events = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return str(next(event["token"] for event in events if event["event"] == "working"))


@contextmanager
def flow_of(live: Live, key: str, decide: Decide = lambda _: Reply()) -> Iterator[RequestLog]:
    """A receiver. At the end no slot, no task and no trace of the flow may be left, and the audit must balance."""
    with RequestLog(decide) as log:
        yield log
        assert not live.redis.exists(keys.SLOTS_PREFIX + key, keys.WAITING_PREFIX + key)
        found = audit(live.redis)
        assert found.balances, found
        if live.redis.exists(keys.FLOW_PREFIX + key):
            flow_records.remove_flow(live.redis, key)
            until(lambda: not live.redis.exists(keys.FLOW_PREFIX + key), what="the flow to be forgotten")


def send(live: Live, queue: str, url: str, flow: Any, count: int, **settings: Any) -> list[str]:
    given = {"time": 0, "flow": flow, "retry": ONCE, **settings}
    return live.send(queue, *[{"title": "t", "address": {"type": "http", "link": url}, "settings": given}] * count)


def delivered(log: RequestLog, ids: list[str], seconds: float = 60.0) -> list[Delivery]:
    """Waits until each of these was answered 200, and returns all requests."""

    def all_arrived() -> bool:
        return set(ids) <= {one.id for one in list(log.deliveries) if one.status == 200}

    until(all_arrived, seconds, "all tasks to arrive")
    return list(log.deliveries)


def settled(live: Live, ids: list[str]) -> None:
    live.ended(ids)


# --- parallel ------------------------------------------------------------------------------------------------------


def check_parallel(live: Live, queue: str, count: int, kills: int, **workers: int) -> None:
    flow = {"key": queue, "parallel": 5}
    with flow_of(live, queue, lambda _: Reply(hold=0.03)) as log:
        ids = send(live, queue, log.url, flow, count, retry={"attempts": 20, "base": 0.0})
        team = Workers(live, queue, **workers)
        for number in range(kills):
            part = len(ids) * (number + 1) // (kills + 1)
            until(lambda part=part: len(log.deliveries) >= part, 60, "some deliveries")  # type: ignore[misc]
            team.kill_one()
        found = delivered(log, ids)
        settled(live, ids)
        team.stop()
    assert most_at_once(found) == 5
    assert len(found) <= count + 5 * kills, "only those that a killed worker had in flight come twice"


@pytest.mark.timeout(180)
def test_parallel_is_never_exceeded_while_workers_are_killed(live: Live, queue: str) -> None:
    check_parallel(live, queue, count=200, kills=3, stock=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_parallel_is_never_exceeded_while_many_workers_are_killed(live: Live, queue: str) -> None:
    check_parallel(live, queue, count=3_000, kills=25, stock=1)


@pytest.mark.slow
def test_parallel_and_order_are_kept_by_stock_workers_alone(live: Live, queue: str) -> None:
    with flow_of(live, queue, lambda _: Reply(hold=0.05)) as log:
        ids = send(live, queue, log.url, {"key": queue, "parallel": 2}, 12)
        ordered = f"{queue}-ordered"
        in_order = send(live, queue, f"{log.url}/ordered", {"key": ordered, "ordered": True}, 6)
        team = Workers(live, queue, count=0, stock=4)
        found = delivered(log, [*ids, *in_order])
        settled(live, [*ids, *in_order])
        team.stop()
        flow_records.remove_flow(live.redis, ordered)
    assert most_at_once([one for one in found if one.target == "/"]) <= 2
    assert [one.id for one in found if one.target == "/ordered"] == in_order
    assert most_at_once([one for one in found if one.target == "/ordered"]) == 1


# --- rate ----------------------------------------------------------------------------------------------------------


def check_rate(
    live: Live, queue: str, seconds: float, rate: float, per: float, burst: int, allowance: float, kills: int = 0
) -> None:
    """A backlog is worked off at no less than 97 % of the rate, and no window has more than it may."""
    count = round(rate / per * seconds) + burst - 1
    flow = {"key": queue, "rate": rate, "per": per, "burst": burst}
    with flow_of(live, queue) as log:
        team = Workers(live, queue)
        ids = send(live, queue, log.url, flow, count, retry={"attempts": 20, "base": 0.0})
        for number in range(kills):
            part = count * (number + 1) // (kills + 1)
            until(lambda part=part: len(log.deliveries) >= part, 60, "some deliveries")  # type: ignore[misc]
            team.kill_one()
        found = delivered(log, ids, seconds * 3 + 30)
        settled(live, ids)
        team.stop()
    assert most_in_window(found, per - allowance) <= rate + burst - 1
    if not kills:
        took = found[-1].began - found[0].began
        reached = (count - burst) / took * per
        assert reached >= LEAST_OF_RATE * rate * (1 if allowance == ALONE_SECONDS else 0.8), (reached, took)


@pytest.mark.parametrize("burst", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_rate_holds_over_four_workers(live: Live, queue: str, burst: int) -> None:
    check_rate(live, queue, 3, rate=40, per=1, burst=burst, allowance=BUSY_SECONDS)


@pytest.mark.slow
def test_rate_holds_while_workers_are_killed(live: Live, queue: str) -> None:
    check_rate(live, queue, 3, rate=40, per=1, burst=5, allowance=BUSY_SECONDS, kills=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rate", "per", "burst"), [(100.0, 1.0, 1), (100.0, 1.0, 50), (5.0, 1.0, 1), (1.0, 2.0, 2), (1_000.0, 10.0, 1)]
)
def test_backlog_is_worked_off_at_the_rate(live: Live, queue: str, rate: float, per: float, burst: int) -> None:
    """Exact only if this test has the machine for itself: `pytest -m slow -k worked_off` without `-n`."""
    is_alone = "PYTEST_XDIST_WORKER" not in os.environ
    allowance = ALONE_SECONDS if is_alone else BUSY_SECONDS
    check_rate(live, queue, 20 if is_alone else 6, rate=rate, per=per, burst=burst, allowance=allowance)


def test_rate_is_kept_by_stock_workers_alone(live: Live, queue: str) -> None:
    with flow_of(live, queue) as log:
        ids = send(live, queue, log.url, {"key": queue, "rate": 4, "burst": 2}, 10)
        team = Workers(live, queue, count=0, stock=2)
        found = delivered(log, ids)
        settled(live, ids)
        team.stop()
    assert most_in_window(found, 1 - BUSY_SECONDS) <= 5


# --- order ---------------------------------------------------------------------------------------------------------


def check_order(live: Live, queue: str, count: int, kills: int) -> None:
    failing = set()

    def sometimes_fails(delivery: Delivery) -> Reply:
        number = int(delivery.id.rpartition("-")[2])
        if number % 7 == 3 and delivery.id not in failing:
            failing.add(delivery.id)
            return Reply(500, 0.005)
        return Reply(200, 0.005)

    with flow_of(live, queue, sometimes_fails) as log:
        team = Workers(live, queue, circuit_breaker=0)
        address = {"type": "http", "link": log.url}
        given = {"time": 0, "flow": {"key": queue, "ordered": True}, "retry": SOON}
        names = [f"{queue}-{number}" for number in range(count, 0, -1)]  # against the order of the alphabet
        live.send(queue, *[{"title": "t", "address": address, "settings": {**given, "id": name}} for name in names])
        for number in range(kills):
            part = count * (number + 1) // (kills + 1)
            until(lambda part=part: len(log.deliveries) >= part, 60, "some deliveries")  # type: ignore[misc]
            team.kill_one()
        found = delivered(log, names)
        settled(live, names)
        team.stop()
    position = {name: number for number, name in enumerate(names)}
    for one, following in pairwise(found):
        assert one.ended is not None and one.ended <= following.began, "one after another"
        assert position[following.id] - position[one.id] in (0, 1), "none is left out, none comes back"
    assert {one.id for one in found if one.status == 500} == failing and len(failing) > count // 10


@pytest.mark.timeout(180)
def test_order_holds_over_retries_and_kills(live: Live, queue: str) -> None:
    check_order(live, queue, count=60, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_order_holds_over_many_kills(live: Live, queue: str) -> None:
    check_order(live, queue, count=1_000, kills=25)


# --- rests and circuit breakers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
def test_destination_that_asks_for_a_pause_gets_it_without_attempts(live: Live, queue: str, status: int) -> None:
    def asks_once(delivery: Delivery) -> Reply:
        return Reply(status, retry_after="2") if delivery is log.deliveries[0] else Reply()

    with flow_of(live, queue, asks_once) as log:
        team = Workers(live, queue, count=2)
        ids = send(live, queue, log.url, {"key": queue, "parallel": 1}, 5, retry=SOON)
        found = delivered(log, ids)
        records = live.ended(ids)
        team.stop()
    asked, first = found[0], found[1]
    assert asked.status == status and asked.ended is not None
    assert first.began - asked.ended >= 1.9, "the whole flow rests"
    assert [record.attempts for record in records] == [2, 1, 1, 1, 1]


def test_destination_that_asks_for_a_pause_is_not_heard_when_that_is_off(live: Live, queue: str) -> None:
    def asks_once(delivery: Delivery) -> Reply:
        return Reply(429, retry_after="30") if delivery is log.deliveries[0] else Reply()

    with flow_of(live, queue, asks_once) as log:
        team = Workers(live, queue, count=1, flow_rest_cap=0)
        ids = send(live, queue, log.url, {"key": queue, "parallel": 1}, 4)
        until(lambda: len(log.deliveries) == 4, 20, "the others, at once")
        settled(live, ids)
        team.stop()


def test_circuit_breaker_opens_probes_and_closes(live: Live, queue: str) -> None:
    well: list[bool] = []

    with flow_of(live, queue, lambda _: Reply(200 if well else 500)) as log:
        team = Workers(live, queue, count=2, circuit_breaker=5)
        send(live, queue, log.url, queue, 5)
        until(lambda: live.redis.hget(keys.FLOW_PREFIX + queue, "trips") == b"1", what="the breaker to open")
        assert flow_records.show_flow(live.redis, queue).state == "open"
        expires = send(live, queue, log.url, queue, 1, expires=1)
        ids = send(live, queue, log.url, queue, 10)
        until(lambda: live.redis.zcard(keys.WAITING_PREFIX + queue) == 11, what="them to wait")
        time.sleep(1.0)
        assert len(log.deliveries) == 5, "none is delivered while it is open"
        end_rest(live, queue)
        until(lambda: live.redis.hget(keys.FLOW_PREFIX + queue, "trips") == b"2", what="the probe to fail")
        assert len(log.deliveries) == 6, "one probe"
        well.append(True)
        end_rest(live, queue)
        until(lambda: len(log.deliveries) == 15, what="the others")
        records = live.ended([*expires, *ids])
        team.stop()
    assert [record.state for record in records] == ["dead", "dead"] + ["delivered"] * 9
    assert records[0].outcomes[-1].error == "expired"
    assert all(record.attempts == 1 for record in records[2:]), "those that waited used no attempt"


def end_rest(live: Live, flow: str) -> None:
    """The rest of a flow is over, so that the test need not wait."""
    live.redis.hset(keys.FLOW_PREFIX + flow, "rest", time.time() - 1)
    live.redis.zadd(keys.FLOWS, {flow: 0})
    live.redis.publish(keys.WAKE, 0)


def test_circuit_breaker_stays_closed_when_it_is_off(live: Live, queue: str) -> None:
    with flow_of(live, queue, lambda _: Reply(500)) as log:
        team = Workers(live, queue, count=1, circuit_breaker=0)
        ids = send(live, queue, log.url, queue, 30)
        settled(live, ids)
        assert len(log.deliveries) == 30
        assert not live.redis.exists(keys.FLOW_PREFIX + queue)
        team.stop()
