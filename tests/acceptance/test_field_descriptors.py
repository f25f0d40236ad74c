"""Processes with few descriptors: they do less at once, and nothing fails because of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support.gateway_process import Connection, task
from tests.support.live import Live
from tests.support.receiver import Receiver
from tests.support.waiting import until

TASKS = 200


def test_worker_with_few_descriptors_reduces_its_concurrency(live: Live, queue: str, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    with Receiver() as receiver, log.open("wb") as output:
        task = {
            "title": "t",
            "address": {"type": "http", "link": receiver.url},
            "settings": {"time": 0, "retry": {"attempts": 1}},
        }
        ids = live.send(queue, *[task] * TASKS)
        live.wait_queued(queue, TASKS)
        worker = subprocess.Popen(
            ["sh", "-c", f"ulimit -n 80; exec {sys.executable} -m qtask worker"],
            env={**os.environ, **live.environment, "QTASK_QUEUE": queue},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            records = live.ended(ids, 30)
            assert worker.poll() is None
        finally:
            worker.terminate()
            worker.wait(30)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}
    (warning,) = [event for event in events(log) if event["event"] == "setting_reduced"]
    assert (warning["setting"], warning["reduced_to"], warning["wanted"]) == ("concurrency", 16, 1000)


def test_gateway_with_few_descriptors_accepts_fewer_connections(live: Live, tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    told = {"QTASK_PORT": "0", "QTASK_HTTP_PORT": "0", "QTASK_LOG_FORMAT": "json"}
    with log.open("wb") as output, ExitStack() as stack:
        gateway = subprocess.Popen(
            ["sh", "-c", f"ulimit -n 80; exec {sys.executable} -m qtask gateway"],
            env={**os.environ, **live.environment, **told},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        stack.callback(gateway.wait, 20)
        stack.callback(gateway.terminate)
        (listening,) = until(lambda: [one for one in events(log) if one["event"] == "listening"], 30, "the gateway")
        port = int(str(listening["port"]))
        opened = [stack.enter_context(Connection(port)) for _ in range(100)]
        # Excess connections get an error or are closed, and the first ones are served while the others keep trying.
        assert all(connection.ask(task())["ok"] for connection in opened[:16])
        assert gateway.poll() is None


def test_enough_descriptors_reduce_nothing(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue, concurrency=100)
    (working,) = until(lambda: [event for event in events(worker.log) if event["event"] == "working"], what="it")
    assert working["concurrency"] == 100
    assert "setting_reduced" not in worker.log.read_text()


def events(log: Path) -> list[dict[str, object]]:
    """The events in a log."""
    whole = log.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
