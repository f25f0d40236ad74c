"""Failures of tasks are logged by real processes, with a limit for each destination and without secrets."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.destinations.registry import destination_of
from qtask.observe.failure_log import LINES, MOST_DESTINATIONS, OTHERS, FailureLog
from qtask.store import keys
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import Live
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

SECRET = "S3cret-value"


def events(log: Path, *names: str) -> list[dict[str, Any]]:
    """The events of these names in a log, in order."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] in names]


def http(url: str, **settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": {"time": 0, **settings}}


def behave(exchange: Exchange) -> None:
    exchange.answer(503 if "fail" in exchange.request.target else 200)


# --- deliveries ------------------------------------------------------------------------------------------------------


def test_failed_attempts_and_dead_letters_are_logged_and_delivered_tasks_are_not(live: Live, queue: str) -> None:
    closed = free_port()
    once = {"retry": {"attempts": 1}}
    with Receiver(behave) as receiver:
        worker = live.start("worker", queue=queue, log_format="json")
        private = receiver.url.replace("://", f"://user:{SECRET}@") + f"fail/private-path?token={SECRET}"
        tasks = [
            http(receiver.url + "ok"),
            http(private, retry={"attempts": 2, "base": 0.2}),
            http(f"http://127.0.0.1:{closed}/{SECRET}", **once),
            {
                "title": "t",
                "address": {"type": "socket", "link": f"127.0.0.1:{closed}"},
                "settings": {"time": 0, "data": 1, **once},
            },
            {
                "title": "t",
                "address": {"type": "pipe", "link": "none"},
                "settings": {"time": 0, "data": {"data": 1}, **once},
            },
            http("http://never.invalid/", **once),
        ]
        delivered, retried, connect, to_socket, to_pipe, unknown = live.send(queue, *tasks)
        live.ended([delivered, retried, connect, to_socket, to_pipe, unknown])
    host = f"127.0.0.1:{receiver.port}"
    found = {one["task"]: one for one in events(worker.log, "dead")}
    told = {
        task: (one["level"], one["type"], one["destination"], one["attempt"], one["outcome"])
        for task, one in found.items()
    }
    assert told == {
        retried: ("warning", "http", host, 2, "status"),
        connect: ("warning", "http", f"127.0.0.1:{closed}", 1, "connect"),
        to_socket: ("warning", "socket", f"127.0.0.1:{closed}", 1, "connect"),
        to_pipe: ("warning", "pipe", "pipe:none", 1, "no_reader"),
        unknown: ("warning", "http", "never.invalid", 1, "dns"),
    }
    assert found[retried]["status"] == 503
    (attempt,) = events(worker.log, "attempt_failed")
    assert (attempt["level"], attempt["task"], attempt["attempt"], attempt["status"]) == ("info", retried, 1, 503)
    assert (attempt["destination"], attempt["outcome"]) == (host, "status")
    assert 0 < attempt["retry_in_s"] <= 1
    log = worker.log.read_text()
    assert delivered not in log
    assert not any(word in log for word in (SECRET, "private-path", "user:"))


def test_expired_tasks_and_invalid_jobs_are_logged_as_dead_letters(live: Live, queue: str) -> None:
    (expired,) = live.send(queue, http("http://expired.example/", expires=0.1))
    live.wait_queued(queue, 1)
    foreign = f"foreign-{queue}"
    live.redis.hset(keys.job(foreign), mapping={"data": '["other.function",null,[],{}]', "origin": queue})
    live.redis.rpush(keys.queue(queue), foreign)
    time.sleep(0.3)  # past its expiry, 0.1 s after due
    worker = live.start("worker", queue=queue)
    live.ended([expired, foreign])
    found = {one["task"]: (one["outcome"], one["destination"]) for one in events(worker.log, "dead")}
    assert found == {expired: ("expired", "expired.example"), foreign: ("refused", "unknown")}


@pytest.mark.slow
def test_lost_deliveries_are_logged_by_the_scheduler_and_their_deaths_by_the_worker(live: Live, queue: str) -> None:
    gate = Gate()
    with Receiver(gate) as receiver:
        (task_id,) = live.send(queue, http(receiver.url, retry={"attempts": 1}))
        first = live.start("worker", queue=queue)
        until(lambda: gate.held == 1, what="the delivery")
        first.kill()
        scheduler_log = next(live.folder.glob("scheduler-*.log"))
        until(lambda: [one for one in events(scheduler_log, "delivery_lost") if one["task"] == task_id], 30, "the line")
        second = live.start("worker", queue=queue)
        live.ended([task_id])
        gate.open()
    host = f"127.0.0.1:{receiver.port}"
    (lost,) = [one for one in events(scheduler_log, "delivery_lost") if one["task"] == task_id]
    assert (lost["level"], lost["destination"], lost["attempt"]) == ("warning", host, 1)
    (dead,) = events(second.log, "dead")
    assert (dead["task"], dead["outcome"], dead["destination"]) == (task_id, "lost", host)


def test_receiver_that_fails_many_tasks_causes_few_lines(live: Live, queue: str) -> None:
    count = 400
    with Receiver(behave) as receiver, Receiver(behave) as other:
        worker = live.start("worker", queue=queue, circuit_breaker=0)  # else most of them would wait
        dead = live.send(queue, *[http(f"{receiver.url}fail/{n}", retry={"attempts": 1}) for n in range(count)])
        live.ended(dead)
        (later,) = live.send(queue, http(f"{other.url}fail", retry={"attempts": 1}))
        live.ended([later])
        assert worker.stop() == 0
    found = events(worker.log, "dead")
    lines = Counter(one["destination"] for one in found)
    assert lines == {f"127.0.0.1:{receiver.port}": LINES, f"127.0.0.1:{other.port}": 1}
    (left_out,) = events(worker.log, "lines_left_out")
    about = (left_out["level"], left_out["of"], left_out["destination"], left_out["lines"])
    assert about == ("warning", "dead", f"127.0.0.1:{receiver.port}", count - LINES)


def test_stock_worker_logs_the_same(live: Live, queue: str) -> None:
    with Receiver(behave) as receiver:
        ids = live.send(
            queue,
            http(receiver.url + "ok"),
            http(receiver.url + "fail", retry={"attempts": 1}),
            http(receiver.url + f"fail?token={SECRET}", retry={"attempts": 2, "base": 60}),
        )
        live.wait_queued(queue, len(ids))
        output = live.command("rq", "worker", "-b", "-u", live.url, "-S", "rq.serializers.JSONSerializer", queue)
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    told = {
        one["task"]: (one["event"], one["level"], one["process"], one["destination"], one["status"]) for one in found
    }
    host = f"127.0.0.1:{receiver.port}"
    assert told == {
        ids[1]: ("dead", "warning", "rq-worker", host, 503),
        ids[2]: ("attempt_failed", "info", "rq-worker", host, 503),
    }
    assert all(SECRET not in json.dumps(one) for one in found)
    live.redis.zrem(keys.SCHEDULE, ids[2])


# --- refused tasks ---------------------------------------------------------------------------------------------------


def test_refused_tasks_are_logged_for_every_entrance(gateway: Gateway, redis: Redis) -> None:
    bad = http(f"http://user:{SECRET}@host.example:8080/private-path?token={SECRET}", id="order-7\n\x1b[2J", timeout=-1)
    with Connection(gateway.port) as connection:
        assert not connection.ask(bad)["ok"]
        assert not connection.ask("text")["ok"]
        assert [answer["ok"] for answer in connection.ask([bad, http("http://fine.example/")])] == [False, True]
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.http_port}/tasks", json.dumps(bad).encode(), {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(request)
    redis.xadd(keys.INBOX, {"task": json.dumps(bad), "reply": "answer"})
    assert redis.blpop(["answer"], 30)
    found = events(gateway.process.log, "task_refused")
    assert Counter(one["via"] for one in found) == {"socket": 3, "http": 1, "inbox": 1}
    told = {(one["level"], one["task"], one["destination"], one["code"], one["field"]) for one in found}
    assert told == {
        ("info", "order-7\n\x1b[2J", "host.example:8080", "invalid_value", "settings.timeout"),
        ("info", "", "", "wrong_type", ""),
    }
    log = gateway.log
    assert not any(word in log for word in (SECRET, "private-path", "user:", "\x1b"))


