"""A host whose clock is an hour wrong and changes at run time: nothing is early, late, lost or duplicated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from qtask.model.ids import instant_of
from qtask.model.timing import format_instant
from qtask.store import keys
from tests.support.command import qtask
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import Live
from tests.support.preload import Preload
from tests.support.receiver import Exchange, Receiver
from tests.support.waiting import until

HOUR = 3_600
DELAYS = (0.9, 0.5, 0.7, 0.6, 0.8)  # not in the order of submission
STEPS = [pytest.param(HOUR, -HOUR, id="from fast to slow"), pytest.param(-HOUR, HOUR, id="from slow to fast")]

Accepted = list[tuple[str, float]]  # id and due of each
Submit = Callable[[list[dict[str, Any]]], Accepted]

_numbers = count()


class Arrivals:
    """Behaviour of a receiver that notes, by the right clock, when each id arrived."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.not_before: dict[str, float] = {}  # what the first attempt of `/later` was told

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        task_id = request.header("QTask-Id")
        self.at[task_id] = time.time()
        if request.target == "/later" and request.header("QTask-Attempt") == "1":
            instant = int(time.time()) + 2
            self.not_before[task_id] = instant
            exchange.answer(503, headers={"Retry-After": formatdate(instant, usegmt=True)})
        else:
            exchange.answer(200, b"ok")


class System:
    """QTask whose processes have their own clocks. The clocks of Redis and of the receiver are right.

    Attributes:
        clocks: by the name of the process, the seconds by which it is wrong.
    """

    def __init__(self, live: Live, receiver: Receiver, arrivals: Arrivals) -> None:
        self.live = live
        self.receiver = receiver
        self.arrivals = arrivals
        names = ("gateway", "scheduler", "worker", "client")
        self.clocks = {name: Preload("clock_shift", "CLOCK_SHIFT", live.folder) for name in names}
        self.gateway = Gateway(live.url, live.folder, self.clocks["gateway"].environment)
        live.start("scheduler", self.clocks["scheduler"].environment)
        live.start("worker", self.clocks["worker"].environment)

    def task(self, **settings: Any) -> dict[str, Any]:
        """Expires half an hour after it is due, so that an error of an hour would be noticed."""
        address = {"type": "http", "link": f"{self.receiver.url}{next(_numbers)}"}
        return {"title": "t", "address": address, "settings": {"expires": HOUR / 2, **settings}}

    def over_the_socket(self, dicts: list[dict[str, Any]]) -> Accepted:
        """Submits through the gateway."""
        with Connection(self.gateway.port) as connection:
            return [(answer["id"], answer["due"]) for answer in connection.ask(dicts)]

    def check(self, submit: Submit, clock: Preload, first: int, second: int) -> None:
        """A clock that is wrong by `first` seconds changes, while tasks wait, to be wrong by `second`."""
        clock.number = first
        before = time.time()
        at = round(before + 0.75, 6)
        accepted = submit([*(self.task(time=delay) for delay in DELAYS), self.task(at=at)])
        after = time.time()
        clock.number = second
        accepted += submit([self.task(time=0.4)])
        dues = [due for _, due in accepted]
        records = self.live.ended([task_id for task_id, _ in accepted])
        ended = time.time()

        for delay, due in zip(DELAYS, dues, strict=False):
            assert before + delay <= due + 1e-3 and due <= after + delay + 1e-3, "due by Redis's clock"
        assert dues[len(DELAYS)] == pytest.approx(at, abs=1e-6)
        received = {request.header("QTask-Id"): request for request in self.receiver.requests}
        times = Counter(request.header("QTask-Id") for request in self.receiver.requests)
        for record, (task_id, due) in zip(records, accepted, strict=True):
            assert (record.state, times[task_id]) == ("delivered", 1)
            assert self.arrivals.at[task_id] >= due, "never early"
            assert record.due == pytest.approx(due, abs=1e-5)
            assert received[task_id].header("QTask-Due") == format_instant(due)
            (outcome,) = record.outcomes
            assert due <= outcome.started <= outcome.ended <= ended, "outcomes by Redis's clock"
            assert outcome.lateness == pytest.approx(outcome.started - due, abs=1e-5)
        in_order = sorted(records, key=lambda record: record.due)
        assert in_order == sorted(records, key=lambda record: record.outcomes[0].started)
        ids = [task_id for task_id, _ in accepted]
        assert ids == sorted(set(ids)), "ids are unique and in the order of acceptance"
        made = [instant_of(task_id) or 0.0 for task_id in ids]
        assert before - 1 <= made[0] and made[-1] <= ended, "and ids hold the time of acceptance"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    arrivals = Arrivals()
    with Live(tmp_path_factory.mktemp("clock")) as live, Receiver(arrivals) as receiver:
        system = System(live, receiver, arrivals)
        with system.gateway:
            yield system


def straight_into_redis(system: System) -> Submit:
    """Submits from this process, whose clock is right."""

    def submit(dicts: list[dict[str, Any]]) -> Accepted:
        with system.live.client() as client:
            return [(answer.id, answer.due) for answer in map(client.send, dicts)]

    return submit


@pytest.fixture(autouse=True)
def _set_right(system: System) -> Iterator[None]:
    yield
    for clock in system.clocks.values():
        clock.number = 0


