"""Fault points: a process is killed right before and right after each atomic step, and nothing is lost.

In every case one process dies at its fault point and another one continues. Cases run in five lanes in parallel, each
on its own database with the other processes that its cases need.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import qtask.store
from qtask import Client
from qtask.model.errors import NotFound, Unavailable
from qtask.model.flow import Limits
from qtask.model.ids import stored_id
from qtask.model.record import TaskRecord
from qtask.scheduler.process import Scheduler
from qtask.store import flow_records, keys, tasks
from qtask.store.audit import audit
from tests.chaos.store import inconsistencies, read_store
from tests.support.gateway_process import Gateway
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

RETRY = {"attempts": 3, "backoff": "fixed", "base": 0.0}
HOUR = 3_600.0


class Receivers:
    """One receiver for all lanes: it counts requests for each id, and behaves as the path says."""

    def __init__(self) -> None:
        self.arrivals: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        task_id = exchange.request.header("QTask-Id")
        with self._lock:
            self.arrivals[task_id] += 1
            first = self.arrivals[task_id] == 1
        match exchange.request.target:
            case "/gone":
                exchange.answer(404)
            case "/gone-at-first" if first:
                exchange.answer(404)
            case "/broken-at-first" if first:
                exchange.answer(500)
            case "/silent-at-first" if first:
                exchange.connection.recv(1)  # until its worker is dead
            case _:
                exchange.answer(200)


class Lane:
    """A database and the processes on it.

    Args:
        redis_url: of the database.
        url: of the receiver.
        arrivals: counts of the requests there.
        folder: gets the logs.
    """

    def __init__(self, redis_url: str, url: str, arrivals: Counter[str], folder: Path) -> None:
        self.redis_url = redis_url
        self.redis = Redis.from_url(redis_url)
        self.arrivals = arrivals
        self.queues = ["qtask"]
        self.folder = folder
        self._url = url
        self._numbers = count(1)
        self._processes: list[Process] = []
        folder.mkdir()

    def start(self, name: str, *arguments: str, queue: str = "qtask", fault: str = "") -> Process:
        """Starts `qtask NAME`, which dies at the fault point, if one is given."""
        environment = {"QTASK_REDIS_URL": self.redis_url, "QTASK_QUEUE": queue, "QTASK_LOG_FORMAT": "json"}
        if fault:
            environment["QTASK_FAULT"] = fault
        process = Process(name, environment, self.folder / f"{name}-{next(self._numbers)}.log", *arguments)
        self._processes.append(process)
        return process

    def stock_worker_dies(self, queue: str, fault: str) -> None:
        """Runs a stock RQ worker on a queue until it dies at a fault point; SimpleWorker does not fork for a task."""
        rq = str(Path(sys.executable).parent / "rq")
        serializer = ("-S", "rq.serializers.JSONSerializer", "-w", "rq.SimpleWorker")
        command = [rq, "worker", "-u", self.redis_url, *serializer, queue]
        died = subprocess.run(command, env={**os.environ, "QTASK_FAULT": fault}, timeout=60, check=False)
        assert died.returncode == -signal.SIGKILL

    def end_stock_leases(self, queue: str) -> None:
        """Expires the leases of stock workers in this queue, which last a minute or more, to avoid waiting."""
        members: Any = self.redis.zrange(keys.started(queue), 0, -1)
        for member in members:
            self.redis.zadd(keys.STARTED_PREFIX + queue, {member: 1.0})

    def gateway(self, fault: str = "") -> Gateway:
        """Starts a gateway and waits until it listens."""
        return Gateway(self.redis_url, self.folder, FAULT=fault)

    def queue(self) -> str:
        """A queue that no other case uses."""
        self.queues.append(f"queue-{next(self._numbers)}")
        return self.queues[-1]

    def id(self) -> str:
        """An id that no other case uses, as all lanes share the receiver."""
        return f"{self.folder.name}-{next(self._numbers)}"

    def link(self, path: str) -> str:
        """URL of a path of the receiver."""
        return self._url + path

    def task(self, path: str, delay: float = 0.0, **more: Any) -> dict[str, Any]:
        """A dict with its own id."""
        settings = {"time": delay, "id": self.id(), "retry": RETRY, **more}
        return {"title": "t", "address": {"type": "http", "link": self.link(path)}, "settings": settings}

    def submit(self, path: str, queue: str = "qtask", delay: float = 0.0, **settings: Any) -> str:
        """Submits a task directly to Redis; returns its id."""
        with Client(self.redis_url, queue=queue) as client:
            return client.send(self.task(path, delay, **settings)).id

    def status(self, task_id: str) -> str:
        """RQ's status of a task; empty when it has none."""
        found: Any = self.redis.hget(keys.job(stored_id(task_id)), "status")
        return (found or b"").decode()

    def state(self, task_id: str) -> str:
        """The state of a task; `nowhere` when it does not exist."""
        try:
            return tasks.show(self.redis, task_id).state
        except NotFound:
            return "nowhere"

    def ended(self, task_id: str) -> TaskRecord:
        """Waits until a task is delivered or dead."""
        until(lambda: self.state(task_id) in ("delivered", "dead"), 30, f"{task_id} to end")
        return tasks.show(self.redis, task_id)

    def bury(self, queue: str = "qtask") -> None:
        """Ages the heartbeats of all holders of leases in this queue, so that the test need not wait."""
        members: Any = self.redis.zrange(keys.started(queue), 0, -1)
        for member in members:
            self.redis.zadd(keys.WORKERS, {member.decode().partition(":")[2]: 0})

    def close(self) -> dict[str, list[str]]:
        """Ends all processes; returns what is inconsistent in Redis."""
        workers = [process for process in self._processes if process.name == "worker" and process.running]
        for process in workers:
            process.signal(signal.SIGTERM)
        for process in workers:
            process.stop()
        # Workers that were killed without a lease are forgotten when their heartbeat is some seconds old.
        until(lambda: not self.redis.exists(keys.WORKERS), 30, "the schedulers to forget the workers")
        for process in self._processes:
            process.kill()
        found_faults = inconsistencies(read_store(self.redis, *self.queues))
        wrong = {fault: about for fault, about in found_faults.items() if about}
        found = audit(self.redis)
        return wrong if found.balances else {**wrong, "the audit does not balance": [str(found)]}


