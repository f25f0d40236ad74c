"""Workers that serve several queues, and workers on a paused queue; as processes, with real receivers."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import closing, suppress
from typing import Any

import pytest
from rq import Worker

from qtask.store import keys, queues, tasks
from qtask.store.audit import audit
from tests.chaos.proxy import Proxy
from tests.support.live import Live
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.waiting import until

JSON = ("-S", "rq.serializers.JSONSerializer")


def http(url: str, **settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": {"time": 0, **settings}}


def failing_at_first(exchange: Exchange) -> None:
    exchange.answer(200 if exchange.request.header("QTask-Attempt") != "1" else 500)


def order_of_deliveries(live: Live, served: str, count: int) -> list[str]:
    """Has a worker deliver this many tasks of each of its queues to a pipe; the last letter of each one's queue."""
    names = [one.partition(":")[0] for one in served.split(",")]
    os.mkfifo(live.pipes / names[0])
    pipe = os.open(live.pipes / names[0], os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in names:
            one = {"title": "t", "address": {"type": "pipe", "link": names[0]}}
            live.send(name, *[{**one, "settings": {"time": 0, "data": {"data": name[-1]}}}] * count)
            live.wait_queued(name, count)
        live.start("worker", queues=served, concurrency=16)
        got = ""

        def all_came() -> bool:
            nonlocal got
            with suppress(BlockingIOError):
                got += os.read(pipe, 65_536).decode()
            return got.count("\n") == count * len(names)

        until(all_came, what="every task to be delivered")
    finally:
        os.close(pipe)
    assert audit(live.redis).balances
    return [line.strip('"') for line in got.splitlines()]


def test_worker_delivers_retries_and_buries_in_each_of_its_queues(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "abc"]
    worker = live.start("worker", queue=f"{names[0]},{names[1]}:3,{names[2]}:1", circuit_breaker=0)
    again = {"attempts": 2, "backoff": "fixed", "base": 0.0}
    once = {"attempts": 1}
    with Receiver(failing_at_first) as receiver:
        sent = {name: live.send("elsewhere", *[http(receiver.url, queue=name, retry=again)] * 40) for name in names}
        lost = {name: live.send(name, http(receiver.url, retry=once)) for name in names}
        for name in names:
            assert {record.state for record in live.ended(sent[name])} == {"delivered"}
            assert {record.queue for record in live.ended(sent[name])} == {name}
            assert {record.state for record in live.ended(lost[name])} == {"dead"}
            counts = tasks.count_tasks(live.redis, name) | {"scheduled": 0}
            assert counts == {"scheduled": 0, "waiting": 0, "queued": 0, "started": 0, "delivered": 40, "dead": 1}
    assert audit(live.redis).balances
    assert worker.running


def test_registration_names_every_queue_of_the_worker(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "ab"]
    worker = live.start("worker", queues=",".join(names), queue=queue)
    (found,) = [one for one in Worker.all(connection=live.redis) if one.pid == worker.pid]
    assert found.queue_names() == names
    shown = live.command("rq", "info", "-u", live.server.url, "-W", "-R", *names)
    assert [f"{name}: {found.name} (idle)" for name in names] == shown.splitlines()[:2]
    live.send(names[0], http("http://127.0.0.1:1/", time=3_600))
    assert next(one.workers for one in queues.list_queues(live.redis) if one.name == names[0]) == 1
    assert worker.stop() == 0
    assert not live.redis.exists(*map(keys.rq_workers, names))


def test_strict_queue_comes_first_and_the_other_one_does_not_starve(live: Live, queue: str) -> None:
    seen = order_of_deliveries(live, f"{queue}-a,{queue}-b", 400)
    counts = Counter(seen[:400])
    assert counts["a"] > 350
    assert counts["b"] >= 5, "a share of the claims"


def test_weighted_queues_share_the_deliveries(live: Live, queue: str) -> None:
    seen = order_of_deliveries(live, f"{queue}-a:3,{queue}-b:1", 400)
    assert 280 <= Counter(seen[:400])["a"] <= 320


def test_killed_worker_with_several_queues_loses_nothing(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "abc"]
    setting = f"{names[0]},{names[1]}:2,{names[2]}:1"
    gate = Gate(held_attempts=("1",))
    with Receiver(gate) as receiver:
        worker = live.start("worker", queues=setting)
        ids = {name: live.send(name, *[http(receiver.url) for _ in range(15)]) for name in names}
        receiver.wait_for(45)
        assert [tasks.count_tasks(live.redis, name)["started"] for name in names] == [15, 15, 15]
        worker.kill()
        for name in names:
            assert sorted(live.wait_queued(name, 15)) == sorted(ids[name])
        live.start("worker", queues=setting)
        for name in names:
            assert {(one.state, one.attempts) for one in live.ended(ids[name])} == {("delivered", 2)}
        gate.open()
    assert audit(live.redis).balances


def test_stopped_worker_gives_tasks_back_to_their_own_queues(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "ab"]
    with Receiver(Gate()) as receiver:
        worker = live.start("worker", queues=",".join(names))
        ids = {name: live.send(name, *[http(receiver.url) for _ in range(10)]) for name in names}
        receiver.wait_for(20)
        worker.signal(signal.SIGTERM)
        until(lambda: "stopping" in worker.log.read_text(), what="the worker to stop")
        worker.signal(signal.SIGTERM)
        until(lambda: not worker.running, what="the worker to end")
        for name in names:
            assert sorted(live.queued(name)) == sorted(ids[name])
    assert audit(live.redis).balances


def test_tasks_of_a_slow_host_are_parked_from_each_queue(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "ab"]
    with Receiver(Gate()) as receiver:
        for name in names:
            live.send(name, *[http(receiver.url) for _ in range(30)])
            live.wait_queued(name, 30)
        live.start("worker", queue=f"{names[0]}:1,{names[1]}:1", concurrency=20)

        def waiting() -> list[int]:
            return [one.waiting for one in queues.list_queues(live.redis) if one.name in names]

        until(lambda: min(waiting()) > 0 and not any(live.queued(name) for name in names), what="both to be parked")
        figures = [one for one in queues.list_queues(live.redis) if one.name in names]
        assert [one.in_flight + one.waiting for one in figures] == [30, 30]
        assert audit(live.redis).balances


@pytest.mark.slow
def test_truncated_redis_replies_repeat_nothing_in_several_queues(live: Live, queue: str) -> None:
    names = [f"{queue}-{part}" for part in "abc"]
    at_once = {"attempts": 3, "backoff": "fixed", "base": 0.0}
    proxy = Proxy({"redis": live.server.port})
    with closing(proxy), Receiver(failing_at_first) as receiver:
        address = f"redis://127.0.0.1:{proxy.ports['redis']}/0"
        live.start("worker", queue=f"{names[0]}:1,{names[1]}:1,{names[2]}", redis_url=address, circuit_breaker=0)
        ids = [
            task_id
            for name in names
            for task_id in live.send(name, *[http(receiver.url, time=n / 50, retry=at_once) for n in range(150)])
        ]
        for number in range(8):
            receiver.wait_for(50 + 100 * number)
            proxy.cut("redis", number % 3, 0.5)
        records = live.ended(ids)
        assert {record.state for record in records} == {"delivered"}
        seen = Counter((one.header("QTask-Id"), one.header("QTask-Attempt")) for one in receiver.requests)
        assert max(seen.values()) == 1, "no attempt is made twice"
    assert audit(live.redis).balances


# --- paused queues -------------------------------------------------------------------------------------------------


def test_worker_waits_for_a_paused_queue_and_serves_its_others(live: Live, queue: str) -> None:
    paused, other = f"{queue}-paused", f"{queue}-other"
    queues.pause_queue(live.redis, paused)
    live.start("worker", queue=f"{paused},{other}")
    with Receiver() as receiver:
        held = live.send(paused, *[http(receiver.url) for _ in range(3)])
        live.wait_queued(paused, 3)
        live.ended(live.send(other, *[http(receiver.url) for _ in range(3)]))
        before: Any = live.redis.info("commandstats")["cmdstat_blmove"]["calls"]
        time.sleep(2)
        after: Any = live.redis.info("commandstats")["cmdstat_blmove"]["calls"]
        assert after - before < 20, "it looks again, but does not poll without a pause"
        assert live.queued(paused) == held
        queues.pause_queue(live.redis, paused, False)
        assert {record.attempts for record in live.ended(held)} == {1}


def test_queue_paused_while_it_is_empty_delivers_after_it_is_resumed(live: Live, queue: str) -> None:
    live.start("worker", queue=queue)
    with Receiver() as receiver:
        queues.pause_queue(live.redis, queue)
        (first,) = live.send(queue, http(receiver.url))
        live.wait_queued(queue, 1)
        time.sleep(0.7)
        assert live.queued(queue) == [first]
        queues.pause_queue(live.redis, queue, False)
        live.ended([first])


def test_stock_worker_holds_back_tasks_of_a_paused_queue(live: Live, queue: str) -> None:
    queues.pause_queue(live.redis, queue)
    with Receiver() as receiver:
        (task_id,) = live.send("elsewhere", http(receiver.url, queue=queue))
        live.wait_queued(queue, 1)
        said = live.command("rq", "worker", "-u", live.server.url, *JSON, "--burst", queue)
        assert f"its queue '{queue}' is paused; it waits" in said
        record = tasks.show(live.redis, task_id)
        assert (record.attempts, receiver.requests) == (0, [])
        assert record.state in ("scheduled", "queued"), "the scheduler may have released it again"
        assert audit(live.redis).balances
        live.wait_queued(queue, 1)  # the scheduler releases it again
        queues.pause_queue(live.redis, queue, False)
        live.command("rq", "worker", "-u", live.server.url, *JSON, "--burst", queue)
        (record,) = live.ended([task_id])
        assert (record.state, record.attempts, len(receiver.requests)) == ("delivered", 1, 1)
    assert audit(live.redis).balances
