"""The plan that a submitting process gets, and its report. This module runs in the environment of each peer.

It imports only the standard library, and only names that every peer's Python has.
"""

from __future__ import annotations

import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

BODY = json.dumps(
    {"to": "ada", "text": "a reminder that somebody asked for; long enough to be like one, and no longer"}
)

Task = tuple[float, str]
"""Due instant in Unix seconds, and the path that the task's request has at the receiver."""


@dataclass(frozen=True)
class Plan:
    """Which tasks to submit.

    Attributes:
        count: number of tasks.
        lead: seconds between the start of the submission and the first due instant.
        spread: seconds over which due instants are random; with 0 all tasks are due at one instant, a whole second,
            because some systems only have whole seconds.
        first: number of the first task. Plans of a run share no numbers, so that late arrivals of another measure are
            not counted.
    """

    count: int
    lead: float
    spread: float = 0.0
    first: int = 0

    def tasks(self, now: float) -> list[Task]:
        """The tasks, for a submission that begins now (Unix seconds)."""
        if self.spread:
            dues = [now + self.lead + random.random() * self.spread for _ in range(self.count)]
        else:
            dues = [float(math.ceil(now + self.lead))] * self.count
        return [(due, f"/{due:.6f}/{number}") for number, due in enumerate(dues, self.first)]


@dataclass(frozen=True)
class Submitted:
    """The report of a submission.

    Attributes:
        seconds: from the submission of the first task to that of the last one.
        began: start of the submission in Unix seconds.
        first_due, last_due: in Unix seconds.
    """

    seconds: float
    began: float
    first_due: float
    last_due: float

    @property
    def in_time(self) -> bool:
        """Whether the last task was submitted before the first was due."""
        return self.began + self.seconds <= self.first_due


def redis_url() -> str:
    """The Redis to use."""
    return os.environ["BENCH_REDIS"]


def receiver_url() -> str:
    """The receiver's address, without a slash at the end."""
    return os.environ["BENCH_RECEIVER"]


def concurrency() -> int:
    """Deliveries at once in one worker process, for systems that configure it in code."""
    return int(os.environ["BENCH_CONCURRENCY"])


def run(submit: Callable[[Any], None], prepare: Callable[[list[Task]], Any] = lambda tasks: tasks) -> None:
    """Submits the plan given as JSON in the first argument, and prints the report as JSON.

    Args:
        submit: submits all tasks; only this is timed.
        prepare: makes the argument of `submit` from the tasks; not timed.
    """
    plan = Plan(**json.loads(sys.argv[1]))
    tasks = plan.tasks(time.time())
    prepared = prepare(tasks)
    began, start = time.time(), time.perf_counter()
    submit(prepared)
    seconds = time.perf_counter() - start
    dues = [due for due, _ in tasks]
    print(json.dumps(asdict(Submitted(seconds, began, min(dues), max(dues)))))