def dies(process: Process) -> None:
    """Waits until a process has died at its fault point."""
    until(lambda: not process.running, 30, f"the {process.name} to die")
    assert process.stop() == -signal.SIGKILL, process.log.read_text()


# --- workers, in a lane with a live scheduler ----------------------------------------------------------------------


def worker_dies(
    lane: Lane,
    fault: str,
    path: str,
    arrivals: int,
    attempts: int,
    state: str = "delivered",
    terminate: bool = False,
    several: bool = False,
) -> None:
    """A worker dies with one task and another continues; checks how often the receiver gets it, and its outcome."""
    queue = lane.queue()
    served = f"{lane.queue()},{queue}:2,{lane.queue()}:1" if several else queue
    task_id = lane.submit(path, queue)
    until(lambda: lane.state(task_id) == "queued", what="the task to be queued")
    victim = lane.start("worker", queue=served, fault=fault)
    if terminate:
        until(lambda: lane.arrivals[task_id], what="the delivery to be in flight")
        victim.signal(signal.SIGTERM)
        until(lambda: "stopping" in victim.log.read_text())
        victim.signal(signal.SIGTERM)  # a second one does not wait for tasks in flight
    dies(victim)
    lane.bury(queue)
    lane.start("worker", queue=served)
    record = lane.ended(task_id)
    assert (record.state, record.attempts) == (state, attempts), record.outcomes
    assert lane.arrivals[task_id] == arrivals


