"""The worker as a process: deliveries, retention and failures, on a real Redis with real receivers."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rq import Worker
from rq.command import send_shutdown_command

from qtask.client.protocol import Accepted
from qtask.model.outcome import decode_outcomes
from qtask.store import keys, tasks
from tests.chaos.proxy import Proxy
from tests.support.live import Live, drawings
from tests.support.processes import Process
from tests.support.receiver import Behaviour, Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until


def failing_once() -> Behaviour:
    """Behaviour of a receiver that fails the first attempt of each task."""
    failed: set[str] = set()

    def answer(exchange: Exchange) -> None:
        task_id = exchange.request.header("QTask-Id")
        status = 200 if task_id in failed else 500
        failed.add(task_id)  # before the answer: the next attempt may arrive before this thread continues
        exchange.answer(status)

    return answer


def http(url: str, **settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": {"time": 0, **settings}}


def worker_exit(process: Process, seconds: float) -> int:
    until(lambda: not process.running, seconds, "the worker to exit")
    return process.stop()


# --- deliveries and retention ------------------------------------------------------------------------------------


def test_task_of_each_type_is_delivered_once_and_its_outcome_kept(live: Live, queue: str) -> None:
    os.mkfifo(live.pipes / "orders")
    pipe = os.open(live.pipes / "orders", os.O_RDONLY | os.O_NONBLOCK)
    live.start("worker", queue=queue)
    with (
        Receiver(lambda exchange: exchange.answer(201, b"made " + b"x" * 5_000)) as receiver,
        socket.socket() as server,
    ):
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(30)
        to_socket = {"type": "socket", "link": f"127.0.0.1:{server.getsockname()[1]}"}
        before = time.time()
        ids = live.send(
            queue,
            http(receiver.url + "hook", time=0.1, data={"method": "POST", "json": {"n": 1}}),
            {"title": "t", "address": to_socket, "settings": {"time": 0, "data": [1, 2]}},
            {"title": "t", "address": {"type": "pipe", "link": "orders"}, "settings": {"time": 0, "data": {"data": 3}}},
            {"title": "t", "address": {"type": "__graph__"}, "settings": {"timeout": 90}},
        )
        connection, _ = server.accept()
        with connection:
            received = b"".join(iter(lambda: connection.recv(100), b""))
            connection.sendall(b"thanks")
        records = live.ended(ids, 100)
    after = time.time()
    assert [request.body for request in receiver.requests] == [b'{"n":1}']
    assert received == b"[1,2]"
    assert os.read(pipe, 100) == b"3\n"
    os.close(pipe)

    answers = []
    for record in records:
        assert (record.state, record.attempts) == ("delivered", 1)
        (outcome,) = record.outcomes
        assert (outcome.status, outcome.error, outcome.message) == ("delivered", "", "")
        assert before <= record.due <= outcome.started <= outcome.ended <= after
        assert outcome.lateness == pytest.approx(outcome.started - record.due, abs=1e-5)
        assert outcome.duration == pytest.approx(outcome.ended - outcome.started, abs=1e-5)
        answers.append((outcome.code, outcome.answer))
    assert answers[:3] == [(201, "made " + "x" * 2_043), (0, "thanks"), (0, "")]
    assert answers[3][1].startswith('{"graph": ')


def test_failed_task_is_dead_with_a_reason(live: Live, queue: str) -> None:
    live.start("worker", queue=queue)

    def behaviour(exchange: Exchange) -> None:
        if exchange.request.target == "/slow":
            exchange.connection.recv(1)  # until the delivery closes the connection
        else:
            exchange.answer(500, b"out of order")

    once = {"attempts": 1}
    to_pipe = {"time": 0, "data": {"data": 1}, "retry": once}
    with Receiver(behaviour) as receiver:
        ids = live.send(
            queue,
            http(receiver.url + "broken", retry=once),
            http(receiver.url + "slow", timeout=0.2, retry=once),
            http(f"http://127.0.0.1:{free_port()}/", retry=once),
            {"title": "t", "address": {"type": "pipe", "link": "absent"}, "settings": to_pipe},
        )
        records = live.ended(ids)
    found = [(record.state, record.outcomes[-1].error, record.outcomes[-1].code) for record in records]
    assert found == [("dead", "status", 500), ("dead", "timeout", 0), ("dead", "connect", 0), ("dead", "no_reader", 0)]
    assert records[0].outcomes[-1].answer == "out of order"
    words = [record.outcomes[-1].message for record in records]
    assert "500" in words[0] and "0.2 s" in words[1] and "127.0.0.1" in words[2] and "mkfifo" in words[3]
    assert {record.id for record in tasks.list_tasks(live.redis, queue, "dead")} == set(ids)


def test_history_is_bounded_in_number(live: Live, queue: str) -> None:
    live.start("worker", queue=queue, retention_count=5)
    with Receiver() as receiver:
        ids: list[str] = []
        for _ in range(4):
            sent = live.send(queue, *[http(receiver.url) for _ in range(5)])
            receiver.wait_for(len(ids) + 5)
            ids += sent
            until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 0)
    kept = [record.id for record in tasks.list_tasks(live.redis, queue, "delivered")]
    assert len(kept) == 5
    assert [bool(live.redis.exists(keys.job(task_id))) for task_id in ids] == [task_id in kept for task_id in ids]
    now = live.redis.time()[0]
    end = (live.redis.zscore(keys.finished(queue), kept[0]) or 0) - keys.FOREVER_SECONDS
    assert end - now == pytest.approx(86_400, abs=60), "the end of its retention"


BROKEN: dict[str, dict[Any, Any]] = {
    "another-function": {"data": b'["os.getpid",null,[],{}]'},
    "no-JSON": {"data": b"\x80\x04\x95pickle"},
    "compressed-junk": {"data": zlib.compress(b"junk")},
    "half-a-dict": {"data": b'["qtask.do",0,[{"title":"t"}],{}]'},
    "no-dict-at-all": {"data": b'["qtask.do",0,[],{}]'},
    "a-link-to-nowhere": {
        "data": b'["qtask.do",0,[{"title":"t","address":{"type":"socket","link":"?"},"settings":{}}],{}]'
    },
    "a-pipe-without-data": {
        "data": b'["qtask.do",0,[{"title":"t","address":{"type":"pipe","link":"p"},"settings":{}}],{}]'
    },
    "a-pipe-elsewhere": {
        "data": b'["qtask.do",0,[{"title":"t","address":{"type":"pipe","link":"../p"},'
        b'"settings":{"data":{"data":1}}}],{}]'
    },
    "bad-headers": {
        "data": b'["qtask.do",0,[{"title":"t","address":{"type":"http","link":"http://a/"},'
        b'"settings":{"data":{"headers":5}}}],{}]'
    },
    "a-due-that-is-none": {
        "data": b'["qtask.do",0,[{"title":"t","address":{"type":"http","link":"http://a/"},"settings":{}}],{}]',
        "due": b"tomorrow",
    },
}


def test_invalid_task_is_dead_with_a_message_and_does_not_stop_others(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue)
    with Receiver() as receiver:
        (sound,) = live.send(queue, http(receiver.url, time=3600))
        live.redis.zrem(keys.SCHEDULE, sound)
        for name, fields in BROKEN.items():
            live.redis.hset(keys.job(name), mapping=fields | {"origin": queue})
        live.redis.rpush(keys.queue(queue), "no-such-job", *BROKEN, sound)
        assert live.ended([sound])[0].state == "delivered"
        live.ended(list(BROKEN))
    assert worker.running
    words = {}
    for name in BROKEN:
        assert tasks.show(live.redis, name).state == "dead", name
        raw: Any = live.redis.hget(keys.job(name), "outcomes")
        (outcome,) = decode_outcomes(raw)
        words[name] = f"{outcome.error}: {outcome.message}"
    assert "os.getpid" in words["another-function"]
    assert "address" in words["half-a-dict"]
    assert "tomorrow" in words["a-due-that-is-none"]
    assert all(text.startswith("refused: ") for text in words.values()), words
    dead = {record.id: record for record in tasks.list_tasks(live.redis, queue, "dead")}
    assert dead.keys() == BROKEN.keys()
    assert (dead["no-JSON"].type, dead["no-JSON"].title, dead["bad-headers"].type) == ("unknown", "", "http")
    assert tasks.count_tasks(live.redis, queue)["started"] == 0


def test_immediate_retries_are_delivered_at_once(live: Live, queue: str) -> None:
    """A task may be claimed again before its worker knows that the first outcome is settled."""
    live.start("worker", queue=queue, circuit_breaker=0)
    with Receiver(failing_once()) as receiver:
        at_once = {"attempts": 2, "backoff": "fixed", "base": 0.0}
        ids = [task_id for _ in range(8) for task_id in live.send(queue, *[http(receiver.url, retry=at_once)] * 250)]
        records = live.ended(ids)
    assert {(record.state, record.attempts, len(record.outcomes)) for record in records} == {("delivered", 2, 2)}


def test_five_hundred_deliveries_are_in_flight_at_once_in_one_process(live: Live, queue: str) -> None:
    gate = Gate(until=500)  # no answer before all 500 requests have come
    live.start("worker", queue=queue)
    with Receiver(gate, ports_count=10) as receiver:
        ids = live.send(queue, *map(http, receiver.urls(500)))
        receiver.wait_for(500, 20)
        records = live.ended(ids)
    assert gate.held == 500
    assert {record.state for record in records} == {"delivered"}
    assert sorted(receiver.ids) == sorted(ids)


def test_deliveries_in_flight_are_limited_by_concurrency(live: Live, queue: str) -> None:
    gate = Gate()
    worker = live.start("worker", queue=queue, concurrency=3)
    with Receiver(gate, ports_count=10) as receiver:
        ids = live.send(queue, *map(http, receiver.urls(10)))
        receiver.wait_for(3)
        live.heartbeats(worker, 1)
        assert len(receiver.requests) == 3
        gate.open()
        live.ended(ids)
    assert sorted(receiver.ids) == sorted(ids)


def test_tasks_waiting_behind_hanging_receivers_go_to_another_worker(live: Live, queue: str) -> None:
    gate = Gate()
    live.start("worker", queue=queue, concurrency=8)
    with Receiver(gate, ports_count=9) as receiver:
        ids = live.send(queue, *map(http, receiver.urls(9)))
        receiver.wait_for(8)
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 9)  # one waits in the worker
        live.start("worker", queue=queue, concurrency=8)
        receiver.wait_for(9)
        gate.open()
        records = live.ended(ids)
    assert sorted(receiver.ids) == sorted(ids)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}


def test_timeout_starts_when_the_delivery_has_a_connection(live: Live, queue: str) -> None:
    """Each of six deliveries takes half its timeout, so the last one waits longer than its timeout."""

    def answer_slowly(exchange: Exchange) -> None:
        time.sleep(0.5)
        exchange.answer(200)

    live.start("worker", queue=queue, host_connections=1)
    with Receiver(answer_slowly) as receiver:
        ids = live.send(queue, *[http(receiver.url, timeout=1, retry={"attempts": 1}) for _ in range(6)])
        records = live.ended(ids)
        assert receiver.connections == 1
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}
    assert sorted(receiver.ids) == sorted(ids)
    outcomes = sorted((record.outcomes[0] for record in records), key=lambda outcome: outcome.started)
    for before, after in pairwise(outcomes):
        assert after.started > before.ended - 0.1, "waiting counts as lateness, not as duration"


def test_task_that_expires_while_waiting_for_a_connection_is_not_sent(live: Live, queue: str) -> None:
    gate = Gate()
    live.start("worker", queue=queue, host_connections=1)
    with Receiver(gate) as receiver:
        (first,) = live.send(queue, http(receiver.url))
        receiver.wait_for(1)
        expiring = live.send(queue, *[http(receiver.url, expires=0.2) for _ in range(3)])
        (last,) = live.send(queue, http(receiver.url))
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 5)
        time.sleep(0.3)
        gate.open()
        records = {record.id: record for record in live.ended([first, *expiring, last])}
    assert receiver.ids == [first, last]
    assert {records[one].outcomes[0].error for one in expiring} == {"expired"}
    assert [records[one].state for one in (first, last)] == ["delivered"] * 2


def test_retried_dead_letter_waiting_for_a_connection_has_its_lateness_measured_once(live: Live, queue: str) -> None:
    gate = Gate()

    def answer(exchange: Exchange) -> None:
        if exchange.request.target == "/dies" and not gate.held:
            exchange.answer(404)
        else:
            gate(exchange)

    live.start("worker", queue=queue, host_connections=1)
    with Receiver(answer) as receiver:
        (dies,) = live.send(queue, http(receiver.url + "dies", retry={"attempts": 1}))
        until(lambda: tasks.show(live.redis, dies).state == "dead")
        (first,) = live.send(queue, http(receiver.url + "first"))
        receiver.wait_for(2)
        assert tasks.retry(live.redis, [dies]) == [dies]
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 2)
        gate.open()
        record = live.ended([first, dies])[1]
    assert [outcome.code for outcome in record.outcomes] == [404, 200]
    assert [outcome.lateness is None for outcome in record.outcomes] == [False, True]


@pytest.mark.slow
def test_task_waiting_long_for_a_connection_goes_to_another_worker(live: Live, queue: str) -> None:
    gate = Gate()
    live.start("worker", queue=queue, host_connections=1)
    with Receiver(gate) as receiver, Receiver() as other:
        ids = live.send(queue, *[http(receiver.url) for _ in range(2)])
        receiver.wait_for(1)
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 2)
        live.start("worker", queue=queue, host_connections=1)
        elsewhere: list[str] = []
        while len(receiver.requests) < 2:  # tasks for another host continue, so that claims never pause
            elsewhere += live.send(queue, *[http(other.url) for _ in range(20)])
            time.sleep(0.1)
            assert len(elsewhere) < 4_000, "the second task was to go to the second worker"
        gate.open()
        records = live.ended(ids + elsewhere)
    assert sorted(receiver.ids) == sorted(ids)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}


def test_sigterm_gives_back_tasks_that_wait_for_a_connection(live: Live, queue: str) -> None:
    gate = Gate()
    process = live.start("worker", queue=queue, host_connections=1)
    with Receiver(gate) as receiver:
        ids = live.send(queue, *[http(receiver.url) for _ in range(4)])
        receiver.wait_for(1)
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 4)
        process.signal(signal.SIGTERM)
        until(lambda: len(live.queued(queue)) == 3, what="three tasks to be given back")
        gate.open()
        assert worker_exit(process, 30) == 0
        live.start("worker", queue=queue, host_connections=1)
        records = live.ended(ids)
    assert sorted(receiver.ids) == sorted(ids)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}


def test_thousand_tasks_are_delivered_once_and_none_early(live: Live, queue: str) -> None:
    """Due at random instants over 4 s; arrivals by the clock of this machine, which is also that of Redis."""
    arrivals: dict[str, float] = {}

    def note(exchange: Exchange) -> None:
        arrivals.setdefault(exchange.request.header("QTask-Id"), time.time())
        exchange.answer(200, b"ok")

    live.start("worker", queue=queue)
    generator = random.Random(5)
    with Receiver(note) as receiver:
        dicts = [http(receiver.url, time=0.5 + 4 * generator.random()) for _ in range(1_000)]
        with live.client(queue) as client:
            accepted = [answer for answer in client.send_many(dicts) if isinstance(answer, Accepted)]
        records = live.ended([task.id for task in accepted])
    assert len(accepted) == 1_000
    assert Counter(receiver.ids) == Counter(task.id for task in accepted)
    late = sorted(arrivals[task.id] - task.due for task in accepted)
    assert late[0] >= 0
    assert {record.state for record in records} == {"delivered"}
    print(f"lateness of the arrival: p50 {late[500] * 1e3:.1f} ms, p99 {late[990] * 1e3:.1f} ms")


# --- failures ----------------------------------------------------------------------------------------------------


@dataclass
class Silent:
    """A worker without a heartbeat, whose tasks in flight a scheduler has reclaimed."""

    queue: str
    worker: Process
    gate: Gate
    receiver: Receiver
    ids: list[str]


@pytest.fixture(scope="module")
def silenced(live: Live) -> Iterator[dict[str, Silent]]:
    """One killed worker and one frozen worker; both together, as the wait takes five seconds."""
    with Receiver(Gate(held_attempts=("1",))) as one, Receiver(Gate(held_attempts=("1",))) as other:
        silent = {}
        for how, receiver in (("killed", one), ("frozen", other)):
            queue = f"{how}-worker"
            worker = live.start("worker", queue=queue)
            ids = live.send(queue, *[http(receiver.url) for _ in range(20)])
            assert isinstance(receiver.behaviour, Gate)
            silent[how] = Silent(queue, worker, receiver.behaviour, receiver, ids)
            receiver.wait_for(20)
        silent["killed"].worker.kill()
        silent["frozen"].worker.signal(signal.SIGSTOP)
        for one_of_them in silent.values():
            assert sorted(live.wait_queued(one_of_them.queue, 20)) == sorted(one_of_them.ids)
        yield silent


def test_tasks_of_a_killed_worker_are_reclaimed_and_delivered_by_another(
    live: Live, silenced: dict[str, Silent]
) -> None:
    killed = silenced["killed"]
    live.start("worker", queue=killed.queue)
    records = live.ended(killed.ids)
    killed.gate.open()
    assert {(record.state, record.attempts) for record in records} == {("delivered", 2)}
    requests = killed.receiver.requests
    seen = Counter((request.header("QTask-Id"), request.header("QTask-Attempt")) for request in requests)
    assert seen == Counter((task_id, attempt) for task_id in killed.ids for attempt in ("1", "2"))
    assert tasks.count_tasks(live.redis, killed.queue)["started"] == 0


def test_unfrozen_worker_delivers_its_tasks_in_flight_once(live: Live, silenced: dict[str, Silent]) -> None:
    """When it continues, it claims the same tasks that it has in flight."""
    frozen = silenced["frozen"]
    frozen.worker.signal(signal.SIGCONT)
    until(lambda: tasks.count_tasks(live.redis, frozen.queue)["started"] == 20)
    frozen.gate.open()
    records = live.ended(frozen.ids)
    assert {record.state for record in records} == {"delivered"}
    assert {tuple(outcome.error for outcome in record.outcomes) for record in records} == {("lost", "")}
    assert sorted(frozen.receiver.ids) == sorted(frozen.ids)
    assert frozen.worker.running


def test_sigterm_finishes_tasks_in_flight_and_gives_the_rest_back(live: Live, queue: str) -> None:
    gate = Gate()
    worker = live.start("worker", queue=queue, concurrency=16)
    with Receiver(gate, ports_count=20) as receiver:
        ids = live.send(queue, *map(http, receiver.urls(40)))
        receiver.wait_for(16)
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] == 18)  # two wait in the worker
        worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in worker.log.read_text())
        gate.open()
        assert worker_exit(worker, 30) == 0
    delivered = [record.id for record in tasks.list_tasks(live.redis, queue, "delivered")]
    assert sorted(delivered) == sorted(receiver.ids) and len(delivered) == 16
    assert sorted(delivered + live.queued(queue)) == sorted(ids)
    assert tasks.count_tasks(live.redis, queue)["started"] == 0
    attempts = {tasks.show(live.redis, task_id).attempts for task_id in live.queued(queue)}
    assert attempts == {0}, "an attempt that never started does not count"


def test_second_sigterm_does_not_wait_for_tasks_in_flight(live: Live, queue: str) -> None:
    gate = Gate()
    worker = live.start("worker", queue=queue)
    with Receiver(gate) as receiver:
        ids = live.send(queue, *[http(receiver.url) for _ in range(4)])
        receiver.wait_for(4)
        worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in worker.log.read_text())
        assert worker.running
        worker.signal(signal.SIGTERM)
        assert worker_exit(worker, 20) == 0
        assert sorted(live.queued(queue)) == sorted(ids)
        live.start("worker", queue=queue)
        gate.open()
        records = live.ended(ids)
    assert {record.state for record in records} == {"delivered"}


def test_drawing_does_not_delay_a_stopping_worker(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue)
    (graph,) = live.send(queue, {"title": "g", "address": {"type": "__graph__"}})
    # Wait until it runs its own program: until then its parent waits for the exec, and would stop with it.
    (drawing,) = until(lambda: drawings(worker.pid))
    os.kill(drawing, signal.SIGSTOP)
    worker.signal(signal.SIGTERM)
    until(lambda: "stopping" in worker.log.read_text())
    worker.signal(signal.SIGTERM)
    assert worker_exit(worker, 20) == 0
    assert live.queued(queue) == [graph]


@pytest.mark.slow
def test_truncated_redis_replies_repeat_nothing(live: Live, queue: str) -> None:
    """Each task fails once and is retried at once, so that it is soon claimed when its settle is resent."""
    proxy = Proxy({"redis": live.server.port})
    try:
        live.start("worker", queue=queue, redis_url=f"redis://127.0.0.1:{proxy.ports['redis']}/0", concurrency=20)
        at_once = {"attempts": 2, "backoff": "fixed", "base": 0.0}
        with Receiver(failing_once()) as receiver:
            ids = live.send(queue, *[http(receiver.url, time=number / 150, retry=at_once) for number in range(450)])
            for number in range(7):
                receiver.wait_for(50 + 100 * number)
                proxy.cut("redis", number % 3, 0.5)
            records = live.ended(ids)
            arrived = Counter(receiver.ids)
    finally:
        proxy.close()
    assert arrived == Counter(ids * 2)
    assert {(record.state, record.attempts, len(record.outcomes)) for record in records} == {("delivered", 2, 2)}


def test_everything_is_delivered_after_redis_was_killed_and_restarted(tmp_path: Path) -> None:
    with Live(tmp_path, "--appendonly", "yes") as live, Receiver() as receiver:
        live.start("scheduler")
        worker = live.start("worker")
        generator = random.Random(7)
        ids = live.send("qtask", *[http(receiver.url, time=3 * generator.random()) for _ in range(400)])
        receiver.wait_for(100)
        live.server.kill()
        until(lambda: "redis_away" in worker.log.read_text())
        live.server.start()
        records = live.ended(ids)
        assert worker.running
    assert {record.state for record in records} == {"delivered"}
    assert set(receiver.ids) == set(ids)


@pytest.mark.slow
def test_worker_without_descriptors_fails_deliveries_of_each_type_and_continues(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue)
    os.mkfifo(live.pipes / queue)
    pipe = os.open(live.pipes / queue, os.O_RDONLY | os.O_NONBLOCK)

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        Receiver() as receiver,
        Receiver() as other,
    ):
        datagrams.bind(("127.0.0.1", 0))
        port, udp_port = server.getsockname()[1], datagrams.getsockname()[1]

        def send(http_url: str) -> list[tuple[str, str, str]]:
            once = {"time": 0, "retry": {"attempts": 1}, "timeout": 20, "data": {"data": 1}}
            links = {
                "socket": f"127.0.0.1:{port}",
                "socket by name": f"localhost:{port}",
                "udp": f"127.0.0.1:{udp_port}",
                "udp by name": f"localhost:{udp_port}",
                "pipe": queue,
            }
            dicts: list[dict[str, Any]] = [
                {"title": name, "address": {"type": name.split()[0], "link": link}, "settings": once}
                for name, link in links.items()
            ]
            dicts.append(http(http_url, retry={"attempts": 1}))
            graph = {"timeout": 90, "retry": {"attempts": 1}}
            dicts.append({"title": "graph", "address": {"type": "__graph__"}, "settings": graph})
            outcomes = [one.outcomes[-1] for one in live.ended(live.send(queue, *dicts), seconds=100)]
            return [(one["title"], outcome.status, outcome.error) for one, outcome in zip(dicts, outcomes, strict=True)]

        assert {status for _, status, _ in send(receiver.url)} == {"delivered"}
        soft, hard = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, hard))
        failed = send(other.url)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (soft, hard))
        assert failed == [
            ("socket", "failed", "connect"),
            ("socket by name", "failed", "dns"),
            ("udp", "failed", "connect"),
            ("udp by name", "failed", "dns"),
            ("pipe", "failed", "connect"),
            ("t", "failed", "connect"),
            ("graph", "failed", "internal"),
        ]
        assert {status for _, status, _ in send(other.url)} == {"delivered"}
    os.close(pipe)
    assert worker.running
    assert "Traceback" not in worker.log.read_text()


FAULTY_WORKER = """
from qtask.observe import log
from qtask.worker import process as worker
from qtask.config import load

