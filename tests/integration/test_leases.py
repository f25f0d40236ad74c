"""Leases: real workers that are killed, frozen or forgotten while a receiver holds their requests.

The tests do not wait for timeouts: they set the last heartbeat of a dead worker, or the end of a lease, into the past.
"""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Queue
from rq.registry import clean_registries
from rq.serializers import JSONSerializer

from qtask.store import keys, tasks
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

LONG_SECONDS = 600.0  # timeout of a delivery, so that no lease expires by itself
JSON = ("-S", "rq.serializers.JSONSerializer")


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """One Redis for this file, and two schedulers of which the first is killed; each test has its own queue."""
    with Live(folder) as one:
        first = one.start("scheduler")
        one.start("scheduler")
        first.kill()
        yield one


class Attempts:
    """Behaviour of a receiver that holds the answers to each attempt until the test releases that attempt."""

    def __init__(self) -> None:
        self.let_go = {"1": threading.Event(), "2": threading.Event()}

    def __call__(self, exchange: Exchange) -> None:
        self.let_go[exchange.request.header("QTask-Attempt")].wait(60)
        exchange.answer(200, b"ok")


def send(live: Live, queue: str, url: str, number: int = 1, **settings: Any) -> list[str]:
    given = {"time": 0, "timeout": LONG_SECONDS, **settings}
    one = {"title": "t", "address": {"type": "http", "link": url}, "settings": given}
    with live.client(queue) as client:
        return [client.send(one).id for _ in range(number)]


def token_of(worker: Process) -> str:
    events = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    return next(str(event["token"]) for event in events if event["event"] == "working")


def silence(live: Live, worker: Process) -> None:
    """Makes a killed or stopped worker look silent for a minute."""
    live.redis.zadd(keys.WORKERS, {token_of(worker): live.redis.time()[0] - 60})


def leases(live: Live, queue: str) -> dict[str, str]:
    """Ids in the started registry, with the token of the worker that holds each."""
    members: Any = live.redis.zrange(keys.started(queue), 0, -1)
    return dict(member.decode().split(":") for member in members)


def seen(receiver: Receiver) -> Counter[tuple[str, str]]:
    """Ids and attempts of the received requests."""
    return Counter((one.header("QTask-Id"), one.header("QTask-Attempt")) for one in receiver.requests)


def test_tasks_of_a_dead_worker_are_reclaimed_before_their_leases_end(live: Live, queue: str) -> None:
    """By the second scheduler, as the first was killed."""
    gate = Gate(held_attempts=("1",))
    first = live.start("worker", queue=queue)
    with Receiver(gate) as receiver:
        ids = send(live, queue, receiver.url, 5)
        receiver.wait_for(5)
        first.kill()
        silence(live, first)
        live.start("worker", queue=queue)
        records = live.ended(ids)
        gate.open()
        assert seen(receiver) == Counter((task_id, attempt) for task_id in ids for attempt in ("1", "2"))
    for record in records:
        assert (record.state, record.attempts) == ("delivered", 2)
        assert [(outcome.attempt, outcome.error) for outcome in record.outcomes] == [(1, "lost"), (2, "")]
        assert record.outcomes[0].message.startswith("the worker died or hung")
    assert leases(live, queue) == {}
    known: Any = live.redis.zrange(keys.WORKERS, 0, -1)
    assert token_of(first).encode() not in known, "dead workers are forgotten"


def test_expired_lease_of_a_live_worker_is_reclaimed(live: Live, queue: str) -> None:
    attempts = Attempts()
    first = live.start("worker", queue=queue, concurrency=1)
    with Receiver(attempts) as receiver:
        (task_id,) = send(live, queue, receiver.url)
        receiver.wait_for(1)
        second = live.start("worker", queue=queue)
        until(lambda: leases(live, queue) == {task_id: token_of(first)})
        end = live.redis.time()[0] + keys.FOREVER_SECONDS
        live.redis.zadd(keys.started(queue), {f"{task_id}:{token_of(first)}": end - 1})
        receiver.wait_for(2)
        assert leases(live, queue) == {task_id: token_of(second)}
        attempts.let_go["1"].set()  # too late: its outcome is not accepted any more
        until(lambda: "leases_lost" in first.log.read_text())
        assert tasks.show(live.redis, task_id).state == "started"
        attempts.let_go["2"].set()
        (record,) = live.ended([task_id])
    assert [(outcome.attempt, outcome.error) for outcome in record.outcomes] == [(1, "lost"), (2, "")]