def stock_worker_dies(
    lane: Lane, fault: str, path: str, arrivals: int, attempts: int, state: str = "delivered"
) -> None:
    """A stock worker dies with one task, and a worker of QTask continues."""
    queue = lane.queue()
    task_id = lane.submit(path, queue)
    until(lambda: lane.state(task_id) == "queued", what="the task to be queued")
    lane.stock_worker_dies(queue, fault)
    lane.end_stock_leases(queue)
    lane.start("worker", queue=queue)
    record = lane.ended(task_id)
    assert (record.state, record.attempts) == (state, attempts), record.outcomes
    assert lane.arrivals[task_id] == arrivals


def worker_dies_in_a_flow(
    lane: Lane, fault: str, path: str, arrivals: int, attempts: int, state: str = "delivered", stock: bool = False
) -> None:
    """A worker dies with the first task of an ordered flow; the next one follows it and no slot is left."""
    queue = lane.queue()
    flow = {"key": queue, "ordered": True}
    first, second = lane.submit(path, queue, flow=flow), lane.submit("ok", queue, flow=flow)
    until(lambda: (lane.status(first), lane.status(second)) == ("queued", "deferred"), what="the tasks to be released")
    if stock:
        lane.stock_worker_dies(queue, fault)
        lane.end_stock_leases(queue)
    else:
        dies(lane.start("worker", queue=queue, fault=fault))
        lane.bury(queue)
    lane.start("worker", queue=queue)
    record, following = lane.ended(first), lane.ended(second)
    assert (record.state, record.attempts) == (state, attempts), record.outcomes
    # The settlement queues it, so the worker may have claimed it as well before it died.
    assert following.state == "delivered" and following.attempts <= (2 if fault == "settle:after" else 1)
    assert record.outcomes[-1].ended <= following.outcomes[0].started
    assert (lane.arrivals[first], lane.arrivals[second]) == (arrivals, 1)
    assert not lane.redis.exists(keys.SLOTS_PREFIX + queue, keys.WAITING_PREFIX + queue)
    flow_records.remove_flow(lane.redis, queue)


def worker_dies_parking(lane: Lane, fault: str) -> None:
    """A worker dies with a task of a limited destination; Redis does not see whose it is, because its data is large.

    A task that was parked is admitted at once, and the worker may have claimed it again before it dies.
    """
    queue = lane.queue()
    flow = lane.link("").removesuffix("/")
    flow_records.set_flow(lane.redis, flow, Limits(parallel=1))
    task_id = lane.submit("ok", queue, data={"method": "POST", "data": "x" * 20_000})
    until(lambda: lane.status(task_id) == "queued", what="the task to be queued")
    dies(lane.start("worker", queue=queue, fault=fault))
    lane.bury(queue)
    lane.start("worker", queue=queue)
    record = lane.ended(task_id)
    flow_records.remove_flow(lane.redis, flow)
    assert record.state == "delivered", record.outcomes
    assert fault.endswith("after") or record.attempts == 2, record.outcomes
    assert record.attempts <= 2, record.outcomes
    assert lane.arrivals[task_id] == 1
    until(lambda: not lane.redis.exists(keys.FLOW_PREFIX + flow), what="the flow to be forgotten")


# --- schedulers, in a lane with a live worker ------------------------------------------------------------------------


def scheduler_dies_releasing(lane: Lane, fault: str) -> None:
    task_id = lane.submit("ok")
    dies(lane.start("scheduler", fault=fault))
    assert (lane.state(task_id) == "scheduled") == fault.endswith("before")
    successor = lane.start("scheduler")
    assert lane.ended(task_id).state == "delivered"
    successor.kill()
    assert lane.arrivals[task_id] == 1


