"""Signals: each signal that asks a process to stop has the same effect, and Redis ends last in every case."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from qtask import Client
from qtask.process.stopping import ASKING, INSISTING, StopSignals
from qtask.run.embedded import embedded_url
from qtask.store import tasks
from tests.support.gateway_process import Gateway
from tests.support.installation import Installation, processes_of
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow

STOPS = [*INSISTING, *ASKING]


def ended(process: Process, seconds: float = 30.0) -> int:
    until(lambda: not process.running, seconds, f"the {process.name} to end")
    return process.stop()


# --- each process, each signal -----------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_every_process_stops_in_order_on_every_signal(live: Live, tmp_path: Path) -> None:
    started: list[tuple[signal.Signals, Process]] = []
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        started += [(number, Gateway(live.url, tmp_path).process), (number, live.start("worker"))]
        if number in (signal.SIGHUP, signal.SIGQUIT):
            several = live.start("worker", processes=2)
            until(lambda several=several: several.log.read_text().count("working") == 2, 30, "two workers to work")  # type: ignore[misc]
            started += [(number, several), (number, live.start("scheduler"))]
    for number, process in started:
        process.signal(number)
    for number, process in started:
        assert ended(process) == 0, (number, process.name, process.log.read_text())
        if process.name != "scheduler":
            assert '"event": "stopped"' in process.log.read_text(), (number, process.name)


@pytest.mark.timeout(180)
def test_qtask_up_stops_in_order_on_every_signal(tmp_path: Path) -> None:
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        folder = tmp_path / number.name
        folder.mkdir()
        with Installation(folder) as installation:
            until(lambda: "working" in [event["event"] for event in installation.events()], 30, "the worker to work")
            installation.process.signal(number)
            assert ended(installation.process) == 0, number
            stopped = {event["process"] for event in installation.events() if event["event"] == "stopped"}
            assert stopped == {"gateway", "worker"}, number
        assert processes_of(folder) == set()


def test_only_repeated_signals_of_a_user_count_twice() -> None:
    def after(*numbers: signal.Signals) -> tuple[bool, bool]:
        signals = StopSignals()
        for number in numbers:
            signals.note(number)
        return signals.asked, signals.insisted

    term, interrupt, quits, hang_up = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP
    assert after() == (False, False)
    for one in STOPS:
        assert after(one) == (True, False)
    asks = [(hang_up, hang_up), (term, hang_up), (hang_up, term), (term, signal.SIGUSR1), (hang_up, hang_up, quits)]
    insists = [(term, term), (interrupt, term), (quits, interrupt), (hang_up, term, term)]
    assert {after(*numbers) for numbers in asks} == {(True, False)}
    assert {after(*numbers) for numbers in insists} == {(True, True)}


def test_process_under_nohup_survives_its_terminal(live: Live) -> None:
    """`nohup` starts it with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        started = [live.start("worker", queue="nohup"), live.start("scheduler", queue="nohup")]
    finally:
        signal.signal(signal.SIGHUP, before)
    for process in started:
        process.signal(signal.SIGHUP)
    live.heartbeats(started[0], 2)
    for process in started:
        assert process.running
        process.signal(signal.SIGTERM)
        assert ended(process) == 0


@pytest.mark.parametrize("name", ["gateway", "scheduler", "worker"])
def test_process_that_waits_for_redis_stops_on_a_signal(tmp_path: Path, name: str) -> None:
    """As the first process of a container it must handle the signal: there the kernel ignores it by default."""
    environment = {"QTASK_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0", "QTASK_PORT": "0", "QTASK_HTTP_PORT": "0"}
    process = Process(name, environment, tmp_path / "log")
    said = "listening" if name == "gateway" else "redis_away"
    until(lambda: said in process.log.read_text(), 30, said)
    process.signal(signal.SIGTERM)
    assert ended(process) == 0, process.log.read_text()


@pytest.mark.timeout(180)
def test_signal_during_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    flags = ["--data-dir", str(tmp_path / "data"), "--port", "0", "--http-port", "0"]
    for seconds in (0.05, 0.3, 0.5, 0.7, 0.9, 1.2):
        up = Process("up", {}, tmp_path / "up.log", *flags)
        time.sleep(seconds)
        up.signal(signal.SIGHUP)
        ended(up, 60)
        until(lambda: processes_of(tmp_path) == set(), 30, "all to have ended")


# --- deliveries in flight ----------------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[tuple[Gate, Receiver]]:
    behaviour = Gate()
    with Receiver(behaviour) as receiver:
        yield behaviour, receiver
        behaviour.open()


def to_all(installation: Installation) -> None:
    """As systemd stops a service: the same signal to each of its processes, and a second one."""
    for pid in (installation.process.pid, *installation.children()):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)


def to_the_supervisor_twice(installation: Installation) -> None:
    """As the kernel and the shell do when a terminal closes."""
    installation.process.signal(signal.SIGHUP)
    installation.process.signal(signal.SIGHUP)


@pytest.mark.parametrize("ask", [to_all, to_the_supervisor_twice])
def test_deliveries_in_flight_are_finished_and_counted_before_redis_ends(
    tmp_path: Path, held: tuple[Gate, Receiver], ask: Callable[[Installation], None]
) -> None:
    behaviour, receiver = held
    with Installation(tmp_path) as first:
        with Client(first.url) as client:
            task_id = client.http(receiver.url, retry={"attempts": 1}).id
        receiver.wait_for(1)
        ask(first)
        until(lambda: "gateway" not in first.children().values(), what="the end of the gateway")
        time.sleep(0.3)
        assert {"redis", "worker"} <= set(first.children().values())
        behaviour.open()
        assert ended(first.process) == 0
        assert "process_killed" not in [event["event"] for event in first.events()]
    with Installation(tmp_path) as second:
        record = tasks.show(second.redis, task_id)
        assert (record.state, record.attempts) == ("delivered", 1)
        assert len(receiver.requests) == 1


def test_closed_terminal_stops_it_in_order(tmp_path: Path, held: tuple[Gate, Receiver]) -> None:
    behaviour, receiver = held
    ours, theirs = pty.openpty()
    ports = free_port(), free_port()
    flags = ["--data-dir", str(tmp_path / "data"), "--port", str(ports[0]), "--http-port", str(ports[1])]

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    up = subprocess.Popen(
        [sys.executable, "-m", "qtask", "up", *flags],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=take_terminal,
    )
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 65_536)
    with Client(f"socket://127.0.0.1:{ports[0]}") as client:
        task_id = client.http(receiver.url, retry={"attempts": 1}).id
    receiver.wait_for(1)
    os.close(ours)  # the terminal is gone, and with it standard error
    time.sleep(0.5)
    assert up.poll() is None
    behaviour.open()
    assert up.wait(30) == 0
    assert processes_of(tmp_path) == set()
    with Installation(tmp_path) as second:
        assert tasks.show(second.redis, task_id).state == "delivered"
        assert len(receiver.requests) == 1


def test_frozen_supervisor_does_not_delay_deliveries(tmp_path: Path) -> None:
    """Ctrl-Z on the terminal, and `fg`."""
    with Receiver() as receiver, Installation(tmp_path) as installation, Client(installation.url) as client:
        installation.process.signal(signal.SIGSTOP)
        client.http(receiver.url + "frozen")
        receiver.wait_for(1)
        installation.process.signal(signal.SIGCONT)
        client.http(receiver.url + "thawed")
        receiver.wait_for(2)
        assert Redis.from_url(embedded_url(installation.data_dir)).ping()
        assert installation.process.stop() == 0
