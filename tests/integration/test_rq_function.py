"""The delivery function in a stock `rq worker`: the same outcomes, statistics and retention as in QTask's worker."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec import Raw

import qtask
from qtask.client.protocol import Accepted
from qtask.model.errors import DeliveryFailed
from qtask.model.outcome import Outcome
from qtask.model.record import TaskRecord
from qtask.observe import stats
from qtask.store import keys, tasks
from tests.support.live import Live
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import free_port

STOCK, OWN = "stock", "own"  # the queues, named after the worker that serves them


@dataclass
class Both:
    """Results of the same dicts in a stock worker and in QTask's worker.

    Attributes:
        live: the processes.
        records: by queue, then by name of the dict.
        requests: by queue: the requests at the HTTP receiver.
        sockets: everything that the socket receiver got.
        lines: everything that the reader of the pipe got.
    """

    live: Live
    records: dict[str, dict[str, TaskRecord]] = field(default_factory=dict)
    requests: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    sockets: list[bytes] = field(default_factory=list)
    lines: bytes = b""


def answer(exchange: Exchange) -> None:
    if exchange.request.target == "/missing":
        exchange.answer(404, b"no such hook")
    elif exchange.request.target == "/slow":
        exchange.connection.recv(1)  # until the delivery closes the connection
    else:
        exchange.answer(201, b"made it")


def serve(server: socket.socket, got: list[bytes]) -> None:
    for _ in range(2):
        connection, _ = server.accept()
        with connection:
            got.append(b"".join(iter(lambda: connection.recv(1_000), b"")))  # noqa: B023
            connection.sendall(b"thanks")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """One burst of a stock worker, and QTask's worker, over the same dicts."""
    with Live(tmp_path_factory.mktemp("function")) as live, socket.socket() as server:
        found = Both(live)
        server.bind(("127.0.0.1", 0))
        server.listen()
        threading.Thread(target=serve, args=(server, found.sockets), daemon=True).start()
        os.mkfifo(live.pipes / "orders")
        pipe = os.open(live.pipes / "orders", os.O_RDONLY | os.O_NONBLOCK)
        live.start("scheduler")
        closed = free_port()
        for queue in (STOCK, OWN):
            with Receiver(answer) as receiver:
                dicts = _dicts(receiver.url, server.getsockname()[1], closed)
                with live.client(queue) as client:
                    ids = [one.id for one in client.send_many(dicts.values()) if isinstance(one, Accepted)]
                live.wait_queued(queue, len(dicts))
                if queue == STOCK:
                    _burst(live)
                else:
                    live.start("worker", queue=queue)
                found.records[queue] = dict(zip(dicts, live.ended(ids, seconds=90), strict=True))
                seen = [
                    (one.method, one.target, one.header("Content-Type"), one.header("QTask-Attempt"), one.body)
                    for one in receiver.requests
                ]
                found.requests[queue] = sorted(seen)
        found.lines = os.read(pipe, 1_000)
        os.close(pipe)
        yield found


def _dicts(url: str, socket_port: int, closed_port: int) -> dict[str, dict[str, Any]]:
    def http(path: str, **settings: Any) -> dict[str, Any]:
        return {"title": "t", "address": {"type": "http", "link": url + path}, "settings": {**once, **settings}}

    once = {"time": 0, "retry": {"attempts": 1}}
    pipe: dict[str, Any] = {**once, "data": {"data": Raw(b'{"n":1.10}')}}
    to_socket = {"type": "socket", "link": f"127.0.0.1:{socket_port}"}
    to_closed = {"type": "socket", "link": f"127.0.0.1:{closed_port}"}
    return {
        "http": http("hook", data={"method": "POST", "json": Raw(b'{"n":1e2}')}),
        "http missing": http("missing"),
        "http slow": http("slow", timeout=0.3),
        "socket": {"title": "t", "address": to_socket, "settings": {"time": 0, "data": "hello"}},
        "socket closed": {"title": "t", "address": to_closed, "settings": {**once, "data": "hello"}},
        "pipe": {"title": "t", "address": {"type": "pipe", "link": "orders"}, "settings": pipe},
        "pipe absent": {"title": "t", "address": {"type": "pipe", "link": "absent"}, "settings": pipe},
        "graph": {"title": "t", "address": {"type": "__graph__"}, "settings": {"timeout": 90}},
    }


def _burst(live: Live) -> str:
    """Runs a stock worker until its queue is empty; SimpleWorker does not fork for each task."""
    serializer = ("-S", "rq.serializers.JSONSerializer")
    return live.command("rq", "worker", "-u", live.server.url, *serializer, "-w", "rq.SimpleWorker", "--burst", STOCK)


def _comparable(outcome: Outcome, task_id: str) -> tuple[Any, ...]:
    text = outcome.answer.replace(task_id, "ID").partition('"bytes"')[0]
    return outcome.status, outcome.attempt, outcome.code, text, outcome.error, outcome.message


