"""Retries with real processes, and receivers that fail as the test says. Delays are by the clock of Redis."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rq.registry import FailedJobRegistry
from rq.serializers import JSONSerializer

from qtask.model.outcome import OUTCOMES_KEEP, Outcome
from qtask.model.timing import format_instant
from qtask.observe import stats
from qtask.observe.graph import render
from qtask.store import keys, tasks
from qtask.store.audit import audit
from qtask.store.rq_job import TaskJob
from tests.support.command import qtask
from tests.support.live import Live
from tests.support.receiver import Exchange, Receiver, Request
from tests.support.redis_server import free_port
from tests.support.waiting import until

CLOCK_SECONDS = 0.01  # tolerance, as a worker estimates the clock of Redis
JSON = ("-S", "rq.serializers.JSONSerializer")
NONE: dict[str, str] = {}


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """One Redis and one scheduler for this file, and a worker for the queue `qtask` that has no destination rest."""
    with Live(folder) as one:
        one.start("scheduler")
        one.start("worker", circuit_breaker=0, flow_rest_cap=0)
        yield one


class Script:
    """Behaviour of a receiver: a list of answers for each target, of which the last repeats."""

    def __init__(self, **answers: Sequence[int | tuple[int, dict[str, str]]]) -> None:
        self._answers = answers
        self._requests: dict[str, list[Request]] = {target: [] for target in answers}
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        target = exchange.request.target.strip("/")
        with self._lock:
            self._requests[target].append(exchange.request)
            number = len(self._requests[target])
        answers = self._answers[target]
        answer = answers[min(number, len(answers)) - 1]
        status, headers = (answer, NONE) if isinstance(answer, int) else answer
        exchange.answer(status, b"", headers)

    def requests(self, target: str) -> list[Request]:
        """The requests for one target, in order."""
        return self._requests[target]


def send(live: Live, link: str, kind: str = "http", queue: str = "qtask", **settings: Any) -> str:
    one = {"title": "t", "address": {"type": kind, "link": link}, "settings": {"time": 0, **settings}}
    with live.client(queue) as client:
        return client.send(one).id


def pauses(outcomes: Sequence[Outcome]) -> list[float]:
    """Seconds from the end of each delivery to the start of the next."""
    return [after.started - before.ended for before, after in pairwise(outcomes)]


def headers(requests: Sequence[Request]) -> list[tuple[str, str, str]]:
    return [(one.header("QTask-Id"), one.header("QTask-Attempt"), one.header("QTask-Due")) for one in requests]


# --- delays ------------------------------------------------------------------------------------------------------


def test_each_backoff_waits_at_least_its_delay(live: Live) -> None:
    """Checks lower bounds only; random delays (`jitter`) have none, and must only end."""
    wanted: dict[str, tuple[dict[str, Any], list[float]]] = {
        "exponential": ({"base": 0.15, "jitter": False, "attempts": 4}, [0.15, 0.3, 0.6]),
        "linear": ({"backoff": "linear", "base": 0.2, "attempts": 4}, [0.2, 0.4, 0.6]),
        "fixed": ({"backoff": "fixed", "base": 0.3, "attempts": 3}, [0.3, 0.3]),
        "list": ({"backoff": [0.1, 0.4], "attempts": 4}, [0.1, 0.4, 0.4]),
        "short": ({"backoff": [0.1, 0.2]}, [0.1, 0.2]),
        "capped": ({"base": 1_000, "cap": 0.25, "jitter": False, "attempts": 3}, [0.25, 0.25]),
        "drawn": ({"base": 0.1, "attempts": 4}, [0, 0, 0]),
    }
    script = Script(**{name: [503] for name in wanted})
    with Receiver(script) as receiver:
        ids = {name: send(live, receiver.url + name, retry=retry) for name, (retry, _) in wanted.items()}
        records = dict(zip(ids, live.ended(list(ids.values())), strict=True))
    for name, (_, least) in wanted.items():
        found = pauses(records[name].outcomes)
        assert len(found) == len(least), name
        assert all(pause >= bound - CLOCK_SECONDS for pause, bound in zip(found, least, strict=True)), (name, found)
        assert records[name].state == "dead"
        assert records[name].attempts == len(script.requests(name)) == len(least) + 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_broken_kept_connection_costs_an_attempt_and_no_delay(live: Live, method: str) -> None:
    """The receiver reads the request and closes the connection; it never gets two equal requests."""

    def charge(exchange: Exchange) -> None:
        target, attempt = exchange.request.target, exchange.request.header("QTask-Attempt")
        if target == "/warm" or (target == "/charge" and attempt == "2"):
            exchange.answer(200)
        else:
            exchange.keep = False

    data = {"method": method}
    with Receiver(charge) as receiver:
        for target, attempts, state in (("charge", 2, "delivered"), ("once", 1, "dead")):
            live.ended([send(live, receiver.url + "warm")])
            task_id = send(live, receiver.url + target, data=data, retry={"attempts": attempts, "base": 1_000})
            (record,) = live.ended([task_id])
            sent = [request for request in receiver.requests if request.header("QTask-Id") == task_id]
            assert [request.header("QTask-Attempt") for request in sent] == [str(n + 1) for n in range(attempts)]
            assert (record.state, record.attempts) == (state, attempts)
            assert record.outcomes[0].error == "connect"
            assert "kept connection broke" in record.outcomes[0].message


def test_delivered_outcome_notes_a_truncated_answer(live: Live) -> None:
    def break_off(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        exchange.keep = False

    with Receiver(break_off) as receiver:
        (record,) = live.ended([send(live, receiver.url, data={"method": "POST"})])
        assert len(receiver.requests) == 1
    (outcome,) = record.outcomes
    assert (record.state, outcome.status, outcome.code, outcome.answer) == ("delivered", "delivered", 200, "half")
    assert outcome.message.startswith("the rest of the answer was lost: ")
    shown = qtask("show", record.id, environment=live.environment).stdout
    assert "half (the rest of the answer was lost" in " ".join(shown.split())


def test_retry_after_is_respected_in_both_formats_up_to_the_cap(live: Live) -> None:
    instant = math.ceil(time.time()) + 2
    script = Script(
        seconds=[(429, {"Retry-After": "1"}), 200],
        date=[(503, {"Retry-After": formatdate(instant, usegmt=True)}), 200],
        too_long=[(503, {"Retry-After": "86400"}), 200],
        past=[(503, {"Retry-After": formatdate(instant - 3_600, usegmt=True)}), 200],
        nonsense=[(503, {"Retry-After": "soon"}), 200],
    )
    at_once = {"base": 0, "attempts": 2}
    with Receiver(script) as receiver:
        ids = [
            send(live, receiver.url + "seconds", retry=at_once),
            send(live, receiver.url + "date", retry=at_once),
            send(live, receiver.url + "too_long", retry={**at_once, "cap": 0.3}),
            send(live, receiver.url + "past", retry={**at_once, "base": 86_400}),
            send(live, receiver.url + "nonsense", retry=at_once),
        ]
        records = live.ended(ids)
    assert {record.state for record in records} == {"delivered"}
    assert pauses(records[0].outcomes)[0] >= 1 - CLOCK_SECONDS
    assert records[1].outcomes[1].started >= instant - CLOCK_SECONDS
    assert pauses(records[2].outcomes)[0] >= 0.3 - CLOCK_SECONDS


def test_waiting_retry_is_shown_with_its_instant(live: Live) -> None:
    script = Script(busy=[503])
    with Receiver(script) as receiver:
        before = time.time()
        task_id = send(live, receiver.url + "busy", retry={"backoff": [3_600]})
        until(lambda: tasks.show(live.redis, task_id).retry_at is not None)
    record = tasks.show(live.redis, task_id)
    assert (record.state, record.attempts, len(record.outcomes)) == ("scheduled", 1, 1)
    assert before <= record.due < before + 60, "due does not change"
    assert record.retry_at is not None
    assert record.retry_at >= record.outcomes[0].ended + 3_600 - CLOCK_SECONDS


# --- filters -----------------------------------------------------------------------------------------------------


def test_temporary_failures_are_retried_and_permanent_ones_are_dead_at_once(live: Live) -> None:
    statuses = {"408": 2, "425": 2, "429": 2, "500": 2, "503": 2, "400": 1, "404": 1, "410": 1, "422": 1}
    script = Script(**{status: [int(status)] for status in statuses}, closed=[500])

    def behave(exchange: Exchange) -> None:
        if exchange.request.target == "/hang":
            exchange.connection.recv(1)  # until the delivery closes the connection
        elif exchange.request.target == "/broken":
            exchange.keep = False
        elif exchange.request.target == "/garbage":
            exchange.send(b"what?\r\n\r\n")
            exchange.keep = False
        else:
            script(exchange)

    twice = {"base": 0, "attempts": 2}
    with Receiver(behave) as receiver:
        ids = {status: send(live, receiver.url + status, retry=twice) for status in statuses}
        ids |= {name: send(live, receiver.url + name, retry=twice, timeout=0.2) for name in ("hang", "broken")}
        ids["garbage"] = send(live, receiver.url + "garbage", retry=twice)
        ids["refused"] = send(live, f"http://127.0.0.1:{free_port()}/", retry=twice)
        ids["dns"] = send(live, "http://no-such-host.invalid/", retry=twice)
        ids["socket"] = send(live, f"127.0.0.1:{free_port()}", "socket", data=1, retry=twice)
        ids["udp"] = send(live, f"127.0.0.1:{free_port()}", "udp", data=1, retry=twice)
        ids["pipe"] = send(live, "absent", "pipe", data={"data": 1}, retry=twice)
        records = dict(zip(ids, live.ended(list(ids.values())), strict=True))
    assert {record.state for record in records.values()} == {"dead"}
    found = {name: len(record.outcomes) for name, record in records.items()}
    assert found == {
        **statuses,
        **dict.fromkeys(("hang", "broken", "garbage", "refused", "dns", "socket", "udp", "pipe"), 2),
    }


def test_on_selects_the_failures_that_are_retried(live: Live) -> None:
    script = Script(**{name: [404] for name in ("a", "b", "c")}, d=[500], e=[500], f=[503])
    with Receiver(script) as receiver:
        cases = {"a": [404], "b": ["4xx"], "c": ["timeout", 429], "d": ["timeout", "4xx"], "e": ["5xx"], "f": []}
        ids = [
            send(live, receiver.url + name, retry={"base": 0, "attempts": 3, "on": on}) for name, on in cases.items()
        ]
        live.ended(ids)
    assert {name: len(script.requests(name)) for name in cases} == {"a": 3, "b": 3, "c": 1, "d": 1, "e": 3, "f": 1}


# --- expires -----------------------------------------------------------------------------------------------------


def test_no_retry_starts_after_expires(live: Live) -> None:
    script = Script(after=[503], instant=[503])
    steadily = {"backoff": "fixed", "base": 0.25, "attempts": 50}
    with Receiver(script) as receiver:
        instant = time.time() + 1.0
        ids = [
            send(live, receiver.url + "after", retry=steadily, expires=1.0),
            send(live, receiver.url + "instant", retry=steadily, expires=format_instant(instant)),
        ]
        after, by_instant = live.ended(ids)
    for record, end in ((after, after.due + 1.0), (by_instant, instant)):
        assert record.state == "dead"
        assert 1 <= record.attempts <= 4
        assert [outcome.code for outcome in record.outcomes] == [503] * record.attempts
        assert all(outcome.started < end for outcome in record.outcomes)


def test_task_that_expired_before_its_first_delivery_is_never_delivered(live: Live, queue: str) -> None:
    """Its queue has no worker until it has expired."""
    script = Script(late=[200], fresh=[200])
    with Receiver(script) as receiver:
        late = send(live, receiver.url + "late", queue=queue, expires=0.05)
        fresh = send(live, receiver.url + "fresh", queue=queue, expires=3_600)
        live.wait_queued(queue, 2)
        until(lambda: time.time() > tasks.show(live.redis, late).due + 0.1)
        live.start("worker", queue=queue)
        dead, delivered = live.ended([late, fresh])
    assert script.requests("late") == []
    assert (dead.state, [outcome.error for outcome in dead.outcomes]) == ("dead", ["expired"])
    assert "settings.expires" in dead.outcomes[0].message
    assert dead.attempts == 0, "no delivery was started"
    assert dead.outcomes[0].lateness is None, "so there is no lateness"
    assert delivered.state == "delivered"


# --- outcomes and headers ----------------------------------------------------------------------------------------


def test_attempts_have_the_same_id_and_due_and_their_own_number(live: Live) -> None:
    script = Script(hook=[500, 503, 429, 200])
    with Receiver(script) as receiver:
        task_id = send(live, receiver.url + "hook", retry={"base": 0})
        (record,) = live.ended([task_id])
    due = format_instant(record.due)
    assert headers(script.requests("hook")) == [(task_id, str(number), due) for number in (1, 2, 3, 4)]
    assert [(outcome.attempt, outcome.code) for outcome in record.outcomes] == [(1, 500), (2, 503), (3, 429), (4, 200)]
    assert [outcome.lateness is None for outcome in record.outcomes] == [False, True, True, True]


def test_newest_outcomes_are_kept_and_shown(live: Live) -> None:
    attempts = OUTCOMES_KEEP + 3
    script = Script(hook=[500])
    with Receiver(script) as receiver:
        task_id = send(live, receiver.url + "hook", retry={"base": 0, "attempts": attempts})
        (record,) = live.ended([task_id])
    kept = list(range(attempts - OUTCOMES_KEEP + 1, attempts + 1))
    assert record.attempts == len(script.requests("hook")) == attempts
    assert [outcome.attempt for outcome in record.outcomes] == kept
    shown = json.loads(qtask("show", task_id, "--json", environment=live.environment).stdout)
    assert [outcome["attempt"] for outcome in shown["outcomes"]] == kept
    for_people = qtask("show", task_id, environment=live.environment).stdout
    assert for_people.count("the receiver answered 500") == OUTCOMES_KEEP


# --- statistics --------------------------------------------------------------------------------------------------


def test_only_first_deliveries_count_for_lateness(live: Live) -> None:
    """Uses a type that no other test in this file uses."""
    before = {kind.type: kind for kind in stats.summary(live.redis)}.get("pipe")
    ids = [send(live, f"nobody-{number}", "pipe", data={"data": 1}, retry={"backoff": [0.2, 0.2]}) for number in "12"]
    records = live.ended(ids)
    (samples,) = stats.read(live.redis, ["pipe"], newest=6)
    assert len(samples) == 6
    assert sum(math.isnan(late) for late in samples.lateness) == 4
    lateness = [outcome.lateness for record in records for outcome in record.outcomes if outcome.lateness is not None]
    known = [late for late in samples.lateness if not math.isnan(late)]
    assert sorted(known) == pytest.approx(sorted(lateness), abs=1e-6)
    after = next(kind for kind in stats.summary(live.redis) if kind.type == "pipe")
    assert after.totals["no_reader"] - (before.totals["no_reader"] if before else 0) == 6
    assert after.lateness is not None
    assert render(live.redis, "svg").startswith(b"<?xml")


def delivered_in_the_fourth_life(live: Live, queue: str, target: str, link: str, stock: bool) -> str:
    """Runs a task through four lives: dead, retried, requeued in two ways by RQ's tools, delivered; returns its id.

    Each life is one attempt, by a stock worker or by a worker of QTask.
    """
    task_id = send(live, link + target, queue=queue, retry={"attempts": 1})
    worker = None if stock else live.start("worker", queue=queue)

    def next_end(number: int) -> None:
        if stock:
            live.wait_queued(queue, 1)
            live.command("rq", "worker", "-u", live.server.url, *JSON, "-w", "rq.SimpleWorker", "--burst", queue)
        until(lambda: len(tasks.show(live.redis, task_id).outcomes) == number)

    next_end(1)
    assert tasks.retry(live.redis, [task_id]) == [task_id]
    next_end(2)
    live.command("rq", "requeue", "-u", live.server.url, *JSON, "--queue", queue, task_id)
    next_end(3)
    TaskJob.fetch(task_id, connection=live.redis).requeue()  # as rq-dashboard does
    next_end(4)
    if worker is not None:
        worker.stop()
    return task_id


@pytest.mark.parametrize(
    "stock", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["own worker", "stock worker"]
)
def test_lateness_is_measured_once_even_when_a_dead_letter_is_retried(live: Live, queue: str, stock: bool) -> None:
    script = Script(hook=[404, 404, 404, 200])
    with Receiver(script) as receiver:
        task_id = delivered_in_the_fourth_life(live, queue, "hook", receiver.url, stock)
    record = tasks.show(live.redis, task_id)
    assert (record.state, [outcome.code for outcome in record.outcomes]) == ("delivered", [404, 404, 404, 200])
    assert [outcome.attempt for outcome in record.outcomes] == [1, 1, 1, 1], "it starts again at attempt 1 each time"
    assert [outcome.lateness is None for outcome in record.outcomes] == [False, True, True, True]
    members: Any = live.redis.zrange(keys.stats("http"), 0, -1)
    mine = [member.decode().split(":") for member in members if member.startswith(task_id.encode())]
    assert sorted(lateness != "" for _, _, _, lateness, _ in mine) == [False, False, False, True]
    assert audit(live.redis).balances


# --- a stock worker ----------------------------------------------------------------------------------------------


def test_stock_worker_retries_in_the_same_way(live: Live, queue: str) -> None:
    """Through the schedule; only while it waits there, the job is in RQ's failed registry, too.

    The retries are an hour away, so that the test can check them; then the test makes them due.
    """
    script = Script(heals=[500, 200], stays=[500], final=[404])
    registry = FailedJobRegistry(queue, connection=live.redis, serializer=JSONSerializer)
    with Receiver(script) as receiver:
        retry = {"backoff": [3_600], "attempts": 2}
        ids = [send(live, receiver.url + name, queue=queue, retry=retry) for name in ("heals", "stays", "final")]
        live.wait_queued(queue, 3)
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        assert sorted(registry.get_job_ids()) == sorted(ids)
        found = audit(live.redis)
        assert found.balances, found
        assert tasks.retry(live.redis, ids[:2]) == tasks.remove_dead(live.redis, ids[:2]) == [], "they are not dead"
        records = [tasks.show(live.redis, task_id) for task_id in ids]
        assert [record.state for record in records] == ["scheduled", "scheduled", "dead"]
        for record in records[:2]:
            assert (record.retry_at or 0) >= record.outcomes[0].ended + 3_600 - CLOCK_SECONDS
            live.redis.zadd(keys.SCHEDULE, {record.id: live.redis.time()[0]})
        live.redis.publish(keys.WAKE, 0)
        live.wait_queued(queue, 2)
        assert registry.get_job_ids() == [ids[2]], "a task that is retried is not failed"
        assert not live.redis.exists(keys.STOCK_RETRIES)
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
    records = [tasks.show(live.redis, task_id) for task_id in ids]
    assert [record.state for record in records] == ["delivered", "dead", "dead"]
    assert [[outcome.code for outcome in record.outcomes] for record in records] == [[500, 200], [500, 500], [404]]
    assert sorted(registry.get_job_ids()) == sorted(ids[1:])
    due = format_instant(records[0].due)
    assert headers(script.requests("heals")) == [(ids[0], "1", due), (ids[0], "2", due)]
    for record in records[:2]:
        assert [outcome.lateness is None for outcome in record.outcomes] == [False, True]


def test_task_may_be_tried_by_both_kinds_of_worker(live: Live, queue: str) -> None:
    """First by a stock worker; RQ's result of that attempt is removed when QTask's worker has delivered the task."""
    script = Script(hook=[500, 200])
    with Receiver(script) as receiver:
        task_id = send(live, receiver.url + "hook", queue=queue, retry={"backoff": [1]})
        live.wait_queued(queue, 1)
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        assert live.redis.exists(keys.results(task_id))
        live.start("worker", queue=queue)
        (record,) = live.ended([task_id])
    assert (record.state, record.attempts) == ("delivered", 2)
    assert [(outcome.attempt, outcome.code) for outcome in record.outcomes] == [(1, 500), (2, 200)]
    assert not live.redis.exists(keys.results(task_id))
