"""Limits and timeouts that adapt, with real workers and receivers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qtask.model.record import TaskRecord
from qtask.store import keys
from qtask.store.flow_records import show_flow
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.waiting import until


class Places:
    """Behaviour of a receiver that works on so many requests at once.

    Args:
        count: of its places.
        seconds: that it works on each request.
        refuses: whether it answers 503 to a request that finds no free place; else the request waits for one.

    Attributes:
        worked, refused: how many requests it has answered either way.
    """

    def __init__(self, count: int, seconds: float, refuses: bool = False) -> None:
        self.count = count
        self._seconds = seconds
        self._refuses = refuses
        self._changed = threading.Condition()
        self._taken = 0
        self.worked = self.refused = 0

    def __call__(self, exchange: Exchange) -> None:
        with self._changed:
            if self._refuses and self._taken >= self.count:
                self.refused += 1
                refused = True
            else:
                refused = False
                self._changed.wait_for(lambda: self._taken < self.count, 60)
                self._taken += 1
        if refused:
            exchange.answer(503)
            return
        time.sleep(self._seconds)
        with self._changed:
            self._taken -= 1
            self.worked += 1
            self._changed.notify()
        exchange.answer(200)


def to(url: str, **settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": {"time": 0, **settings}}


def backlog(live: Live, queue: str, receiver: Receiver, count: int, **settings: Any) -> list[str]:
    """Sends tasks of a flow that is named after the queue."""
    return live.send(queue, *[to(receiver.url, flow={"key": queue, "parallel": "auto"}, **settings)] * count)


@pytest.fixture
def workers(live: Live, queue: str) -> Iterator[list[Process]]:
    """Two workers, which end with the test, also if tasks are left."""
    started = [live.start("worker", queue=queue, circuit_breaker=0) for _ in range(2)]  # no flow rests
    yield started
    for worker in started:
        worker.kill()


def limits_until(live: Live, queue: str, behaviour: Places, worked: int) -> list[int]:
    """The limits of the flow, looked at often, until the receiver has worked on so many requests."""
    found: list[int] = []

    def done() -> bool:
        limit = show_flow(live.redis, queue).adapted
        assert limit is not None and limit >= 1
        found.append(limit)
        return behaviour.worked >= worked

    until(done, 90, f"{worked} requests")
    return found


def median(values: list[int]) -> int:
    return sorted(values)[len(values) // 2]


@pytest.mark.slow
def test_limit_settles_near_what_the_receiver_works_on_at_once_and_follows_it(
    live: Live, queue: str, workers: list[Process]
) -> None:
    with Receiver(behaviour := Places(8, 0.05)) as receiver:
        backlog(live, queue, receiver, 4_000)
        limits_until(live, queue, behaviour, 500)
        began = time.monotonic()
        settled = limits_until(live, queue, behaviour, 1_000)
        throughput = 500 / (time.monotonic() - began)
        assert 6 <= median(settled) <= 24
        assert throughput >= 80, "half of the 160 a second that it can do"
        behaviour.count = 32
        limits_until(live, queue, behaviour, 2_200)
        settled = limits_until(live, queue, behaviour, 3_000)
        assert 24 <= median(settled) <= 96


@pytest.mark.slow
def test_limit_falls_below_what_the_receiver_refuses(live: Live, queue: str, workers: list[Process]) -> None:
    retry = {"attempts": 50, "backoff": "fixed", "base": 0.2}
    with Receiver(behaviour := Places(10, 0.05, refuses=True)) as receiver:
        ids = backlog(live, queue, receiver, 2_000, retry=retry)
        limits_until(live, queue, behaviour, 400)
        refused = behaviour.refused
        settled = limits_until(live, queue, behaviour, 1_600)
        assert 4 <= median(settled) <= 11
        assert behaviour.refused - refused <= 0.05 * 1_200
        assert all(record.state == "delivered" for record in live.ended(ids))


@pytest.mark.slow
def test_killed_worker_leaves_no_slot_of_a_flow_that_adapts(live: Live, queue: str, workers: list[Process]) -> None:
    with Receiver(behaviour := Places(4, 0.05)) as receiver:
        ids = backlog(live, queue, receiver, 600, retry={"attempts": 10, "backoff": "fixed", "base": 0})
        limits_until(live, queue, behaviour, 100)
        os.kill(workers[0].pid, signal.SIGKILL)
        records = live.ended(ids, 90)
        assert all(record.state == "delivered" for record in records)
        until(lambda: live.redis.zcard(keys.SLOTS_PREFIX + queue) == 0, what="every slot to be free")
        record = show_flow(live.redis, queue)
        assert (record.waiting, record.in_flight) == (0, 0)


# --- timeout -----------------------------------------------------------------------------------------------------


class Slow:
    """Behaviour of a receiver: requests for /hang get no answer, the others get one after `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, exchange: Exchange) -> None:
        if exchange.request.target == "/hang":
            exchange.connection.recv(1)  # until the sender gives up
            exchange.keep = False
            return
        time.sleep(self.seconds)
        exchange.answer(200)


def failures(record: TaskRecord) -> list[tuple[str, float]]:
    return [(outcome.error, outcome.duration) for outcome in record.outcomes if outcome.error]


@pytest.fixture(params=["own", "stock"])
def started(request: pytest.FixtureRequest, live: Live, queue: str) -> str:
    """A queue with a worker of either kind."""
    if request.param == "own":
        live.start("worker", queue=queue)
    else:
        live.program("rq", "worker", "-u", live.url, "-S", "rq.serializers.JSONSerializer", queue)
    return queue


def learned(live: Live, flow: str) -> float:
    timeout = show_flow(live.redis, flow).timeout
    assert timeout is not None and 1.0 <= timeout <= 30.0
    return timeout


def test_timeout_auto_ends_a_hung_delivery_early(live: Live, started: str) -> None:
    auto = {"timeout": "auto", "flow": started, "retry": {"attempts": 1}}
    with Receiver(Slow()) as receiver:
        live.ended(live.send(started, *[to(receiver.url, **auto)] * 5))
        timeout = learned(live, started)
        assert timeout < 15
        (hung,) = live.ended(live.send(started, to(receiver.url + "hang", **auto)))
        ((error, duration),) = failures(hung)
        assert error == "timeout" and 0.9 * timeout <= duration < timeout + 10
        assert learned(live, started) == pytest.approx(2 * timeout)


@pytest.mark.slow
def test_destination_that_becomes_slower_is_waited_for(live: Live, queue: str, workers: list[Process]) -> None:
    auto = {"timeout": "auto", "retry": {"attempts": 4, "backoff": "fixed", "base": 0}}
    with Receiver(behaviour := Slow()) as receiver:
        flow = receiver.url.rstrip("/")
        live.ended(live.send(queue, *[to(receiver.url, **auto)] * 5))
        timeout = learned(live, flow)
        behaviour.seconds = 3 * timeout
        slow = live.ended(live.send(queue, *[to(receiver.url, **auto)] * 2))
        assert [record.state for record in slow] == ["delivered"] * 2
        assert all(map(failures, slow)), "the first attempt ran into the timeout"
        assert learned(live, flow) >= min(30.0, 6 * timeout)
        (later,) = live.ended(live.send(queue, to(receiver.url, **auto)))
        assert later.state == "delivered" and not failures(later)
