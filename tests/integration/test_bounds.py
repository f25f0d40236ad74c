"""Everything that a process or Redis keeps is bounded, and at the bound there is back-pressure or a clear refusal.

docs/bounds.md lists all bounds and is checked here. The bounds of silent clients, of connections and deliveries in
flight, of the history and of the dead letters are tested with those subjects.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import re
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import fields
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.loop import CANCELLED_KEEP, Loop
from qtask.delivery.resolver import Address, Resolver
from qtask.destinations.graph.deliverer import draw_into_redis
from qtask.destinations.http.curl_transport import HttpDeliverer
from qtask.destinations.parsing import check_task
from qtask.gateway.inbox import READ_BYTES
from qtask.intake.intake import MAX_WAITING_BYTES, Intake
from qtask.model.link import parse_socket
from qtask.model.outcome import OUTCOMES_KEEP, Answer, Failure
from qtask.scheduler.process import Scheduler
from qtask.store import keys, tasks
from qtask.store.connect import connect_async
from qtask.store.leases import CLAIM_BYTES
from qtask.worker.claims import HELD_BYTES
from tests.support.claiming import claim
from tests.support.documents import ROOT
from tests.support.gateway_process import Connection, Gateway, line_of, task
from tests.support.live import Live
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.sockets import unread
from tests.support.waiting import until

DOCUMENT = ROOT / "docs" / "bounds.md"
HELD = 1_048_576  # bytes


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """A gateway that may hold 1 MiB for all clients, and accepts arrays of up to half of that."""
    with Gateway(redis_server.url, folder, MAX_BYTES=32_768, MAX_HELD_BYTES=HELD) as running:
        yield running
        assert "Traceback" not in running.log


def http(url: str, **settings: Any) -> dict[str, Any]:
    given = {"time": 0, "retry": {"attempts": 1}, **settings}
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": given}


# --- the gateway -------------------------------------------------------------------------------------------------


def test_unfinished_texts_of_all_clients_together_are_bounded(gateway: Gateway, redis: Redis) -> None:
    """Each is below the limit of one text; the client that holds the most gets an error and is closed, others go on."""
    beginning = b"[" + b",".join([line_of(task("large")).strip()] * 1_700)
    at_once = HELD // len(beginning)
    assert 2 <= at_once <= 5
    whole = line_of(task("small"))
    with ExitStack() as stack:
        small, *large = [stack.enter_context(Connection(gateway.port)) for _ in range(9)]
        small.send(whole[:50])
        for connection in large:
            connection.send(beginning)
        until(lambda: sum(map(_is_readable, large)) == len(large) - at_once)
        told = [connection.answer()["error"]["code"] for connection in large if _is_readable(connection)]
        assert told == ["too_many"] * (len(large) - at_once)
        left = [connection for connection in large if not _is_readable(connection)]
        for connection in left:
            connection.send(b"]\n")
            assert [answer["ok"] for answer in connection.answer()] == [True] * 1_700
        small.send(whole[50:])
        assert small.answer()["ok"]
        for connection in left:
            connection.send(beginning + b"]\n")
            assert len(connection.answer()) == 1_700


def _is_readable(connection: Connection) -> bool:
    """Whether an answer, or the end, has arrived and was not read."""
    return bool(select.select([connection.socket], [], [], 0)[0])


def test_unread_answers_are_bounded(gateway: Gateway, redis: Redis) -> None:
    """20 kB in, 1 MB of refusals out: of the clients that read none of them, one is disconnected."""
    array = b"[" + b",".join([b"1"] * 9_999) + b"]\n"
    with ExitStack() as stack:
        greedy = [stack.enter_context(Connection(gateway.port, receive_buffer=4_096)) for _ in range(3)]
        for connection in greedy:
            connection.socket.settimeout(0.05)
        with pytest.raises(ConnectionError):
            _send_in_turn(90.0, greedy, array)
        with Connection(gateway.port) as other:
            assert other.ask(task("other"))["ok"]
            assert len(other.ask([1] * 9_999)) == 9_999


def _send_in_turn(seconds: float, connections: Sequence[Connection], data: bytes) -> None:
    """Sends the same data repeatedly; a send that blocks is given up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for connection in connections:
            with suppress(TimeoutError):
                connection.send(data)


