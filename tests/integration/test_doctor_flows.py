"""What the doctor finds about flows, on a real Redis."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.model.flow import Limits
from qtask.run.doctor import flows as checked
from qtask.run.doctor.finding import Examined, Finding
from qtask.store import flows, keys
from qtask.store.flow_records import pause_flow
from tests.integration.test_flows import claim, end_rest, release, send, settle, task, trip


def findings(redis: Redis) -> list[Finding]:
    return checked.flows(Examined(Config(), redis, gateway_answers=False))


def only(redis: Redis) -> Finding:
    (finding,) = findings(redis)
    return finding


def test_flows_that_deliver_are_fine(redis: Redis) -> None:
    assert only(redis).level == "fine"
    pause_flow(redis, "paused and empty")
    send(redis, *[task({"key": "k", "parallel": 1})] * 3)
    release(redis)
    assert only(redis).level == "fine"


def test_resting_flow_is_named_with_its_end(redis: Redis) -> None:
    send(redis, *[task({"key": "partner api", "parallel": 1})] * 3)
    release(redis)
    settle(redis, claim(redis).items(), "failed", rest=30)
    finding = only(redis)
    assert finding.level == "note"
    assert finding.what.startswith("flow partner api rests until 20") and finding.what.endswith("; 2 tasks wait")
    assert "`qtask flow reset 'partner api'`" in finding.advice


def test_flow_with_an_open_circuit_breaker_is_named(redis: Redis) -> None:
    trip(redis)
    assert only(redis).what.startswith("the circuit breaker of flow k is open until 20")
    assert only(redis).what.endswith("; no task waits")
    end_rest(redis)
    send(redis, task("k"), task("k"))
    release(redis)
    assert only(redis).what == "the circuit breaker of flow k is half-open; 1 task waits"


def test_paused_flow_is_named_while_tasks_wait(redis: Redis) -> None:
    pause_flow(redis, "k")
    assert only(redis).level == "fine"
    send(redis, task("k"))
    release(redis)
    finding = only(redis)
    assert (finding.level, finding.what) == ("note", "flow k is paused; 1 task waits")


def test_many_flows_are_counted_beyond_the_first(redis: Redis) -> None:
    names = [f"flow-{number}" for number in range(checked.NAMED + 3)]
    for name in names:
        pause_flow(redis, name)
    send(redis, *map(task, names))
    release(redis)
    *named, rest = findings(redis)
    assert len(named) == checked.NAMED
    assert rest.what == "3 more flows that are paused while tasks wait"


def backlog(redis: Redis, seconds: float) -> None:
    """Three tasks wait for the slot of a fourth, since some seconds ago."""
    send(redis, *[task({"key": "k", "parallel": 1})] * 4)
    release(redis)
    members: Any = redis.zrange(keys.WAITING_PREFIX + "k", 0, -1)
    for member in members:
        redis.zincrby(keys.WAITING_PREFIX + "k", -seconds, member)


@pytest.mark.parametrize("seconds", [checked.OLD_SECONDS / 2, checked.OLD_SECONDS * 2])
def test_backlog_that_does_not_grow_is_fine(redis: Redis, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(checked, "GROWTH_SECONDS", 0.1)
    backlog(redis, seconds)
    assert only(redis).level == "fine"


def test_backlog_that_grows_is_wrong(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "GROWTH_SECONDS", 0.5)
    backlog(redis, checked.OLD_SECONDS * 2)
    ended = threading.Event()

    def keep_sending() -> None:
        while not ended.is_set():
            send(redis, task("k"))
            release(redis)
            time.sleep(0.01)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        finding = only(redis)
    finally:
        ended.set()
        sender.join()
    assert finding.level == "wrong"
    assert finding.what.startswith("the backlog of flow k grows; ")
    assert "`qtask flow set k`" in finding.advice


def test_limits_without_tasks_are_fine(redis: Redis) -> None:
    flows.set_limits("k", Limits(rate=1.0)).run(redis)
    assert only(redis).level == "fine"