def scheduler_dies_reclaiming(lane: Lane, fault: str) -> None:
    queue = lane.queue()
    task_id = lane.submit("ok", queue)
    assert Scheduler(queue, lane.redis).release()[0] == 1
    dies(lane.start("worker", queue=queue, fault="claim:after"))
    lane.bury(queue)
    dies(lane.start("scheduler", fault=fault))
    assert lane.state(task_id) == ("started" if fault.endswith("before") else "queued")
    lane.start("worker", queue=queue)
    successor = lane.start("scheduler")
    record = lane.ended(task_id)
    successor.kill()
    assert (record.state, record.attempts) == ("delivered", 2)
    assert [outcome.error for outcome in record.outcomes] == ["lost", ""]
    assert lane.arrivals[task_id] == 1


def scheduler_dies_forgetting(lane: Lane, fault: str) -> None:
    task_id = lane.submit("ok")
    assert Scheduler("qtask", lane.redis).release()[0] == 1
    assert lane.ended(task_id).state == "delivered"
    lane.redis.zadd(keys.finished("qtask"), {task_id: keys.FOREVER_SECONDS + 1})  # its retention ended long ago
    dies(lane.start("scheduler", fault=fault))
    assert lane.state(task_id) == ("delivered" if fault.endswith("before") else "nowhere")
    successor = lane.start("scheduler")
    until(lambda: lane.state(task_id) == "nowhere", what="the task to be forgotten")
    successor.kill()


# --- gateways, in a lane with a live scheduler and worker ------------------------------------------------------------


def gateway_dies_starting(lane: Lane, fault: str) -> None:
    before = lane.redis.hgetall(keys.FLOW_RULES)
    dies(lane.start("gateway", "--port", "0", "--http-port", "0", fault=fault))
    assert lane.redis.hgetall(keys.FLOW_RULES) == before, "it has no rules"
    task = lane.task("ok")
    with lane.gateway() as successor, Client(successor.url) as client:
        accepted = client.send(task)
    assert lane.ended(accepted.id).state == "delivered"


def gateway_dies_accepting(lane: Lane, fault: str) -> None:
    task = lane.task("ok")
    with lane.gateway(fault) as victim, Client(victim.url) as client:
        with pytest.raises(Unavailable):
            client.send(task)
        dies(victim.process)
    known = fault == "submit:after"
    assert (lane.state(task["settings"]["id"]) != "nowhere") == known
    with lane.gateway() as successor, Client(successor.url) as client:
        accepted = client.send(task)
    assert (accepted.id, accepted.duplicate) == (task["settings"]["id"], known)
    assert lane.ended(accepted.id).state == "delivered"
    assert lane.arrivals[accepted.id] == 1


def gateway_dies_setting_limits(lane: Lane, fault: str) -> None:
    task = lane.task("ok")
    key = task["settings"]["id"]
    task["settings"]["flow"] = {"key": key, "parallel": 3}
    with lane.gateway(fault) as victim, Client(victim.url) as client:
        with pytest.raises(Unavailable):
            client.send(task)
        dies(victim.process)
    assert lane.redis.exists(keys.FLOW_PREFIX + key) == (1 if fault.endswith("after") else 0)
    with lane.gateway() as successor, Client(successor.url) as client:
        accepted = client.send(task)
    assert lane.ended(accepted.id).state == "delivered"
    assert lane.arrivals[accepted.id] == 1
    assert flow_records.show_flow(lane.redis, key).parallel == 3
    flow_records.remove_flow(lane.redis, key)


def gateway_dies_with_an_entry(lane: Lane, fault: str, entry: str) -> None:
    """A gateway dies with an inbox entry; the client is answered once, by the step that finishes the entry."""
    reply_key = f"reply:{lane.id()}"
    with lane.gateway(fault) as victim:
        lane.redis.xadd(keys.INBOX, {"task": entry, "reply": reply_key})
        dies(victim.process)
    assert lane.redis.llen(reply_key) == (0 if fault.endswith("before") else 1)
    pending: Any = lane.redis.xpending_range(keys.INBOX, keys.INBOX_GROUP, "-", "+", 10)
    assert len(pending) == (1 if fault.endswith("before") else 0)
    for one in pending:  # ages it, so that the test need not wait
        lane.redis.xclaim(
            keys.INBOX, keys.INBOX_GROUP, one["consumer"], 0, [one["message_id"]], idle=60_000, justid=True
        )
    with lane.gateway():
        assert lane.redis.blpop([reply_key], 30) is not None
    assert lane.redis.xlen(keys.INBOX) == lane.redis.llen(reply_key) == 0