def test_outcomes_equal_those_of_the_worker_of_qtask(both: Both) -> None:
    for name, own in both.records[OWN].items():
        stock = both.records[STOCK][name]
        assert (stock.state, stock.attempts, stock.type) == (own.state, own.attempts, own.type), name
        assert len(stock.outcomes) == len(own.outcomes) == 1
        if name != "http missing" and name != "http slow":  # their messages contain the port of the receiver
            assert _comparable(stock.outcomes[0], stock.id) == _comparable(own.outcomes[0], own.id), name
    states = {name: record.state for name, record in both.records[STOCK].items()}
    assert [name for name, state in states.items() if state == "delivered"] == ["http", "socket", "pipe", "graph"]
    assert {
        name: record.outcomes[0].error for name, record in both.records[STOCK].items() if states[name] == "dead"
    } == {
        "http missing": "status",
        "http slow": "timeout",
        "socket closed": "connect",
        "pipe absent": "no_reader",
    }


def test_receivers_cannot_distinguish_the_workers(both: Both) -> None:
    assert both.requests[STOCK] == both.requests[OWN]
    assert both.sockets == [b'"hello"', b'"hello"']
    assert both.lines == b'{"n":1.10}\n' * 2
    assert [body for *_, body in both.requests[STOCK] if body] == [b'{"n":1e2}']


def test_outcomes_hold_instants_lateness_and_duration(both: Both) -> None:
    for record in both.records[STOCK].values():
        (outcome,) = record.outcomes
        assert record.due <= outcome.started <= outcome.ended
        assert outcome.lateness == pytest.approx(outcome.started - record.due, abs=1e-5)
        assert outcome.duration == pytest.approx(outcome.ended - outcome.started, abs=1e-5)


def test_statistics_count_both_alike(both: Both) -> None:
    totals = {kind.type: kind.totals for kind in stats.summary(both.live.redis)}
    assert totals == {
        "http": {"delivered": 2, "status": 2, "timeout": 2},
        "socket": {"delivered": 2, "connect": 2},
        "pipe": {"delivered": 2, "no_reader": 2},
        "__graph__": {"delivered": 2},
    }
    for samples in stats.read(both.live.redis):
        assert len(samples) == sum(totals.get(samples.type, {}).values())


def test_graph_is_kept_under_the_id_of_the_task(both: Both) -> None:
    picture: Any = both.live.redis.get(keys.graph(both.records[STOCK]["graph"].id))
    assert picture.startswith(b"\x89PNG")


def test_dead_letters_never_expire_and_history_has_its_retention(both: Both) -> None:
    redis = both.live.redis
    delivered, dead = both.records[STOCK]["http"].id, both.records[STOCK]["http missing"].id
    assert redis.ttl(keys.job(delivered)) > 36_000 * 86_400, "a scheduler forgets it, when its time has come"
    assert redis.ttl(keys.job(dead)) > 36_000 * 86_400
    later = redis.time()[0] + keys.FOREVER_SECONDS
    assert (redis.zscore(keys.finished(STOCK), delivered) or 0) - later == pytest.approx(86_400, abs=60)
    assert (redis.zscore(keys.failed(STOCK), dead) or 0) - later == pytest.approx(0, abs=60)


def test_invalid_tasks_are_refused_with_a_message(both: Both) -> None:
    broken = {
        "half": '{"title":"t"}',
        "link": '{"title":"t","address":{"type":"socket","link":"?"},"settings":{}}',
        "headers": '{"title":"t","address":{"type":"http","link":"http://a/"},"settings":{"data":{"headers":5}}}',
    }
    redis = both.live.redis
    for name, text in broken.items():
        fields = {"origin": STOCK, "data": f'["qtask.do",0,[{text}],{{}}]'}
        redis.hset(keys.job(name), mapping=dict[Any, Any](fields))
    redis.rpush(keys.queue(STOCK), *broken)
    _burst(both.live)
    for name in broken:
        record = tasks.show(redis, name)
        assert (record.state, record.outcomes[0].error) == ("dead", "refused"), name
        assert record.outcomes[0].message, name
    assert stats.read(redis, [stats.UNKNOWN])[0].status == ["refused"]


def test_removed_dead_letter_leaves_nothing_in_redis(both: Both) -> None:
    redis = both.live.redis
    dead = both.records[STOCK]["pipe absent"].id
    assert redis.exists(keys.job(dead), keys.results(dead)) == 2
    assert tasks.remove_dead(redis, [dead]) == [dead]
    assert list(redis.scan_iter(f"*{dead}*")) == []
    assert redis.zscore(keys.failed(STOCK), dead) is None


def test_stock_worker_bounds_the_history(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_RETENTION_COUNT", "2")
    redis = both.live.redis
    with Receiver() as receiver, both.live.client(STOCK) as client:
        ids = [client.http(receiver.url).id for _ in range(4)]
        both.live.wait_queued(STOCK, 4)
        _burst(both.live)
    kept = [record.id for record in tasks.list_tasks(redis, STOCK, "delivered")]
    assert kept[:2] == ids[:1:-1]
    assert len(kept) <= 3, "the limit plus the one just added"
    assert redis.exists(keys.job(ids[0]), keys.results(ids[0])) == 0


def test_call_outside_a_worker_raises_with_advice() -> None:
    with pytest.raises(DeliveryFailed, match="send the dict to QTask"):
        qtask.do({"title": "t"})
