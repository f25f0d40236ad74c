"""Redis in trouble: nothing is accepted without being stored, and accepted tasks are delivered once it recovers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.intake.intake import Answer, Intake
from qtask.model.errors import Refused
from qtask.scheduler.housekeeping import DEAD_AFTER_SECONDS
from qtask.scheduler.process import Scheduler
from qtask.store import keys, tasks
from qtask.store.channel import Channel
from qtask.store.connect import connect, connect_async
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

CPU_SECONDS = 2.0  # for which CPU usage is measured

_numbers = count()


class Receipts:
    """Behaviour of a receiver: some targets wait for their release, `/fails-first…` fails at its first attempt."""

    def __init__(self) -> None:
        self.let_go = {"held": threading.Event(), "held-longer": threading.Event()}

    def __call__(self, exchange: Exchange) -> None:
        kind = exchange.request.target.split("/")[1]
        if kind in self.let_go:
            self.let_go[kind].wait(30)
        failing = kind == "fails-first" and exchange.request.header("QTask-Attempt") == "1"
        exchange.answer(500 if failing else 200, b"ok")


class System:
    """All of QTask on one Redis with the shipped options: two gateways, a scheduler, two workers, and a receiver.

    Attributes:
        prompt: a gateway that answers at once when Redis does not accept a task.
        patient: one that retries for 40 s.
    """

    def __init__(self, live: Live, prompt: Gateway, patient: Gateway, receiver: Receiver, receipts: Receipts) -> None:
        self.live = live
        self.prompt = prompt
        self.patient = patient
        self.receiver = receiver
        self.receipts = receipts
        self.scheduler = live.start("scheduler")
        self.workers = [live.start("worker") for _ in range(2)]

    @property
    def processes(self) -> list[Process]:
        return [self.prompt.process, self.patient.process, self.scheduler, *self.workers]

    def task(self, kind: str = "plain", delay: float = 0.0, **settings: Any) -> dict[str, Any]:
        """A task with a unique target."""
        link = f"{self.receiver.url}{kind}/{next(_numbers)}"
        return {"title": link, "address": {"type": "http", "link": link}, "settings": {"time": delay, **settings}}

    def accept(self, *dicts: dict[str, Any]) -> list[str]:
        """Submits through the prompt gateway, which must accept all; returns the ids."""
        with Connection(self.prompt.port) as connection:
            answers = connection.ask(list(dicts))
        assert all(answer["ok"] for answer in answers), answers
        return [answer["id"] for answer in answers]

    def hold(self, kind: str = "held", **settings: Any) -> list[str]:
        """Has four deliveries in flight until they are released; returns their ids."""
        self.receipts.let_go[kind].clear()
        ids = self.accept(*[self.task(kind, **settings) for _ in range(4)])
        until(lambda: set(ids) <= set(self.received()), what="the deliveries to be in flight")
        return ids

    def received(self) -> Counter[str]:
        """The number of requests for each id."""
        return Counter(request.header("QTask-Id") for request in list(self.receiver.requests))

    def heartbeats(self) -> dict[str, float]:
        """The last heartbeat of each worker."""
        found: Any = self.live.redis.zrange(keys.WORKERS, 0, -1, withscores=True)
        return {token.decode(): beat for token, beat in found}

    def check_delivered_once(self, ids: list[str]) -> None:
        """Checks that each task is delivered and arrived once."""
        records = self.live.ended(ids, 30)
        assert {record.state for record in records} == {"delivered"}
        received = self.received()
        assert {task_id: received[task_id] for task_id in ids} == dict.fromkeys(ids, 1)

    def check_all_ways(self) -> None:
        """Checks that a task through each gateway, the inbox and the client is delivered."""
        ids = self.accept(self.task())
        with Connection(self.patient.port) as connection:
            ids.append(connection.ask(self.task())["id"])
        with self.live.client() as client:
            ids.append(client.send(self.task()).id)
        self.live.redis.xadd(keys.INBOX, {"task": json.dumps(self.task()), "reply": "reply"})
        reply: Any = self.live.redis.blpop(["reply"], 30)
        ids.append(json.loads(reply[1])["id"])
        self.check_delivered_once(ids)


@contextmanager
def started(folder: Path) -> Iterator[System]:
    """The whole system, in its own folder."""
    receipts = Receipts()
    options = ("--appendonly", "yes", "--appendfsync", "always", "--lua-time-limit", "100")
    with (
        Live(folder, *options) as live,
        Gateway(live.server.url, folder, ACCEPT_RETRY_SECONDS=0) as prompt,
        Gateway(live.server.url, folder, ACCEPT_RETRY_SECONDS=40) as patient,
        Receiver(receipts) as receiver,
    ):
        yield System(live, prompt, patient, receiver, receipts)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with started(tmp_path_factory.mktemp("trouble")) as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def slow_cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """Runs slow cases in parallel with the other tests, each on its own Redis."""
    with ThreadPoolExecutor() as pool:
        yield {
            scenario.__name__: pool.submit(scenario, tmp_path_factory.mktemp("slow_cases"))
            for scenario in (hang_for_long, come_back_to_a_silent_worker)
        }


def refusal(gateway: Gateway, task: dict[str, Any]) -> str:
    """The error of a gateway when Redis does not accept a task."""
    with Connection(gateway.port) as connection:
        answer = connection.ask(task)
    assert answer["ok"] is False and answer["error"]["code"] == "unavailable", answer
    message: str = answer["error"]["message"]
    assert "send it again" in message
    return message


def check_idle(processes: list[Process]) -> None:
    """Checks that none of these processes uses the processor while it has nothing to do."""
    before = [_cpu_seconds(process.pid) for process in processes]
    time.sleep(CPU_SECONDS)
    shares = {
        f"{process.name} {process.pid}": (_cpu_seconds(process.pid) - then) / CPU_SECONDS
        for process, then in zip(processes, before, strict=True)
    }
    assert max(shares.values()) < 0.2, shares


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


# --- Redis accepts no commands -----------------------------------------------------------------------------------


@contextmanager
def killed(live: Live) -> Iterator[str]:
    """The process is killed; its file stays."""
    live.server.kill()
    try:
        yield ""
    finally:
        live.server.start()


@contextmanager
def hung(live: Live) -> Iterator[str]:
    """It accepts connections and commands, and answers nothing."""
    live.server.signal(signal.SIGSTOP)
    try:
        yield ""
    finally:
        live.server.signal(signal.SIGCONT)


@contextmanager
def loading(live: Live) -> Iterator[str]:
    """It was killed, and loads a large file slowly."""
    with live.redis.pipeline(transaction=False) as pipeline:
        for number in range(2_000):
            pipeline.set(f"filler:{number}", os.urandom(1_000))
        pipeline.execute()
    live.redis.bgrewriteaof()

    def is_rewritten() -> bool:
        info = live.redis.info("persistence")
        return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]

    until(is_rewritten, 30, "a file to be written anew")
    live.server.kill()
    # For 40 s, unless the delay is taken away. It serves its clients after every key, so that no answer is late.
    live.server.begin("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    once = connect(live.server.url)
    until(lambda: _answer(once) == "loading", what="Redis to be loading")
    try:
        yield "loading"
    finally:
        once.config_set("key-load-delay", 0)
        until(lambda: _answer(once) == "well", 40, "Redis to have loaded")
    live.redis.delete(*[f"filler:{number}" for number in range(2_000)])


@contextmanager
def read_only(live: Live) -> Iterator[str]:
    """It was made the replica of a master that does not exist."""
    live.redis.replicaof("127.0.0.1", str(free_port()))
    try:
        yield "read only"
    finally:
        live.redis.replicaof("NO", "ONE")


@contextmanager
def busy(live: Live) -> Iterator[str]:
    """A script of another client does not end."""

    def run_for_ever() -> None:
        with pytest.raises(ResponseError, match="killed"):
            live.server.client().eval("while true do end", 0)

    with ThreadPoolExecutor() as pool:
        script = pool.submit(run_for_ever)
        until(lambda: _answer(live.redis) == "busy", what="Redis to be busy")
        try:
            yield "busy"
        finally:
            live.redis.script_kill()
        script.result(30)


@contextmanager
def unable_to_save(live: Live) -> Iterator[str]:
    """It must save snapshots and cannot."""
    in_the_way = live.folder / "dump.rdb"
    in_the_way.mkdir()
    live.redis.config_set("save", "3600 1000000")
    live.redis.bgsave()
    until(lambda: live.redis.info("persistence")["rdb_last_bgsave_status"] == "err", what="a snapshot that fails")
    try:
        yield "snapshots"
    finally:
        live.redis.config_set("save", "")
        in_the_way.rmdir()


def _answer(redis: Redis) -> str:
    try:
        redis.ping()
    except BusyLoadingError:
        return "loading"
    except RedisConnectionError:
        return "away"
    except ResponseError as error:
        return "busy" if "BUSY" in str(error) else str(error)
    return "well"


Trouble = Callable[[Live], AbstractContextManager[str]]


@contextmanager
def in_trouble(system: System, trouble: Trouble, **settings: Any) -> Iterator[None]:
    """Redis gets into trouble while tasks wait, are in flight and are submitted; the body runs meanwhile.

    Checks that nothing is accepted meanwhile, that accepted tasks are delivered once, and that all processes recover.
    """
    waiting = system.accept(*[system.task(delay=0.3 + 0.05 * number) for number in range(20)])
    ended_meanwhile = system.hold("held", **settings)
    with ThreadPoolExecutor() as pool, Connection(system.patient.port) as connection:
        with trouble(system.live) as words:
            connection.socket.settimeout(60)  # longer than the gateway holds tasks
            refused, held = system.task(), system.task()
            later = pool.submit(connection.ask, held)
            said = [refusal(system.prompt, refused)]
            if words not in said[0]:  # a connection that Redis closed at the change reports that first
                said.append(refusal(system.prompt, refused))
            assert words in said[-1], said
            yield
            assert not later.done(), "the patient gateway must not answer before Redis has the task"
            system.receipts.let_go["held"].set()  # released now at the latest; it cannot be settled yet
        answer = later.result(60)
    assert answer["ok"] is True
    assert tasks.show(system.live.redis, answer["id"]).title == held["title"]
    system.check_delivered_once([*waiting, *ended_meanwhile, answer["id"]])
    assert {len(record.outcomes) for record in system.live.ended(ended_meanwhile)} == {1}
    unknown = [request for request in system.receiver.requests if refused["title"].endswith(request.target)]
    assert len(unknown) <= 1, "a refused task may have been stored, but not twice"
    system.check_all_ways()
    assert all(process.running for process in system.processes)


@pytest.mark.parametrize("trouble", [loading, busy, unable_to_save], ids=lambda one: one.__name__)
def test_nothing_is_accepted_in_trouble_and_accepted_tasks_are_delivered_once(system: System, trouble: Trouble) -> None:
    with in_trouble(system, trouble):
        system.receipts.let_go["held"].set()


def test_processes_wait_without_load_while_redis_is_dead(system: System) -> None:
    with in_trouble(system, killed):
        system.receipts.let_go["held"].set()
        check_idle(system.processes)


def test_processes_wait_without_load_while_redis_rejects_writes(system: System) -> None:
    with in_trouble(system, read_only):
        system.receipts.let_go["held"].set()
        check_idle(system.processes)


def test_refusal_over_http_has_retry_after(system: System) -> None:
    with killed(system.live):
        answer = requests.post(f"http://127.0.0.1:{system.prompt.http_port}/tasks", json=system.task(), timeout=30)
        health = requests.get(f"http://127.0.0.1:{system.prompt.http_port}/health", timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "1"
    assert (health.status_code, health.json()["ok"]) == (503, False)
    system.check_all_ways()


# --- tasks held by a gateway -------------------------------------------------------------------------------------


def submitted(intake: Intake) -> asyncio.Future[Answer]:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    task = {"title": "t", "address": {"type": "socket", "link": "127.0.0.1:9"}, "settings": {"time": 3600, "data": 1}}
    intake.add(check_task(task), answer.set_result)
    return answer


def test_gateway_holds_a_task_for_accept_retry_seconds_and_then_refuses_it() -> None:
    async def submit() -> tuple[Answer, float]:
        redis = connect_async(f"redis://127.0.0.1:{free_port()}/0")
        began = time.monotonic()
        answer = await submitted(Intake(redis, Config(accept_retry_seconds=0.4)))
        await redis.aclose()
        return answer, time.monotonic() - began

    answer, seconds = asyncio.run(submit())
    assert isinstance(answer, Refused) and answer.code == "unavailable"
    assert seconds >= 0.4


def test_commit_that_fails_with_an_internal_error_is_answered(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    redis = connect_async(server.url)

    async def ping() -> None:
        assert await redis.ping()

    async def submit() -> Answer:
        async with asyncio.timeout(30):
            return await submitted(Intake(redis, Config()))

    try:
        asyncio.run(ping())
        answer = asyncio.run(submit())  # its connection belongs to the first loop, and cannot be used in another
    finally:
        server.kill()
    assert isinstance(answer, Refused) and answer.code == "unavailable"
    assert "internal error: RuntimeError" in answer.message


def test_gateway_that_has_held_a_task_for_long_still_retries_often(tmp_path: Path) -> None:
    """The pauses between retries are capped, so a Redis that is back is noticed soon."""
    server = RedisServer(tmp_path)
    server.kill()

    async def submit() -> Answer:
        redis = connect_async(server.url)
        began = asyncio.get_running_loop().time()
        answer = submitted(Intake(redis, Config(accept_retry_seconds=30)))
        await asyncio.sleep(2.6)  # doubling pauses without a cap would last until 5.1 s
        await asyncio.to_thread(server.start)
        async with asyncio.timeout_at(began + 5.0):
            result = await answer
        await redis.aclose()
        return result

    try:
        answer = asyncio.run(submit())
    finally:
        server.kill()
    assert answer is not None and not isinstance(answer, Refused)


# --- Redis accepts some commands ---------------------------------------------------------------------------------


def test_without_memory_submissions_are_refused_and_everything_else_continues(system: System) -> None:
    live = system.live
    marks = [process.log.stat().st_size for process in (system.scheduler, *system.workers)]
    again = {"attempts": 2, "backoff": [0.3]}
    ids = system.accept(*[system.task(delay=0.5 + 0.005 * number) for number in range(200)])
    retried = system.accept(*[system.task("fails-first", delay=0.5, retry=again) for _ in range(10)])
    live.redis.config_set("maxmemory", "1mb")
    try:
        assert "memory" in refusal(system.prompt, system.task())
        with pytest.raises(ResponseError, match="memory"):
            live.redis.xadd(keys.INBOX, {"task": json.dumps(system.task())})
        system.check_delivered_once(ids)
        assert {(record.state, record.attempts) for record in live.ended(retried)} == {("delivered", 2)}
        beats = system.heartbeats()
        check_idle(system.processes)
        assert all(system.heartbeats()[token] > beat for token, beat in beats.items()), "they are alive"
        assert live.redis.get(keys.SCHEDULER_LOCK) == b"qtask"
        with pytest.raises(ResponseError, match="memory"):
            live.redis.set("key", "value")
    finally:
        live.redis.config_set("maxmemory", "0")
    system.check_all_ways()
    for process, mark in zip((system.scheduler, *system.workers), marks, strict=True):
        assert b"redis_away" not in process.log.read_bytes()[mark:], "and none of them lost its connection"


def test_processes_that_start_without_memory_deliver(tmp_path: Path) -> None:
    with Live(tmp_path) as live, Receiver() as receiver:
        link = {"type": "http", "link": receiver.url}
        with live.client() as client:
            task_id = client.send({"title": "t", "address": link, "settings": {"time": 0}}).id
        live.redis.config_set("maxmemory", "1mb")
        worker, scheduler = live.start("worker"), live.start("scheduler")
        assert live.ended([task_id])[0].state == "delivered"
        assert worker.running and scheduler.running


def test_scripts_that_redis_forgets_are_sent_again(system: System) -> None:
    marks = [process.log.stat().st_size for process in system.processes]
    ids: list[str] = []
    for _ in range(10):
        ids += system.accept(*[system.task(delay=0.01 * number) for number in range(20)])
        system.live.redis.script_flush()
    system.check_delivered_once(ids)
    system.live.redis.script_flush()
    system.check_all_ways()
    for process, mark in zip(system.processes, marks, strict=True):
        logged = process.log.read_bytes()[mark:]
        assert b"redis_away" not in logged and b"commit_failed" not in logged


# --- connections -------------------------------------------------------------------------------------------------


def test_worker_may_reconnect_any_number_of_times(redis: Redis, redis_server: RedisServer) -> None:
    """By default, redis-py's pools make a hundred connections in their lifetime."""
    channel = Channel(connect(redis_server.url))
    for _ in range(250):
        channel.connect()
    replies: list[Any] = []
    channel.send(replies.append, "ECHO", "still there")
    channel.read()
    channel.close()
    assert replies == [b"still there"]