def gateway_dies_taking_from_the_inbox(lane: Lane, fault: str) -> None:
    task = lane.task("ok")
    task_id = task["settings"]["id"]
    gateway_dies_with_an_entry(lane, fault, json.dumps(task))
    assert lane.ended(task_id).state == "delivered"
    assert lane.arrivals[task_id] == 1


def gateway_dies_refusing(lane: Lane, fault: str) -> None:
    lane.redis.delete(keys.REFUSED)
    gateway_dies_with_an_entry(lane, fault, "{}")
    assert lane.redis.xlen(keys.REFUSED) == 1


def gateway_dies_leaving(lane: Lane, fault: str) -> None:
    def consumers() -> list[dict[str, Any]]:
        return list(lane.redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP))

    before = len(consumers()) if lane.redis.exists(keys.INBOX) else 0
    with lane.gateway(fault) as victim:
        until(lambda: len(consumers()) == before + 1, what="it to read the inbox")
        victim.process.signal(signal.SIGTERM)
        dies(victim.process)
    assert len(consumers()) == before + (1 if fault.endswith("before") else 0)
    assert not any(consumer["pending"] for consumer in consumers())
    task = lane.task("ok")
    with lane.gateway():
        lane.redis.xadd(keys.INBOX, {"task": json.dumps(task)})
        assert lane.ended(task["settings"]["id"]).state == "delivered"


# --- commands, in a lane with a live scheduler and worker ------------------------------------------------------------


def send_dies(lane: Lane, fault: str) -> None:
    task_id = lane.id()
    arguments = ("--http", lane.link("ok"), "--id", task_id)
    dies(lane.start("send", *arguments, fault=fault))
    assert (lane.state(task_id) != "nowhere") == fault.endswith("after")
    run(lane, "send", *arguments)
    assert lane.ended(task_id).state == "delivered"
    assert lane.arrivals[task_id] == 1


def cancel_dies(lane: Lane, fault: str) -> None:
    task_id = lane.submit("ok", delay=HOUR)
    dies(lane.start("cancel", task_id, fault=fault))
    assert lane.state(task_id) == ("scheduled" if fault.endswith("before") else "nowhere")
    if fault.endswith("before"):
        run(lane, "cancel", task_id)
    assert lane.state(task_id) == "nowhere"


def purge_dies(lane: Lane, fault: str) -> None:
    """The worker of the lane does not serve this queue."""
    queue = lane.queue()
    task_id = lane.submit("ok", queue)
    until(lambda: lane.state(task_id) == "queued", what="the task to be queued")
    dies(lane.start("queue", "purge", queue, fault=fault))
    assert lane.state(task_id) == ("queued" if fault.endswith("before") else "nowhere")
    run(lane, "queue", "purge", queue)
    assert lane.state(task_id) == "nowhere"


def forget_dies(lane: Lane, fault: str) -> None:
    task_id = lane.submit("ok")
    assert lane.ended(task_id).state == "delivered"
    dies(lane.start("forget", task_id, fault=fault))
    assert lane.state(task_id) == ("delivered" if fault.endswith("before") else "nowhere")
    if fault.endswith("before"):
        run(lane, "forget", task_id)
    assert lane.state(task_id) == "nowhere"
    assert lane.redis.exists(keys.ID_PREFIX + task_id)


def reader_dies(lane: Lane, fault: str, command: str) -> None:
    """A read-only command leaves everything unchanged."""
    task_id = lane.submit("ok", delay=HOUR)
    dies(lane.start(command, fault=fault))
    assert lane.state(task_id) == "scheduled"
    run(lane, command)
    run(lane, "cancel", task_id)


