"""How late the tasks of a healthy host are beside many tasks for hosts in trouble."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measures import Values
from benchmarks.qtask_submit import dictionary
from benchmarks.qtask_system import QTask
from benchmarks.receiver import Receiver
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage
from qtask.client import Client

HOSTS = 3
HEALTHY = 200
_LEAD_SECONDS = 3.0  # for submitting, at 4,000 tasks a second
_WAIT_SECONDS = 40.0  # for the healthy tasks


def isolation(receiver: Receiver, sizes: Sizes, name: str) -> Values:
    """Lateness in ms of 200 tasks for a healthy host: `p50`, `p99`, `max`; and how many came.

    `sizes.bad_tasks` tasks for three hosts in trouble are due at one instant. The healthy ones are due from that
    instant on, over `sizes.isolation_seconds`, or with `together` all at that instant and among the others. `name` is
    the trouble, perhaps followed by `together`.
    """
    trouble, _, together = name.partition(" ")
    command = [sys.executable, "-m", "tests.support.bad_hosts", trouble, str(HOSTS)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = [int(port) for port in process.stdout.readline().split()]
        system = QTask("qtask-isolation")
        with Stage(system, receiver) as stage:
            stage.start_delivering()
            receiver.reset()
            due = time.time() + _LEAD_SECONDS + sizes.bad_tasks / 4_000
            spread = 0.0 if together else sizes.isolation_seconds
            with Client(stage.redis.url, timeout=60.0) as client:
                for answer in client.send_iter(_tasks(due, spread, receiver.url, ports, sizes.bad_tasks)):
                    if isinstance(answer, Exception):
                        raise answer
            if time.time() > due:
                raise RuntimeError("submitting took too long, so the first were due before the last was submitted")
            receiver.wait(HEALTHY, due + spread + _WAIT_SECONDS)
            late = receiver.arrivals().lateness * 1000
    finally:
        process.stdin.close()
        process.wait(10)
    return {
        "came": float(len(late)),
        "p50": float(np.median(late)),
        "p99": float(np.percentile(late, 99)),
        "max": float(late.max()),
    }


def _tasks(due: float, spread: float, url: str, ports: list[int], count: int) -> Iterator[dict[str, Any]]:
    """Tasks for the hosts in trouble, and the healthy ones evenly among them."""
    every = count // HEALTHY
    for number in range(count):
        one = dictionary(due, f"http://127.0.0.1:{ports[number % len(ports)]}", f"/{due:.6f}/{number}")
        one["settings"] |= {"timeout": 10, "retry": {"attempts": 1}}
        yield one
        if number % every == 0 and number // every < HEALTHY:
            healthy = due + spread * (number // every) / HEALTHY
            yield dictionary(healthy, url, f"/{healthy:.6f}/{number // every + 1}")
