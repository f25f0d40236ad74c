"""SIGTERM: work in progress is finished and answered, the rest is given back; a rolling restart loses nothing."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from qtask.run.embedded import OPTIONS_FILE
from qtask.store import keys, tasks
from tests.support.gateway_process import Connection, Gateway, line_of, task
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.sockets import unread
from tests.support.waiting import until


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """A Redis with the shipped options, and a scheduler; each test has its own queue."""
    with Live(folder, "--include", str(OPTIONS_FILE)) as one:
        one.start("scheduler")
        yield one


def http(url: str, delay: float = 0.0, **settings: Any) -> dict[str, Any]:
    return {"title": url, "address": {"type": "http", "link": url}, "settings": {"time": delay, **settings}}


def wait_for_exit(process: Process, seconds: float = 30.0) -> int:
    """Waits until a process that was signalled has exited; returns its exit code."""
    until(lambda: not process.running, seconds, f"the {process.name} to end")
    return process.stop()


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def hanging(live: Live) -> Iterator[None]:
    live.server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        live.server.signal(signal.SIGCONT)


# --- a worker whose deliveries exceed its grace period -------------------------------------------------------------


class Slow:
    """A worker that is stopped while deliveries are in flight that do not end; it waits for its grace period.

    It is created first, so that the other tests run while it waits.
    """

    queue = "slow"

    def __init__(self, live: Live, receiver: Receiver) -> None:
        self.receiver = receiver
        self.worker = live.start("worker", queue=self.queue, concurrency=16)
        self.ids = live.send(self.queue, *map(http, receiver.urls(40)))
        receiver.wait_for(16)
        self.worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in self.worker.log.read_text(), what="the worker to be stopping")


@pytest.fixture(scope="module", autouse=True)
def slow(live: Live) -> Iterator[Slow]:
    held = Gate()
    with Receiver(held, ports_count=20) as receiver:
        yield Slow(live, receiver)
        held.open()


# --- gateways ----------------------------------------------------------------------------------------------------


def test_stopping_gateway_refuses_new_connections_and_answers_what_it_has(live: Live, tmp_path: Path) -> None:
    with Gateway(live.url, tmp_path) as gateway, Connection(gateway.port) as connection:
        over_http = HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)
        with Connection(gateway.port) as idle, hanging(live):
            connection.send(line_of(task()) + line_of([task(), task()]) + b'{"half": ')
            over_http.request("POST", "/tasks", json.dumps(task()), {"Content-Type": "application/json"})
            until(lambda: unread(gateway.port, gateway.http_port) == 0, what="all to be read")
            gateway.process.signal(signal.SIGTERM)
            until(lambda: not is_open(gateway.port) and not is_open(gateway.http_port), what="closed ports")
            assert idle.rest() == []
            assert gateway.process.running, "it has unanswered requests"
        one, both = connection.rest()
        response = over_http.getresponse()
        posted = json.loads(response.read())
        over_http.close()
        assert wait_for_exit(gateway.process) == 0
    assert response.status == 202
    ids = [answer["id"] for answer in (one, *both, posted)]
    assert {tasks.show(live.redis, task_id).state for task_id in ids} == {"scheduled"}


def test_stopping_gateway_answers_unavailable_for_tasks_held_for_an_absent_redis(tmp_path: Path) -> None:
    with Live(tmp_path) as live, Gateway(live.url, tmp_path, ACCEPT_RETRY_SECONDS=3_600) as gateway:
        live.server.kill()
        with Connection(gateway.port) as connection:
            connection.send(line_of(task()))
            until(lambda: gateway.events("redis_away"), what="the gateway to have noticed")
            gateway.process.signal(signal.SIGTERM)
            (answer,) = connection.rest()
        assert answer["error"]["code"] == "unavailable"
        assert wait_for_exit(gateway.process) == 0


def test_inbox_entries_of_a_stopping_gateway_are_finished_or_left_to_another(live: Live, tmp_path: Path) -> None:
    with Gateway(live.url, tmp_path, QUEUE="inbox") as first, Gateway(live.url, tmp_path, QUEUE="inbox") as second:
        until(lambda: len(live.redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)) == 2, what="both to read")
        for number in range(0, 4_000, 200):
            with live.redis.pipeline(transaction=False) as pipeline:
                for entry in range(number, number + 200):
                    pipeline.xadd(keys.INBOX, {"task": json.dumps(task(title=f"entry {entry}"))})
                pipeline.execute()
            if number == 2_000:
                first.process.signal(signal.SIGTERM)
        assert wait_for_exit(first.process) == 0
        until(lambda: live.redis.xlen(keys.INBOX) == 0, 30, "an empty inbox")
        assert live.redis.xpending(keys.INBOX, keys.INBOX_GROUP)["pending"] == 0
        titles = Counter(
            record.title
            for record in tasks.list_tasks(live.redis, "inbox", "scheduled", 10_000)
            if record.title.startswith("entry ")
        )
        assert titles == Counter(f"entry {number}" for number in range(4_000))
        assert len(live.redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)) == 1, "the first has removed its consumer"
        assert wait_for_exit_of(second) == 0


def wait_for_exit_of(gateway: Gateway) -> int:
    gateway.process.signal(signal.SIGTERM)
    return wait_for_exit(gateway.process)


# --- schedulers and workers --------------------------------------------------------------------------------------


def test_scheduler_stops_on_one_signal_and_immediately_on_two(tmp_path: Path) -> None:
    with Live(tmp_path) as live:
        scheduler = live.start("scheduler")
        scheduler.signal(signal.SIGTERM)
        assert wait_for_exit(scheduler, 5) == 0
        assert live.redis.hexists(*_registration(live)), "it has deregistered for RQ's tools"
        scheduler = live.start("scheduler")
        with hanging(live):
            time.sleep(1.2)  # it ticks once a second, and now waits for the reply
            scheduler.signal(signal.SIGTERM)
            time.sleep(0.3)
            assert scheduler.running, "the first signal waits for Redis"
            scheduler.signal(signal.SIGTERM)
            assert wait_for_exit(scheduler, 3) == 0


def _registration(live: Live) -> tuple[str, str]:
    found: Any = live.redis.keys("rq:scheduler_instance:*")
    (key,) = found
    return key.decode(), "death"


def test_stopping_worker_gives_unstarted_tasks_to_another_at_once(live: Live) -> None:
    """Before a lease could expire or a heartbeat be missed, as the first worker is still alive."""
    held = Gate()
    with Receiver(held, ports_count=20) as receiver:
        worker = live.start("worker", queue="begun", concurrency=16)
        ids = live.send("begun", *map(http, receiver.urls(40)))
        receiver.wait_for(16)
        begun = receiver.ids
        worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in worker.log.read_text(), what="the worker to be stopping")
        live.start("worker", queue="begun")
        receiver.wait_for(40, 3)  # giving back at the end of the grace period would be later
        assert worker.running, "it still waits for its deliveries in flight"
        assert sorted(receiver.ids) == sorted(ids)
        held.open()
        assert wait_for_exit(worker) == 0
        records = live.ended(ids)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}
    assert set(begun) <= set(ids) and sorted(receiver.ids) == sorted(ids)


def test_worker_processes_signalled_twice_give_back_tasks_in_flight_at_once(live: Live) -> None:
    held = Gate()
    with Receiver(held) as receiver:
        workers = live.start("worker", queue="workers", processes=2)
        until(lambda: workers.log.read_text().count('"event": "working"') == 2, what="both workers to work")
        ids = live.send("workers", *[http(receiver.url) for _ in range(20)])
        receiver.wait_for(20)
        workers.signal(signal.SIGTERM)
        until(lambda: workers.log.read_text().count('"event": "stopping"') == 2, what="both workers to be stopping")
        workers.signal(signal.SIGTERM)
        assert wait_for_exit(workers, 20) == 0
        assert sorted(live.queued("workers")) == sorted(ids)
        assert tasks.count_tasks(live.redis, "workers")["started"] == 0
        held.open()


# --- a rolling restart ---------------------------------------------------------------------------------------------


class Load:
    """Submits tasks without a pause, over the sockets of two gateways and into the inbox, until it is stopped.

    A line without an answer at the end of its connection was not accepted, as the gateway stopped gracefully: it is
    sent again to the other one. So each path is delivered once, although no task has a chosen id.

    Attributes:
        paths: of the accepted tasks.
    """

    WINDOW = 20

    def __init__(self, live: Live, receiver: Receiver, ports: tuple[int, int], queue: str) -> None:
        self.paths: list[str] = []
        self._live = live
        self._receiver = receiver
        self._ports = ports
        self._stop = threading.Event()
        self._numbers = count()
        self._redis = live.server.client()
        ways: list[Callable[[], None]] = [lambda: self._over_sockets(0), lambda: self._over_sockets(1), self._by_inbox]
        self._pool = ThreadPoolExecutor(len(ways))
        self._running = [self._pool.submit(way) for way in ways]

    def stop(self) -> None:
        """Returns when everything is accepted."""
        self._stop.set()
        for one in self._running:
            one.result(30)
        self._pool.shutdown()

    def _task(self, way: str) -> tuple[str, dict[str, Any]]:
        number = next(self._numbers)
        path = f"/{way}/{number}"
        return path, http(self._receiver.url + path[1:], 0.01 * (number % 50))

    def _over_sockets(self, first: int) -> None:
        turns = count(first)
        unanswered: list[tuple[str, dict[str, Any]]] = []
        while unanswered or not self._stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._ports[next(turns) % 2]), 10) as connection:
                    self._over_one(connection, unanswered)
            except (ConnectionError, EndOfAnswers):
                time.sleep(0.01)

    def _over_one(self, connection: socket.socket, unanswered: list[tuple[str, dict[str, Any]]]) -> None:
        answers = connection.makefile("rb")
        while unanswered or not self._stop.is_set():
            if not unanswered:
                unanswered += [self._task("socket") for _ in range(self.WINDOW)]
            connection.sendall(b"".join(line_of(one) for _, one in unanswered))
            while unanswered:
                line = answers.readline()
                if not line:
                    raise EndOfAnswers
                answer = json.loads(line)
                assert answer["ok"], answer
                self.paths.append(unanswered.pop(0)[0])
            time.sleep(0.02)

    def _by_inbox(self) -> None:
        while not self._stop.is_set():
            with self._redis.pipeline(transaction=False) as pipeline:
                for _ in range(10):
                    path, one = self._task("inbox")
                    pipeline.xadd(keys.INBOX, {"task": json.dumps(one)})
                    self.paths.append(path)
                pipeline.execute()
            time.sleep(0.04)


class EndOfAnswers(Exception):
    """A gateway has closed a connection."""


@pytest.mark.slow
def test_rolling_restart_under_load_loses_and_duplicates_nothing(live: Live, tmp_path: Path) -> None:
    """Two gateways, schedulers and workers are restarted one after the other."""
    queue = "rolling"
    ports = (free_port(), free_port())

    def start_gateway(port: int) -> Process:
        return stack.enter_context(Gateway(live.url, tmp_path, QUEUE=queue, PORT=port)).process

    def start_scheduler(port: int) -> Process:
        return live.start("scheduler", queue=queue)

    def start_worker(port: int) -> Process:
        return live.start("worker", queue=queue, concurrency=50)

    starts = [start_gateway, start_scheduler, start_worker]
    with ExitStack() as stack, Receiver(_answer_soon) as receiver:
        running = {(start, port): start(port) for start in starts for port in ports}
        load = Load(live, receiver, ports, queue)
        try:
            for (start, port), process in running.items():
                received = len(receiver.requests)
                receiver.wait_for(received + 100, 20)
                process.signal(signal.SIGTERM)
                assert wait_for_exit(process) == 0
                running[start, port] = start(port)
            receiver.wait_for(len(receiver.requests) + 100, 20)
        finally:
            load.stop()
        until(lambda: live.redis.xlen(keys.INBOX) == 0, 30, "an empty inbox")
        until(lambda: _left(live, queue) == 0, 30, "everything to be delivered")
        for process in running.values():
            process.signal(signal.SIGTERM)
        assert [wait_for_exit(process) for process in running.values()] == [0] * 6
    came = Counter(request.target for request in receiver.requests)
    assert came == Counter(load.paths), "each task is delivered once"
    assert len(load.paths) > 700
    assert {request.header("QTask-Attempt") for request in receiver.requests} == {"1"}
    assert live.redis.zcard(keys.failed(queue)) == 0


def _answer_soon(exchange: Exchange) -> None:
    time.sleep(0.05)
    exchange.answer(200, b"ok")


def _left(live: Live, queue: str) -> int:
    due: Any = live.redis.zcount(keys.SCHEDULE, "-inf", time.time() + 60)
    return int(due) + live.redis.llen(keys.queue(queue)) + live.redis.zcard(keys.started(queue))


# --- the first worker --------------------------------------------------------------------------------------------


def test_worker_gives_back_tasks_in_flight_at_the_end_of_its_grace_period(live: Live, slow: Slow) -> None:
    assert wait_for_exit(slow.worker, 20) == 0
    begun = slow.receiver.ids
    assert len(begun) == 16, "nothing was claimed or started after the signal"
    assert sorted(live.queued(Slow.queue)) == sorted(slow.ids), "no task waits for the end of a lease"
    assert tasks.count_tasks(live.redis, Slow.queue)["started"] == 0
    assert {tasks.show(live.redis, task_id).attempts for task_id in slow.ids} == {0}