def retry_dies(lane: Lane, fault: str) -> None:
    task_id = lane.submit("gone-at-first")
    assert lane.ended(task_id).state == "dead"
    dies(lane.start("retry", task_id, fault=fault))
    if fault.endswith("before"):
        assert lane.state(task_id) == "dead"
        run(lane, "retry", task_id)
    until(lambda: lane.state(task_id) == "delivered", what="the task to be delivered after all")
    assert lane.arrivals[task_id] == 2


def remove_dies(lane: Lane, fault: str) -> None:
    task_id = lane.submit("gone")
    assert lane.ended(task_id).state == "dead"
    dies(lane.start("remove", task_id, fault=fault))
    assert lane.state(task_id) == ("dead" if fault.endswith("before") else "nowhere")
    if fault.endswith("before"):
        run(lane, "remove", task_id)
    assert lane.state(task_id) == "nowhere"


def set_flow_dies(lane: Lane, fault: str) -> None:
    key = lane.id()
    run(lane, "flow", "pause", key)
    task_id = lane.submit("ok", flow=key)
    until(lambda: lane.status(task_id) == "deferred", what="the task to wait in its flow")
    dies(lane.start("flow", "resume", key, fault=fault))
    if fault.endswith("before"):
        assert lane.status(task_id) == "deferred"
        run(lane, "flow", "resume", key)
    assert lane.ended(task_id).state == "delivered"
    assert lane.arrivals[task_id] == 1


def cancel_of_a_waiting_task_dies(lane: Lane, fault: str) -> None:
    key = lane.id()
    run(lane, "flow", "pause", key)
    task_id = lane.submit("ok", flow=key)
    until(lambda: lane.status(task_id) == "deferred", what="the task to wait in its flow")
    dies(lane.start("cancel", task_id, fault=fault))
    assert lane.status(task_id) == ("deferred" if fault.endswith("before") else "")
    if fault.endswith("before"):
        run(lane, "cancel", task_id)
    assert lane.state(task_id) == "nowhere"
    assert not lane.redis.exists(keys.WAITING_PREFIX + key)
    run(lane, "flow", "remove", key)


def run(lane: Lane, name: str, *arguments: str) -> None:
    """Runs a command to its end, which must succeed."""
    command = lane.start(name, *arguments)
    until(lambda: not command.running, 30, f"{name} to end")
    assert command.stop() == 0, command.log.read_text()


# --- all cases -------------------------------------------------------------------------------------------------------

Case = Callable[[Lane, str], None]


def of_worker(*arguments: Any, **options: Any) -> Case:
    return lambda lane, fault: worker_dies(lane, fault, *arguments, **options)


def of_stock_worker(*arguments: Any, **options: Any) -> Case:
    return lambda lane, fault: stock_worker_dies(lane, fault, *arguments, **options)


def of_flow(*arguments: Any, **options: Any) -> Case:
    return lambda lane, fault: worker_dies_in_a_flow(lane, fault, *arguments, **options)