def test_http_bodies_in_transfer_are_bounded(gateway: Gateway, redis: Redis) -> None:
    body = json.dumps([task("one of many")] * 1_700).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    at_once = HELD // len(body)
    with ExitStack() as stack:
        clients = [stack.enter_context(_request(gateway, body[:-1], headers)) for _ in range(at_once)]
        until(lambda: unread(gateway.http_port) == 0, what="the gateway to have read the beginnings")
        until(lambda: _posted(gateway, body) == 503, what="one more to be refused")
        assert _posted(gateway, json.dumps(task()).encode()) == 202
        for client in clients:
            client.send(body[-1:])
            assert client.getresponse().status == 202
    assert _posted(gateway, body) == 202


@contextmanager
def _request(gateway: Gateway, beginning: bytes, headers: dict[str, str]) -> Iterator[HTTPConnection]:
    """A request whose beginning has been sent."""
    with closing(HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)) as connection:
        connection.putrequest("POST", "/tasks")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        connection.send(beginning)
        yield connection


def _posted(gateway: Gateway, body: bytes) -> int:
    """The status of the answer to a whole request."""
    with closing(HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)) as connection:
        connection.request("POST", "/tasks", body, {"Content-Type": "application/json"})
        return connection.getresponse().status


def test_tasks_that_wait_for_redis_are_bounded_in_bytes() -> None:
    """At the bound, reading stops."""
    big = check_task(task(data="x" * 1_000_000))

    async def fill() -> tuple[int, bool]:
        redis = connect_async(f"redis://127.0.0.1:{free_port()}/0")
        intake = Intake(redis, Config())
        taken = 0
        while not intake.full:
            intake.add(big, lambda answer: None)
            taken += 1
        await redis.aclose()
        return taken, intake.full

    taken, full = asyncio.run(fill())
    assert full
    assert (taken - 1) * len(big.body) < MAX_WAITING_BYTES <= taken * len(big.body)


def test_large_inbox_entries_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    entry = json.dumps(task("large", data="x" * 100_000))
    with Live(tmp_path) as live:
        for _ in range(200):
            live.redis.xadd(keys.INBOX, {"task": entry})
        live.redis.config_resetstat()
        with Gateway(live.url, tmp_path):
            until(lambda: live.redis.zcard(keys.SCHEDULE) == 200)
            reads = live.redis.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    assert reads > 200 * len(entry) // READ_BYTES


# --- a worker ----------------------------------------------------------------------------------------------------