def test_shifted_clock_changes_wall_time_only(tmp_path: Path) -> None:
    """The other tests depend on this."""
    clock = Preload("clock_shift", "CLOCK_SHIFT", tmp_path)
    code = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    for shift in (HOUR, -HOUR):
        clock.number = shift
        shown = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **clock.environment}, capture_output=True, check=True
        )
        wall, date, monotonic = map(float, shown.stdout.split())
        assert wall - time.time() == pytest.approx(shift, abs=60)
        assert date - time.time() == pytest.approx(shift, abs=60)
        assert monotonic - time.monotonic() == pytest.approx(0, abs=60)


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_tasks_accepted_by_a_gateway_with_a_wrong_clock_are_punctual(system: System, first: int, second: int) -> None:
    system.check(system.over_the_socket, system.clocks["gateway"], first, second)


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_tasks_released_by_a_scheduler_with_a_wrong_clock_are_punctual(system: System, first: int, second: int) -> None:
    system.check(system.over_the_socket, system.clocks["scheduler"], first, second)


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_tasks_delivered_by_a_worker_with_a_wrong_clock_are_punctual_with_correct_statistics(
    system: System, first: int, second: int
) -> None:
    system.check(system.over_the_socket, system.clocks["worker"], first, second)


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_retry_after_date_is_read_by_the_clock_of_redis(system: System, shift: int) -> None:
    system.clocks["worker"].number = shift
    task = {**system.task(time=0), "address": {"type": "http", "link": system.receiver.url + "later"}}
    ((task_id, _),) = system.over_the_socket([task])
    (record,) = system.live.ended([task_id])
    assert [outcome.status for outcome in record.outcomes] == ["failed", "delivered"]
    assert system.arrivals.at[task_id] >= system.arrivals.not_before[task_id] - 0.5


_CLIENT = """
import json, sys
from datetime import timedelta
from qtask import Client
from qtask.scheduler.process import Scheduler
from qtask.store.connect import connect

scheduler = Scheduler("qtask", connect(sys.argv[1]))
with Client(sys.argv[1]) as client:
    for line in sys.stdin:
        dicts = json.loads(line)
        if isinstance(dicts, list):
            print(json.dumps([[answer.id, answer.due] for answer in client.send_many(dicts)]), flush=True)
        else:
            print(json.dumps(scheduler.enqueue_in(timedelta(seconds=0.5), "qtask.do", dicts).id), flush=True)
"""


@pytest.fixture(scope="module")
def ask_client(system: System) -> Iterator[Callable[[Any], Any]]:
    """A program that submits directly to Redis: a list of tasks by `Client`, a single one by `enqueue_in`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, system.live.url],
        env={**os.environ, **system.clocks["client"].environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    into, out_of = process.stdin, process.stdout

    def ask(what: Any) -> Any:
        into.write(json.dumps(what) + "\n")
        into.flush()
        return json.loads(out_of.readline())

    with into, out_of:
        assert ask([]) == []  # it has started
        yield ask
        process.kill()
        process.wait()


@pytest.mark.parametrize(("first", "second"), STEPS)
def test_tasks_submitted_by_a_client_with_a_wrong_clock_are_punctual(
    system: System, ask_client: Callable[[Any], Any], first: int, second: int
) -> None:
    def submit(dicts: list[dict[str, Any]]) -> Accepted:
        return [(task_id, due) for task_id, due in ask_client(dicts)]

    system.check(submit, system.clocks["client"], first, second)


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_enqueue_in_counts_by_the_clock_of_redis(system: System, ask_client: Callable[[Any], Any], shift: int) -> None:
    system.clocks["client"].number = shift
    before = time.time()
    task_id = ask_client(system.task())
    after = time.time()
    (record,) = system.live.ended([task_id])
    assert before + 0.5 <= record.due + 1e-3 and record.due <= after + 0.5 + 1e-3
    assert system.arrivals.at[task_id] >= record.due


def test_processes_with_different_clocks_agree(system: System) -> None:
    """Each process has a different time."""
    for clock, shift in zip(system.clocks.values(), (HOUR, -HOUR, 2 * HOUR, -2 * HOUR), strict=True):
        clock.number = shift
    system.check(system.over_the_socket, system.clocks["gateway"], HOUR, -3 * HOUR)
    system.check(straight_into_redis(system), system.clocks["worker"], 2 * HOUR, 0)


def test_wrong_clocks_do_not_make_workers_dead_or_leases_expired(system: System) -> None:
    """Heartbeats and leases are written and read by the clock of Redis."""
    for name in ("scheduler", "worker"):
        system.clocks[name].number = HOUR if name == "scheduler" else -HOUR
    before: Any = system.live.redis.zrange(keys.WORKERS, 0, -1, withscores=True)
    until(lambda: system.live.redis.zrange(keys.WORKERS, 0, -1, withscores=True) != before, what="a heartbeat")
    after: Any = system.live.redis.zrange(keys.WORKERS, 0, -1, withscores=True)
    ((token, beat),) = after
    assert (token, beat) == (before[0][0], pytest.approx(time.time(), abs=60))
    assert not any("reclaimed" in log.read_text() for log in system.live.folder.glob("*.log"))


def test_doctor_reports_a_wrong_clock(system: System) -> None:
    system.clocks["client"].number = HOUR
    environment = {**system.live.environment, **system.clocks["client"].environment}
    shown = qtask("doctor", environment=environment).stdout
    (line,) = [line for line in shown.splitlines() if "clocks of this host and of Redis" in line]
    assert line.startswith("note") and "1 h" in line