# For each lane: the processes that stay alive in it, and its cases. A case: the fault point, a suffix that
# distinguishes it from others at the same point, and the function to call.
LANES: dict[str, tuple[tuple[str, ...], list[tuple[str, str, Case]]]] = {
    "workers": (
        ("scheduler",),
        [
            ("claim:before", "", of_worker("ok", arrivals=1, attempts=1)),
            ("claim:after", "", of_worker("ok", arrivals=1, attempts=2)),
            ("settle:before", "delivered", of_worker("ok", arrivals=2, attempts=2)),
            ("settle:after", "delivered", of_worker("ok", arrivals=1, attempts=1)),
            ("settle:before", "to be tried again", of_worker("broken-at-first", arrivals=2, attempts=2)),
            ("settle:after", "to be tried again", of_worker("broken-at-first", arrivals=2, attempts=2)),
            ("settle:before", "dead", of_worker("gone", arrivals=2, attempts=2, state="dead")),
            ("settle:after", "dead", of_worker("gone", arrivals=1, attempts=1, state="dead")),
            # The first claim is from another queue, which is empty. Nacks are sent for three queues each time.
            ("claim:after:2", "several queues", of_worker("ok", arrivals=1, attempts=2, several=True)),
            ("settle:before", "several queues", of_worker("ok", arrivals=2, attempts=2, several=True)),
            ("settle:after", "several queues", of_worker("ok", arrivals=1, attempts=1, several=True)),
            (
                "nack:before:5",
                "several queues",
                of_worker("silent-at-first", arrivals=2, attempts=2, terminate=True, several=True),
            ),
            (
                "nack:after:5",
                "several queues",
                of_worker("silent-at-first", arrivals=2, attempts=1, terminate=True, several=True),
            ),
            # The first heartbeat comes before the first claim, the second while the delivery is in flight.
            ("heartbeat:before:2", "", of_worker("silent-at-first", arrivals=2, attempts=2)),
            ("heartbeat:after:2", "", of_worker("silent-at-first", arrivals=2, attempts=2)),
            # A worker gives tasks back when it connects, and the second time when it stops.
            ("nack:before:2", "", of_worker("silent-at-first", arrivals=2, attempts=2, terminate=True)),
            ("begin:before", "", of_stock_worker("ok", arrivals=1, attempts=1)),
            ("begin:after", "", of_stock_worker("ok", arrivals=1, attempts=2)),
            ("settle:before", "stock, delivered", of_stock_worker("ok", arrivals=2, attempts=2)),
            ("settle:after", "stock, delivered", of_stock_worker("ok", arrivals=1, attempts=1)),
            ("settle:after", "stock, to be tried again", of_stock_worker("broken-at-first", arrivals=2, attempts=2)),
            ("settle:after", "stock, dead", of_stock_worker("gone", arrivals=1, attempts=1, state="dead")),
            ("nack:after:2", "", of_worker("silent-at-first", arrivals=2, attempts=1, terminate=True)),
        ],
    ),
    "flows": (
        ("scheduler",),
        [
            ("claim:before", "in a flow", of_flow("ok", arrivals=1, attempts=1)),
            ("claim:after", "in a flow", of_flow("ok", arrivals=1, attempts=2)),
            ("settle:before", "in a flow", of_flow("ok", arrivals=2, attempts=2)),
            ("settle:after", "in a flow", of_flow("ok", arrivals=1, attempts=1)),
            ("settle:after", "in a flow, to be tried again", of_flow("broken-at-first", arrivals=2, attempts=2)),
            ("settle:after", "in a flow, dead", of_flow("gone", arrivals=1, attempts=1, state="dead")),
            ("begin:after", "in a flow", of_flow("ok", arrivals=1, attempts=2, stock=True)),
            ("settle:after", "in a flow, stock", of_flow("broken-at-first", arrivals=2, attempts=2, stock=True)),
            ("park:before", "", worker_dies_parking),
            ("park:after", "", worker_dies_parking),
        ],
    ),
    "schedulers": (
        ("worker",),
        [
            ("release:before", "", scheduler_dies_releasing),
            ("release:after", "", scheduler_dies_releasing),
            ("reclaim:before", "", scheduler_dies_reclaiming),
            ("reclaim:after", "", scheduler_dies_reclaiming),
            ("forget:before", "", scheduler_dies_forgetting),
            ("forget:after", "", scheduler_dies_forgetting),
        ],
    ),
    "gateways": (
        ("scheduler", "worker"),
        [
            ("set_rules:before", "", gateway_dies_starting),
            ("set_rules:after", "", gateway_dies_starting),
            ("take_number:before", "", gateway_dies_accepting),
            ("take_number:after", "", gateway_dies_accepting),
            ("submit:before", "socket", gateway_dies_accepting),
            ("submit:after", "socket", gateway_dies_accepting),
            ("submit:before", "inbox", gateway_dies_taking_from_the_inbox),
            ("submit:after", "inbox", gateway_dies_taking_from_the_inbox),
            ("submit:before", "with limits", gateway_dies_setting_limits),
            ("submit:after", "with limits", gateway_dies_setting_limits),
            ("refuse:before", "", gateway_dies_refusing),
            ("refuse:after", "", gateway_dies_refusing),
            ("leave_inbox:before", "", gateway_dies_leaving),
            ("leave_inbox:after", "", gateway_dies_leaving),
        ],
    ),
    "commands": (
        ("scheduler", "worker"),
        [
            ("submit:before", "client", send_dies),
            ("submit:after", "client", send_dies),
            ("cancel:before", "", cancel_dies),
            ("cancel:after", "", cancel_dies),
            ("cancel:before", "in a flow", cancel_of_a_waiting_task_dies),
            ("cancel:after", "in a flow", cancel_of_a_waiting_task_dies),
            ("set_flow:before", "", set_flow_dies),
            ("set_flow:after", "", set_flow_dies),
            ("purge:before", "", purge_dies),
            ("purge:after", "", purge_dies),
            ("forget_task:before", "", forget_dies),
            ("forget_task:after", "", forget_dies),
            ("audit:before", "", partial(reader_dies, command="audit")),
            ("audit:after", "", partial(reader_dies, command="audit")),
            ("page:before", "", partial(reader_dies, command="list")),
            ("page:after", "", partial(reader_dies, command="list")),
            ("retry:before", "", retry_dies),
            ("retry:after", "", retry_dies),
            ("remove_dead:before", "", remove_dies),
            ("remove_dead:after", "", remove_dies),
        ],
    ),
}
CASES = {f"{fault} {what}".strip(): case for _, cases in LANES.values() for fault, what, case in cases}