def test_many_refused_tasks_cause_few_lines(redis: Redis, redis_server: Any, folder: Path) -> None:
    with Gateway(redis_server.url, folder) as own:
        with Connection(own.port) as connection:
            answers = connection.ask([{"title": n} for n in range(3_000)])
        assert len(answers) == 3_000
        assert own.process.stop() == 0
        assert len(events(own.process.log, "task_refused")) == LINES
        (left_out,) = events(own.process.log, "lines_left_out")
    assert (left_out["of"], left_out["via"], left_out["lines"]) == ("task_refused", "socket", 3_000 - LINES)


# --- the bound -------------------------------------------------------------------------------------------------------


class Lines(logging.Handler):
    """Keeps all log records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append({"event": record.getMessage(), **vars(record)})


def bounded(level: int = logging.INFO) -> tuple[FailureLog, Lines, list[float]]:
    """A log with a clock that the test sets."""
    logger = logging.Logger("test", level)
    lines, now = Lines(), [0.0]
    logger.addHandler(lines)
    return FailureLog(logger, clock=lambda: now[0]), lines, now


def test_memory_is_bounded_and_every_event_is_written_or_counted() -> None:
    log, lines, now = bounded()
    written = 0
    for round_ in range(3):
        for number in range(100_000):
            log.write(logging.INFO, "attempt_failed", f"host-{number}", dict)
            written += 1
            assert number % 10_000 or len(log._windows) <= MOST_DESTINATIONS + 1
        now[0] += 61.0 * (round_ + 1)
    log.flush()
    assert not log._windows and log._counts == {"attempt_failed": 0}
    shown = [one for one in lines.records if one["event"] == "attempt_failed"]
    left_out = [one for one in lines.records if one["event"] == "lines_left_out"]
    assert len(shown) + sum(one["lines"] for one in left_out) == written
    assert {one["destination"] for one in left_out} == {OTHERS}
    assert len(shown) == 3 * (MOST_DESTINATIONS + LINES)


def test_limits_of_lines_are_per_minute_and_per_event() -> None:
    log, lines, now = bounded()
    for _ in range(LINES + 5):
        log.write(logging.INFO, "attempt_failed", "a", dict)
    log.write(logging.WARNING, "dead", "a", dict)
    now[0] = 59.0
    log.flush()
    assert [one["event"] for one in lines.records] == ["attempt_failed"] * LINES + ["dead"]
    now[0] = 60.0
    log.write(logging.INFO, "attempt_failed", "a", dict)
    assert [(one["event"], one.get("lines")) for one in lines.records[-2:]] == [
        ("lines_left_out", 5),
        ("attempt_failed", None),
    ]


def test_disabled_level_costs_nothing() -> None:
    log, lines, _ = bounded(logging.WARNING)

    def fields() -> dict[str, Any]:
        raise AssertionError("called although the level is disabled")

    log.write(logging.INFO, "attempt_failed", "a", fields)
    assert not lines.records and not log._windows


@pytest.mark.parametrize(
    ("kind", "link", "destination"),
    [
        ("http", "http://user:pw@h.example:80/p@th?q=http://x@y", "h.example:80"),
        ("http", "https://[::1]:8443/x", "[::1]:8443"),
        ("http", "http://größer.example", "größer.example"),
        ("http", "http://unix:/run/app.sock:/path?token=x", "unix:/run/app.sock"),
        ("http", "http://user:S3cret/pw@h/", "unknown"),
        ("http", "nonsense", "unknown"),
        ("socket", "h.example:5000", "h.example:5000"),
        ("socket", "unix:/run/x", "unix:/run/x"),
        ("udp", "user:pw@h:1", "unknown"),
        ("pipe", "orders", "pipe:orders"),
        ("pipe", "../x", "unknown"),
        ("__graph__", "", "__graph__"),
    ],
)
def test_destination_of_a_link(kind: str, link: str, destination: str) -> None:
    assert destination_of(kind, link) == destination