def test_task_that_keeps_killing_its_worker_is_dead_after_its_attempts(live: Live, queue: str) -> None:
    gate = Gate()
    with Receiver(gate) as receiver, Receiver() as sound:
        (deadly,) = send(live, queue, receiver.url, retry={"attempts": 2})
        for number in (1, 2):
            worker = live.start("worker", queue=queue)
            receiver.wait_for(number)
            worker.kill()
            silence(live, worker)
            live.wait_queued(queue, 1)
        last = live.start("worker", queue=queue)
        (record,) = live.ended([deadly])
        (other,) = send(live, queue, sound.url)
        assert live.ended([other])[0].state == "delivered"
        gate.open()
        assert seen(receiver) == Counter([(deadly, "1"), (deadly, "2")])
    assert last.running
    assert (record.state, record.attempts) == ("dead", 2)
    assert [(outcome.attempt, outcome.error) for outcome in record.outcomes] == [(1, "lost"), (2, "lost")]
    reason: Any = live.redis.hget(keys.job(deadly), "exc_info")
    assert reason.decode().startswith("its worker died or hung in each of 2 attempts")


def test_task_with_one_attempt_is_not_delivered_twice(live: Live, queue: str) -> None:
    gate = Gate()
    first = live.start("worker", queue=queue)
    with Receiver(gate) as receiver:
        (task_id,) = send(live, queue, receiver.url, retry={"attempts": 1})
        receiver.wait_for(1)
        first.kill()
        silence(live, first)
        live.start("worker", queue=queue)
        (record,) = live.ended([task_id])
        gate.open()
        assert seen(receiver) == Counter([(task_id, "1")])
    assert (record.state, [outcome.error for outcome in record.outcomes]) == ("dead", ["lost"])


def test_worker_frozen_beyond_its_leases_settles_no_reclaimed_task(live: Live, queue: str) -> None:
    attempts = Attempts()
    frozen = live.start("worker", queue=queue)
    with Receiver(attempts) as receiver, Receiver() as later:
        ids = send(live, queue, receiver.url, 3)
        receiver.wait_for(3)
        frozen.signal(signal.SIGSTOP)
        silence(live, frozen)
        other = live.start("worker", queue=queue)
        receiver.wait_for(6)
        assert leases(live, queue) == dict.fromkeys(ids, token_of(other))
        attempts.let_go["1"].set()
        frozen.signal(signal.SIGCONT)
        until(lambda: frozen.log.read_text().count("leases_lost") > 0, what="the frozen worker to settle")
        assert leases(live, queue) == dict.fromkeys(ids, token_of(other))
        attempts.let_go["2"].set()
        records = live.ended(ids)
        assert seen(receiver) == Counter((task_id, attempt) for task_id in ids for attempt in ("1", "2"))
        other.kill()
        (last,) = send(live, queue, later.url)
        assert live.ended([last])[0].state == "delivered", "the frozen worker continues"
    for record in records:
        assert record.state == "delivered"
        assert [(outcome.attempt, outcome.error) for outcome in record.outcomes] == [(1, "lost"), (2, "")]
    assert frozen.running


def test_rq_clean_up_does_not_touch_leases_history_and_dead_letters(live: Live, queue: str) -> None:
    """As a stock `rq worker` runs it at start and every ten minutes."""
    gate = Gate()
    worker = live.start("worker", queue=queue)
    with Receiver(gate) as held, Receiver() as receiver:
        delivered = send(live, queue, receiver.url, 3)
        dead = send(live, queue, f"http://127.0.0.1:{free_port()}/", 3, retry={"attempts": 1})
        live.ended(delivered + dead)
        in_flight = send(live, queue, held.url, 3)
        held.wait_for(3)
        before = tasks.count_tasks(live.redis, queue)
        clean_registries(Queue(queue, connection=live.redis, serializer=JSONSerializer))
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        assert tasks.count_tasks(live.redis, queue) == before
        assert {name: before[name] for name in ("started", "delivered", "dead")} == {
            "started": 3,
            "delivered": 3,
            "dead": 3,
        }
        gate.open()
        records = live.ended(in_flight)
        assert seen(held) == Counter((task_id, "1") for task_id in in_flight)
    assert {record.state for record in records} == {"delivered"}
    assert worker.running