Results = dict[str, "Future[Any]"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    """The result of every case, and what each lane leaves in Redis; all lanes start at once."""
    folder = tmp_path_factory.mktemp("faults")
    server = RedisServer(folder)
    behaviour = Receivers()
    found: Results = {name: Future() for name in (*CASES, *LANES)}
    with Receiver(behaviour) as receiver, ThreadPoolExecutor(len(LANES)) as pool:
        for database, name in enumerate(LANES):
            url = f"redis://127.0.0.1:{server.port}/{database}"
            pool.submit(run_cases, Lane(url, receiver.url, behaviour.arrivals, folder / name), name, found)
        yield found
    server.kill()


def run_cases(lane: Lane, name: str, results: Results) -> None:
    """Runs all cases of a lane, one after the other."""
    well, cases = LANES[name]
    for process in well:
        lane.start(process)
    for fault, what, case in cases:
        keep(results[f"{fault} {what}".strip()], case, lane, fault)
    if "scheduler" not in well:
        lane.start("scheduler")  # for what it must forget
    keep(results[name], lane.close)


def keep(result: Future[Any], call: Callable[..., Any], *arguments: Any) -> None:
    """Calls the function and keeps its result for the test that reads it."""
    try:
        result.set_result(call(*arguments))
    except BaseException as error:  # a failed assertion, too, is for the test that reads the result
        result.set_exception(error)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_lost_when_a_process_is_killed_at(results: Results, case: str) -> None:
    results[case].result()


@pytest.mark.parametrize("lane", LANES)
def test_nothing_is_left_behind_by_the_deaths_of(results: Results, lane: str) -> None:
    assert results[lane].result() == {}


def test_every_script_has_both_of_its_fault_points_tested() -> None:
    (folder,) = qtask.store.__path__
    texts = {path.stem: path.read_text() for path in Path(folder).glob("*.lua")}
    scripts = {name for name, text in texts.items() if not text.startswith("-- For other scripts")}
    scripts.remove("rights")  # it changes nothing and has no fault points
    points = {tuple(case.split()[0].split(":")[:2]) for case in CASES}
    assert points == {(name, when) for name in scripts for when in ("before", "after")}