def test_rq_shutdown_command_is_received_after_redis_came_back_and_was_busy(system: System) -> None:
    """RQ stops listening on errors other than a lost connection; it gets one when it reconnects."""
    from rq import Worker
    from rq.command import send_shutdown_command

    with killed(system.live):
        pass
    with busy(system.live):
        time.sleep(2.5)  # RQ reconnects after two seconds
    until(lambda: len(system.live.redis.pubsub_channels("rq:pubsub:*")) == 2, 30, "both workers to listen again")
    names = {one.pid: one.name for one in Worker.all(connection=system.live.redis)}
    for worker in system.workers:
        send_shutdown_command(system.live.redis, names[worker.pid])
    for worker in system.workers:
        until(lambda worker=worker: not worker.running, 30, "the worker to end")  # type: ignore[misc]
        assert worker.stop() == 0


# --- results of the slow cases -------------------------------------------------------------------------------------


def come_back_to_a_silent_worker(folder: Path) -> None:
    server = RedisServer(folder)
    redis = server.client()
    scheduler = Scheduler("qtask", server.client())
    now = redis_now(redis)
    (job,) = scheduler.enqueue_many([(now, {"title": "t", "address": {"type": "__graph__"}, "settings": {"time": 0}})])
    scheduler.release()
    redis.delete(keys.queue("qtask"))  # as if claimed by a worker that has been silent for a minute
    redis.zadd(keys.started("qtask"), {f"{job.id}:silent": keys.FOREVER_SECONDS + now + 600})
    redis.zadd(keys.WORKERS, {"silent": now - 60})
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        until(lambda: redis.lrange(keys.queue("qtask"), 0, -1) == [job.id.encode()], 30, "the task to be taken back")
        assert redis_now(redis) - now >= DEAD_AFTER_SECONDS
    finally:
        scheduler.stop()
        thread.join(30)
        server.kill()