class Faulty(worker.Deliveries):
    def _end(self, claim, result):
        if claim.task.title == "faulty":
            raise ValueError("a defect of the worker's own")
        super()._end(claim, result)

worker.Deliveries = Faulty
log.setup(load(), "worker")
worker.run(load())
"""


def test_worker_with_an_internal_error_stops_and_loses_nothing(live: Live, queue: str) -> None:
    """Tasks in flight finish and are settled, others are given back, and the exit code reports the failure."""
    gate = Gate()
    with Receiver(gate, ports_count=3) as slow, Receiver() as fast:
        ids = live.send(queue, *map(http, slow.urls(3)))
        ids += live.send(queue, {**http(fast.url), "title": "faulty"})
        waiting = live.send(queue, *[http(fast.url) for _ in range(20)])
        log = live.folder / f"{queue}.log"
        environment = {**os.environ, **live.environment, "QTASK_QUEUE": queue, "QTASK_CONCURRENCY": "4"}
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-c", FAULTY_WORKER], env=environment, stderr=output)
        try:
            slow.wait_for(3)
            until(lambda: "worker_broke" in log.read_text(), what="the defect to be logged")
            gate.open()
            assert process.wait(20) == 1
        finally:
            process.kill()
            process.wait()
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert [one["event"] for one in events] == ["working", "worker_broke", "stopping", "stopped", "crashed"]
        assert "ValueError: a defect of the worker's own" in events[1]["exception"]
        states = [tasks.show(live.redis, one).state for one in ids]
        assert states == ["delivered"] * 3 + ["queued"]
        assert {tasks.show(live.redis, one).state for one in waiting} == {"queued"}
        live.start("worker", queue=queue)
        records = live.ended([*ids, *waiting])
    assert {record.state for record in records} == {"delivered"}
    assert Counter(slow.ids) == Counter(ids[:3])
    assert Counter(fast.ids) == Counter([*ids[3:] * 2, *waiting])


# --- RQ's tools --------------------------------------------------------------------------------------------------


def test_rq_suspend_pauses_the_worker_and_rq_resume_continues_it(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue)
    with Receiver() as receiver:
        live.command("rq", "suspend", "-u", live.server.url)
        try:
            live.heartbeats(worker, 2)  # after the second it has surely received the command
            ids = live.send(queue, http(receiver.url))
            assert live.wait_queued(queue, 1) == ids
            live.heartbeats(worker, 1)
            assert live.queued(queue) == ids and receiver.requests == []
        finally:
            live.command("rq", "resume", "-u", live.server.url)
        assert live.ended(ids)[0].state == "delivered"


def test_rq_shutdown_command_stops_the_worker(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue)
    (name,) = [one.name for one in Worker.all(connection=live.redis) if one.pid == worker.pid]
    send_shutdown_command(live.redis, name)
    assert worker_exit(worker, 10) == 0
    assert name not in [one.name for one in Worker.all(connection=live.redis)]


def test_worker_starts_without_redis_and_begins_when_redis_comes(tmp_path: Path) -> None:
    with Live(tmp_path) as live, Receiver() as receiver:
        live.server.kill()
        log = tmp_path / "early.log"
        worker = Process("worker", live.environment, log)
        try:
            until(lambda: "redis_away" in log.read_text())
            live.server.start()
            live.start("scheduler")
            ids = live.send("qtask", http(receiver.url))
            assert live.ended(ids)[0].state == "delivered"
        finally:
            worker.kill()
