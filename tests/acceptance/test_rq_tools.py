"""RQ's own tools on a live QTask, each as a real process: together with QTask's processes, and instead of them.

The flags needed: `-S rq.serializers.JSONSerializer` for everything that reads or runs jobs with `rq`,
`-j qtask.store.rq_job.TaskJob` for `rqscheduler`, `-j` (JSON) for `rq-dashboard`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import rq_scheduler
from redis import Redis
from rq import Queue, Worker
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import WorkerStatus

from qtask.client.protocol import Accepted
from qtask.model.ids import IdSource
from qtask.observe import stats
from qtask.store import keys, tasks
from qtask.store.flow_records import pause_flow
from qtask.store.rq_job import TaskJob
from tests.support.live import Live, children
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

JSON = ("-S", "rq.serializers.JSONSerializer")


def rq_queue(live: Live, name: str) -> Queue:
    return Queue(name, connection=live.redis, serializer=JSONSerializer, job_class=TaskJob)


def send(
    live: Live, queue: str, url: str, count: int = 1, delay: float = 0.0, attempts: int = 5, **settings: Any
) -> list[str]:
    address = {"type": "http", "link": url}
    with live.client(queue) as client:
        return [
            client.send(
                {
                    "title": f"number {number}",
                    "address": address,
                    "settings": {"time": delay * number / count, "retry": {"attempts": attempts}, **settings},
                }
            ).id
            for number in range(count)
        ]


# --- rq worker ---------------------------------------------------------------------------------------------------


def test_stock_rq_worker_delivers_tasks(live: Live, queue: str) -> None:
    """`rq worker -u URL -S rq.serializers.JSONSerializer QUEUE --burst`: it forks for each task.

    Outcomes of every type in a stock worker are compared with those of QTask's own in test_rq_function.py.
    """
    os.mkfifo(live.pipes / "stock")
    pipe = os.open(live.pipes / "stock", os.O_RDONLY | os.O_NONBLOCK)
    before = {kind.type: kind.totals.get("delivered", 0) for kind in stats.summary(live.redis)}
    with Receiver() as receiver, Receiver() as to_socket, live.client(queue) as client:
        accepted = client.send_many(
            [
                {"title": "a", "address": {"type": "http", "link": receiver.url}, "settings": {"time": 0.1}},
                {
                    "title": "b",
                    "address": {"type": "socket", "link": f"127.0.0.1:{to_socket.port}"},
                    "settings": {"time": 0, "data": "GET / HTTP/1.1"},
                },
                {
                    "title": "c",
                    "address": {"type": "pipe", "link": "stock"},
                    "settings": {"time": 0, "data": {"data": 1}},
                },
                {"title": "d", "address": {"type": "__graph__"}, "settings": {"timeout": 90}},
                {
                    "title": "e",
                    "address": {"type": "http", "link": f"http://127.0.0.1:{free_port()}/"},
                    "settings": {"time": 0, "retry": {"attempts": 1}},
                },
            ]
        )
        ids = [answer.id for answer in accepted if isinstance(answer, Accepted)]
        live.wait_queued(queue, 5)
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        records = [tasks.show(live.redis, task_id) for task_id in ids]
        assert receiver.ids == [ids[0]]
    assert os.read(pipe, 100) == b"1\n"
    os.close(pipe)
    assert [record.state for record in records] == ["delivered", "delivered", "delivered", "delivered", "dead"]
    assert [record.outcomes[-1].error for record in records] == ["", "", "", "", "connect"]
    assert all((record.outcomes[0].lateness or 0) > 0 and record.outcomes[-1].duration > 0 for record in records)
    after = {kind.type: kind.totals.get("delivered", 0) for kind in stats.summary(live.redis)}
    assert {kind: after[kind] - before.get(kind, 0) for kind in after} == {
        "http": 1,
        "socket": 1,
        "pipe": 1,
        "__graph__": 1,
    }
    picture: Any = live.redis.get(keys.graph(ids[3]))
    assert picture.startswith(b"\x89PNG")


def test_stock_rq_worker_next_to_ours_neither_fails_nor_duplicates_tasks(live: Live, queue: str) -> None:
    """It cleans RQ's registries at start, while QTask's worker has tasks in flight, and then shares the work."""
    gate = Gate()
    with Receiver(gate) as held, Receiver() as receiver:
        live.start("worker", queue=queue)
        in_flight = send(live, queue, held.url, 10)
        held.wait_for(10)
        with_maintenance = ("--maintenance-interval", "1")
        stock = live.program("rq", "worker", "-u", live.server.url, *JSON, *with_maintenance, queue)
        until(lambda: _is_idle(live, stock.pid), what="the stock worker to wait for tasks")
        shared = send(live, queue, receiver.url, 60, delay=1.5)
        live.ended(shared)
        assert tasks.count_tasks(live.redis, queue) | {"scheduled": 0} == {
            "scheduled": 0,
            "waiting": 0,
            "queued": 0,
            "started": 10,
            "delivered": 60,
            "dead": 0,
        }
        by_stock = [task_id for task_id in shared if live.redis.exists(keys.results(task_id))]
        gate.open()
        records = live.ended(in_flight + shared)
        stock.send_signal(signal.SIGTERM)
        stock.wait(30)
        assert 0 < len(by_stock) < 60, "both workers have delivered"
        assert Counter(held.ids + receiver.ids) == Counter(in_flight + shared)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}


def _is_idle(live: Live, pid: int) -> bool:
    """Whether a worker is registered with RQ and waits for tasks."""
    return any(one.pid == pid and one.get_state() == WorkerStatus.IDLE for one in Worker.all(connection=live.redis))


def test_task_of_a_killed_stock_worker_is_reclaimed(live: Live, queue: str) -> None:
    """RQ's lease is 90 s; the test moves its end into the past instead of waiting."""
    gate = Gate(held_attempts=("1",))
    with Receiver(gate) as receiver:
        (task_id,) = send(live, queue, receiver.url)
        stock = live.program("rq", "worker", "-u", live.server.url, *JSON, queue)
        receiver.wait_for(1)
        raw: Any = live.redis.zrange(keys.started(queue), 0, -1)
        (lease,) = raw
        (horse,) = children(stock.pid)
        stock.kill()
        os.kill(horse, signal.SIGKILL)
        live.redis.zadd(keys.started(queue), {lease: live.redis.time()[0] - 1})
        live.start("worker", queue=queue)
        (record,) = live.ended([task_id])
        gate.open()
    assert (record.state, record.attempts) == ("delivered", 2)