def test_scheduler_gives_workers_time_for_a_heartbeat_before_it_takes_one_for_dead(
    slow_cases: dict[str, Future[None]],
) -> None:
    """A scheduler that was away, or has just started, cannot know whether heartbeats were possible meanwhile."""
    slow_cases["come_back_to_a_silent_worker"].result(60)


def redis_now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def hang_for_long(folder: Path) -> None:
    with started(folder) as system:
        longer = system.hold("held-longer")
        began = time.monotonic()
        with in_trouble(system, hung, timeout=14):
            with Connection(system.prompt.port) as connection:
                connection.socket.settimeout(10)  # six batches, each of which is given up after 5 s
                connection.send(json.dumps([system.task(delay=3_600) for _ in range(3_000)]).encode() + b"\n")
                answers = connection.answer()
            assert [answer["error"]["code"] for answer in answers] == ["unavailable"] * 3_000
            time.sleep(max(0.0, began + 11.5 - time.monotonic()))
            system.receipts.let_go["held"].set()
            time.sleep(3.0)
        beats = system.heartbeats()
        until(lambda: all(system.heartbeats()[token] > beat + 1 for token, beat in beats.items()), what="heartbeats")
        assert {tasks.show(system.live.redis, task_id).state for task_id in longer} == {"started"}
        system.receipts.let_go["held-longer"].set()
        system.check_delivered_once(longer)


def test_deliveries_continue_while_redis_hangs_and_none_is_repeated(slow_cases: dict[str, Future[None]]) -> None:
    """Longer than a worker waits before it reconnects, which must not delay deliveries in flight.

    Six batches, of which two are sent to Redis at a time, are refused together, not one after the other. When Redis
    continues, heartbeats are as old as its pause, and no worker may be taken for dead because of that.
    """
    slow_cases["hang_for_long"].result(90)
