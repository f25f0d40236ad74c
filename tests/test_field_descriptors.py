"""A worker with few descriptors: it delivers less at once, and no delivery fails for want of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.live import Live
from tests.receiver import Receiver
from tests.waiting import until

TASKS = 200


def test_a_worker_claims_no_more_than_it_has_descriptors_for(live: Live, queue: str, tmp_path: Path) -> None:
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
            worker.wait(20)
    assert {(record.state, record.attempts) for record in records} == {("delivered", 1)}
    (warning,) = [event for event in events(log) if event["event"] == "concurrency_reduced"]
    assert (warning["concurrency"], warning["wanted"], warning["descriptors"]) == (16, 1000, 80)


def test_with_enough_of_them_nothing_is_reduced(live: Live, queue: str) -> None:
    worker = live.start("worker", queue=queue, concurrency=100)
    (working,) = until(lambda: [event for event in events(worker.log) if event["event"] == "working"], what="it")
    assert working["concurrency"] == 100
    assert "concurrency_reduced" not in worker.log.read_text()


def events(log: Path) -> list[dict[str, object]]:
    """What a process has logged."""
    return [json.loads(line) for line in log.read_text().splitlines()]