def test_claim_is_bounded_in_bytes(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    jobs = scheduler.enqueue_many([(1.0, http("http://127.0.0.1:1/", data={"data": "x" * 10_000}))] * 6)
    ids = [job.id for job in jobs]
    scheduler.release()

    assert claim(redis, bytes_limit=25_000) == ids[:3], "the task that exceeds the bound is the last"
    assert claim(redis, bytes_limit=1) == ids[3:4], "at least one"
    assert claim(redis) == ids[4:], "the rest stays in order"


def test_worker_memory_for_tasks_is_bounded_in_bytes(live: Live, queue: str) -> None:
    gate = Gate()
    large = http("http://127.0.0.1:1/", data={"method": "POST", "data": "x" * 1_000_000})
    most = HELD_BYTES // 1_000_000 + CLAIM_BYTES // 1_000_000 + 2
    with Receiver(gate) as receiver:
        large["address"]["link"] = receiver.url
        worker = live.start("worker", queue=queue)
        ids = live.send(queue, *[large] * (most + 10))
        until(lambda: tasks.count_tasks(live.redis, queue)["started"] >= HELD_BYTES // 1_000_100)
        live.heartbeats(worker, 1)
        counts = tasks.count_tasks(live.redis, queue)
        gate.open()
        records = live.ended(ids, 30)
    assert counts["started"] <= most
    assert counts["queued"] == len(ids) - counts["started"]
    assert {record.state for record in records} == {"delivered"}


def test_cancelled_timers_do_not_accumulate() -> None:
    """The timeout of a delivery may be minutes away when the delivery has long ended."""
    loop = Loop()
    waiting = [loop.call_later(600.0, lambda: None) for _ in range(10)]
    for _ in range(20_000):
        loop.call_later(600.0, lambda: None).cancel()
        assert loop.timers <= CANCELLED_KEEP + len(waiting) + 1
    rung: list[int] = []
    loop.call_later(0.0, lambda: rung.append(1))
    for timer in waiting:
        timer.cancel()
        timer.cancel()
    loop.run_once()
    assert rung == [1]
    loop.close()


def deliver(loop: Loop, deliverer: HttpDeliverer, one: dict[str, Any]) -> Answer | Failure:
    results: list[Answer | Failure] = []
    deliverer.start(Claim("id", 1, check_task(one).task, 0.0), results.append)
    while not results:
        loop.run_once()
    return results[0]


def test_http_deliveries_leave_no_timers_behind() -> None:
    loop = Loop()
    deliverer = HttpDeliverer(loop, Config())
    with Receiver() as receiver:
        for _ in range(300):
            assert isinstance(deliver(loop, deliverer, http(receiver.url, timeout=600)), Answer)
        assert loop.timers < 300
    deliverer.close()
    loop.close()


def test_idle_http_handles_keep_no_large_buffers() -> None:
    def answer_much(exchange: Exchange) -> None:
        receiver.requests.clear()
        exchange.answer(200, b"y" * 60_000)

    loop = Loop()
    deliverer = HttpDeliverer(loop, Config())
    with Receiver(answer_much) as receiver:
        deliver(loop, deliverer, http(receiver.url, data={"method": "POST", "data": "x"}))
        gc.collect()
        tracemalloc.start()
        for number in range(10):
            much = http(receiver.url, data={"method": f"POST{number}", "data": "x" * 500_000})
            assert isinstance(deliver(loop, deliverer, much), Answer)
        del much
        gc.collect()
        left, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    deliverer.close()
    loop.close()
    assert left < 1_500_000, "only what the receiver read last, and little else"


def test_name_look_ups_are_bounded_and_shared() -> None:
    loop = Loop()
    resolver = Resolver(loop, socket.SOCK_STREAM, most_threads=2)
    results: list[list[Address] | Failure] = []
    before = set(threading.enumerate())  # threads of earlier tests may end meanwhile
    for port in range(1, 100):
        for _ in range(3):
            resolver.resolve(parse_socket(f"localhost:{port}"), results.append, raise_)
        assert len(set(threading.enumerate()) - before) <= 2
    while len(results) < 297:
        loop.run_once()
    assert all(isinstance(result, list) for result in results), results
    resolver.close()
    loop.close()
    until(lambda: set(threading.enumerate()) <= before, 60, "the threads to end")


def raise_(error: Exception) -> None:
    raise error


# --- in Redis ----------------------------------------------------------------------------------------------------


def test_outcomes_of_a_repeatedly_retried_task_are_bounded(live: Live, queue: str) -> None:
    (task_id,) = live.send(queue, http(f"http://127.0.0.1:{free_port()}/"))
    live.start("worker", queue=queue, circuit_breaker=0)  # else the task would wait
    for _ in range(OUTCOMES_KEEP + 3):
        live.ended([task_id])
        assert tasks.retry(live.redis, [task_id]) == [task_id]
    (record,) = live.ended([task_id])
    assert len(record.outcomes) == OUTCOMES_KEEP + 1, "those from before the retry, and the new one"


def test_outcomes_of_a_repeatedly_lost_task_are_bounded(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    (job,) = scheduler.enqueue_many([(1.0, http("http://127.0.0.1:1/"))])
    scheduler.release()
    for _ in range(OUTCOMES_KEEP + 3):
        assert claim(redis, margin=-3_600) == [job.id]
        assert scheduler.housekeeping.reclaim("qtask") == [job.id]
    record = tasks.show(redis, job.id)
    assert record.attempts == OUTCOMES_KEEP + 3
    assert [outcome.attempt for outcome in record.outcomes] == list(range(4, OUTCOMES_KEEP + 4))


def test_pictures_are_bounded(redis: Redis) -> None:
    """The newest are kept; one drawing serves all tasks that wait for it."""
    draw_into_redis(redis, [f"first-{number}" for number in range(3)])
    redis.zadd(keys.GRAPHS, {f"first-{number}": redis.time()[0] - 60 for number in range(3)})
    draw_into_redis(redis, [f"graph-{number}" for number in range(keys.GRAPHS_KEEP)])
    pictures = sum(1 for _ in redis.scan_iter(f"{keys.GRAPH_PREFIX}*", 1_000))
    assert pictures == redis.zcard(keys.GRAPHS) == keys.GRAPHS_KEEP
    assert not redis.exists(keys.graph("first-0"), keys.graph("first-2"))
    assert redis.exists(keys.graph("graph-0"))


def test_statistics_are_bounded_and_receivers_cannot_create_counters(live: Live, queue: str) -> None:
    answers = count(400)
    with Receiver(lambda exchange: exchange.answer(next(answers))) as receiver:
        live.start("worker", queue=queue, stats_retention_count=100)
        with live.client(queue) as client:
            client.send_many([http(receiver.url) for _ in range(150)])
        until(lambda: tasks.count_tasks(live.redis, queue)["dead"] == 150)
    assert live.redis.zcard(keys.stats("http")) <= 100
    counters: Any = live.redis.hkeys(keys.COUNTERS)
    assert {name for name in counters if name.startswith(b"http:")} <= {
        *(b"http:delivered", b"http:status", b"http:connect", b"http:protocol", b"http:redirect"),
    }


def test_registration_of_a_killed_worker_is_removed(live: Live, queue: str) -> None:
    """RQ's hash of it expires; its entry in RQ's sets is removed when the next worker starts."""
    first = live.start("worker", queue=queue)
    (registered,) = live.redis.smembers(f"rq:workers:{queue}")
    first.kill()
    assert 0 < live.redis.ttl(registered) <= 1_000
    live.redis.delete(registered)  # as if it had expired
    live.start("worker", queue=queue)
    until(lambda: registered not in live.redis.smembers(f"rq:workers:{queue}"))
    assert live.redis.scard(f"rq:workers:{queue}") == 1
    registrations: Any = live.redis.smembers("rq:workers")
    assert registered not in registrations


# --- the document ------------------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]*) ?\|$", re.MULTILINE)
_NAME = re.compile(r"`([a-z_.]+(?::\w+)?)`")  # of a setting or a constant


def test_each_documented_bound_is_the_one_in_force() -> None:
    rows = _ROW.findall(DOCUMENT.read_text())
    settings = {setting.name: setting.default for setting in fields(Config)}
    checked = set()
    for _, bound, setters, _ in rows:
        for name in _NAME.findall(setters):
            module, colon, constant = name.partition(":")
            if colon:
                value = getattr(importlib.import_module(f"qtask.{module}"), constant)
            else:
                assert name in settings, f"{name} is not a setting"
                value = settings[name]
            shown = f"{value:,.0f}".replace(",", " ")
            assert re.search(rf"\b{shown}\b", bound), f"{name} is {shown}, the document says {bound!r}"
            checked.add(name)
    assert len(checked) > 40
    limits = {name for name in settings if name.startswith(("max_", "retention_", "stats_", "dead_", "idempotency_"))}
    assert limits <= checked, "every setting that is a bound is documented"
