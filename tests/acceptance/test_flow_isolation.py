"""A host in trouble does not delay deliveries to another, although thousands of its tasks are due before."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qtask.store import keys, queues
from tests.support.bad_hosts import TROUBLES, Trouble
from tests.support.live import Live
from tests.support.receiver import Receiver
from tests.support.waiting import until

HOSTS = 3
HEALTHY = 100
# If the hosts in trouble held every connection, each of their tasks would take its timeout of ten seconds, and the
# healthy tasks would arrive after minutes. With isolation they take a fraction of a second on a quiet machine.
GENEROUS_SECONDS = 12.0


@contextmanager
def bad_hosts(trouble: Trouble) -> Iterator[list[int]]:
    """The ports of some hosts in trouble."""
    command = [sys.executable, "-m", "tests.support.bad_hosts", trouble, str(HOSTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield [int(port) for port in process.stdout.readline().split()]
        process.stdin.close()


def http(url: str, at: float) -> dict[str, Any]:
    settings = {"at": at, "timeout": 10, "retry": {"attempts": 1}}
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": settings}


@pytest.mark.parametrize("trouble", ["hang", *(pytest.param(one, marks=pytest.mark.slow) for one in TROUBLES[1:])])
def test_healthy_host_is_not_delayed_by_hosts_in_trouble(live: Live, queue: str, trouble: Trouble) -> None:
    with bad_hosts(trouble) as ports, Receiver() as receiver:
        for _ in range(2):
            live.start("worker", queue=queue, concurrency=100)
        due = time.time() + 1.5
        bad = [http(f"http://127.0.0.1:{ports[number % HOSTS]}/", due) for number in range(3_000)]
        live.send(queue, *bad)
        healthy = live.send(queue, *[http(receiver.url, due + number / HEALTHY) for number in range(HEALTHY)])
        until(lambda: len(receiver.requests) == HEALTHY, GENEROUS_SECONDS, "the healthy deliveries")
        records = live.ended(healthy)
        assert {record.attempts for record in records} == {1}
        waiting = sum(live.redis.zcard(keys.WAITING_PREFIX + f"http://127.0.0.1:{port}") for port in ports)
        assert trouble == "fail" or waiting > 2_000, "the others wait in their flows"
        queues.purge_queue(live.redis, queue)