# --- rqscheduler -------------------------------------------------------------------------------------------------


def test_stock_rqscheduler_releases_tasks_instead_of_ours(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`rqscheduler -j qtask.store.rq_job.TaskJob -H HOST -p PORT -i 1`: to the second, QTask's is exact."""
    with Live(tmp_path_factory.mktemp("rqscheduler")) as live, Receiver() as receiver:
        live.start("worker")
        ids = send(live, "qtask", receiver.url, 5, delay=1.0)
        where = ("-H", "127.0.0.1", "-p", str(live.server.port))
        live.program("rqscheduler", "-j", "qtask.store.rq_job.TaskJob", *where, "-i", "1")
        records = live.ended(ids)
        assert sorted(receiver.ids) == sorted(ids)
    for record in records:
        assert record.state == "delivered"
        assert abs(record.outcomes[0].started - record.due - (record.outcomes[0].lateness or 0)) < 1.0


def test_stock_rqscheduler_next_to_ours_stays_passive(live: Live, queue: str) -> None:
    where = ("-H", "127.0.0.1", "-p", str(live.server.port))
    stock = live.program("rqscheduler", "-j", "qtask.store.rq_job.TaskJob", *where, "-i", "1")
    until(lambda: "Lock already taken" in _log_of("rqscheduler", live))
    (task_id,) = send(live, queue, "http://127.0.0.1:1/")
    live.wait_queued(queue, 1)
    fields: Any = live.redis.hkeys(keys.job(task_id))
    assert b"created_at" not in fields, "rqscheduler would have written it"
    stock.send_signal(signal.SIGTERM)
    stock.wait(30)


def _log_of(program: str, live: Live) -> str:
    return "".join(log.read_text() for log in live.folder.glob(f"{program}-*.log"))


def test_rq_scheduler_lists_waiting_tasks_with_their_times(live: Live, queue: str) -> None:
    """`Scheduler(connection=…, job_class=TaskJob).get_jobs(with_times=True)`; times are naive and in UTC."""
    with live.client(queue) as client:
        accepted = client.http("http://127.0.0.1:1/", at=datetime.now(UTC) + timedelta(hours=2), title="later")
    stock = rq_scheduler.Scheduler(connection=live.redis, job_class=TaskJob)
    (found,) = [(job, at) for job, at in stock.get_jobs(with_times=True) if job.id == accepted.id]
    job, at = found
    assert job.args[0]["title"] == "later"
    assert (job.func_name, job.origin) == ("qtask.do", queue)
    assert abs(at.replace(tzinfo=UTC).timestamp() - accepted.due) < 1
    assert accepted.id in stock


# --- rq info, registries, requeue --------------------------------------------------------------------------------


def test_rq_info_shows_the_queue_and_the_worker(live: Live, queue: str) -> None:
    gate = Gate()
    with Receiver(gate) as receiver:
        worker = live.start("worker", queue=queue, concurrency=1)
        send(live, queue, receiver.url, 3)
        receiver.wait_for(1)
        live.wait_queued(queue, 2)
        live.heartbeats(worker, 1)
        shown = live.command("rq", "info", "-u", live.server.url)
        gate.open()
    (queue_line,) = [line for line in shown.splitlines() if line.startswith(f"{queue} ")]
    assert queue_line.endswith("2, 1 executing, 0 finished, 0 failed"), shown
    (worker_line,) = [line for line in shown.splitlines() if f"busy {queue}. jobs:" in line]
    assert f" {worker.pid})" in worker_line, shown


def test_rq_registries_list_tasks(live: Live, queue: str) -> None:
    gate = Gate()
    named = rq_queue(live, queue)
    with Receiver(gate) as receiver:
        live.start("worker", queue=queue)
        ids = send(live, queue, receiver.url, 3)
        (dead,) = send(live, queue, f"http://127.0.0.1:{free_port()}/", attempts=1)
        receiver.wait_for(3)
        live.ended([dead])
        assert sorted(StartedJobRegistry(queue=named).get_job_ids()) == sorted(ids)
        assert FailedJobRegistry(queue=named).get_job_ids() == [dead]
        gate.open()
        live.ended(ids)
    assert sorted(FinishedJobRegistry(queue=named).get_job_ids()) == sorted(ids)
    assert StartedJobRegistry(queue=named).get_job_ids() == []
    job = TaskJob.fetch(dead, connection=live.redis)
    assert job.get_status() == JobStatus.FAILED
    assert "connect" in str(live.redis.hget(job.key, "exc_info"))
    assert TaskJob.fetch(ids[0], connection=live.redis).get_status() == JobStatus.FINISHED


@pytest.mark.parametrize("way", ["rq requeue", "Job.requeue"])
def test_dead_letter_requeued_by_rq_is_delivered_again(live: Live, queue: str, way: str) -> None:
    """`rq requeue -u URL -S rq.serializers.JSONSerializer --queue QUEUE ID`, or `TaskJob.fetch(id).requeue()`."""

    def heal(exchange: Exchange) -> None:
        exchange.answer(500 if exchange.number == 1 else 200, b"")

    with Receiver(heal) as receiver:
        live.start("worker", queue=queue)
        (task_id,) = send(live, queue, receiver.url, attempts=1)
        assert live.ended([task_id])[0].state == "dead"
        if way == "rq requeue":
            live.command("rq", "requeue", "-u", live.server.url, *JSON, "--queue", queue, task_id)
        else:
            TaskJob.fetch(task_id, connection=live.redis).requeue()
        until(lambda: tasks.show(live.redis, task_id).state == "delivered")
        assert receiver.ids == [task_id] * 2
        attempts = [request.header("QTask-Attempt") for request in receiver.requests]
        assert attempts == ["1", "1"], "it starts again at attempt 1"
        assert [outcome.code for outcome in tasks.show(live.redis, task_id).outcomes] == [500, 200]
    assert tasks.count_tasks(live.redis, queue)["dead"] == 0


# --- rq-dashboard ------------------------------------------------------------------------------------------------


def test_rq_dashboard_lists_queues_and_jobs_and_shows_one(live: Live, queue: str) -> None:
    """`rq-dashboard -j --show-full-args -u URL`, with `six`, which is missing in its requirements.

    Without `--show-full-args` it shows RQ's description of a job, which tasks do not have.
    """
    port = free_port()
    live.program("rq-dashboard", "-j", "--show-full-args", "-u", live.server.url, "-b", "127.0.0.1", "-p", str(port))
    (waiting,) = send(live, queue, "http://127.0.0.1:1/hook")
    live.wait_queued(queue, 1)

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/0/{path}", timeout=30) as response:
            return json.loads(response.read())

    until(lambda: _listens(port), what="rq-dashboard to listen")
    (found,) = [one for one in get("data/queues.json")["queues"] if one["name"] == queue]
    assert found["count"] == 1
    (listed,) = get(f"data/jobs/{queue}/queued/8/asc/1.json")["jobs"]
    assert listed["id"] == waiting
    job = get(f"data/job/{waiting}.json")
    assert (job["id"], job["origin"], job["status"]) == (waiting, queue, "queued")
    assert "qtask.do" in job["description"] and "/hook" in job["description"]


def test_rq_tools_show_a_waiting_task_as_deferred(live: Live, queue: str) -> None:
    """RQ has no list of the tasks that wait in flows; it knows their jobs, and does not touch them."""
    flow = f"flow of {queue}"
    port = free_port()
    live.program("rq-dashboard", "-j", "--show-full-args", "-u", live.server.url, "-b", "127.0.0.1", "-p", str(port))
    pause_flow(live.redis, flow)
    with Receiver() as receiver:
        (task_id,) = send(live, queue, receiver.url, flow=flow)
        until(lambda: tasks.show(live.redis, task_id).state == "waiting")
        assert TaskJob.fetch(task_id, connection=live.redis).get_status() == JobStatus.DEFERRED
        shown = live.command("rq", "info", "-u", live.server.url)
        assert not [line for line in shown.splitlines() if line.startswith(f"{queue} ")], "the queue has no tasks"
        until(lambda: _listens(port), what="rq-dashboard to listen")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/0/data/job/{task_id}.json", timeout=30) as response:
            assert json.loads(response.read())["status"] == "deferred"
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        assert tasks.show(live.redis, task_id).state == "waiting", "a stock worker and its clean-up leave it alone"
        assert receiver.ids == []
        pause_flow(live.redis, flow, False)
        live.command("rq", "worker", "-u", live.server.url, *JSON, queue, "--burst")
        assert receiver.ids == [task_id]
    assert tasks.show(live.redis, task_id).state == "delivered"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_rq_accepts_ids_made_by_qtask(redis: Redis) -> None:
    made = IdSource(1).next()
    assert Job.create("os.getpid", id=made, connection=redis).id == made
