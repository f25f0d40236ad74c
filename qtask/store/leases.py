"""What a worker asks of Redis: tasks under a lease, putting them back, and settling how their deliveries ended.

Each is a call, to be run over whatever connection the caller has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from qtask.config import Config
from qtask.model.outcome import OUTCOMES_KEEP
from qtask.model.task import DEFAULT_TIMEOUT_SECONDS
from qtask.store import keys
from qtask.store.scripts import Call, Value, script

CLAIM_BYTES = 4_194_304  # of dicts; a claim that has so many takes no more
LEASE_MARGIN_SECONDS = 15.0  # a lease outlives the task's timeout by this

# Plain tuples both, of which there is one a task on the hottest path: a named one costs a quarter of a microsecond.
Claimed = tuple[bytes, int, bytes, bytes]
"""Id; attempt, from 1, and negative where the task was dead before and is tried again; due in Unix seconds, or empty
where a stock rqscheduler did not write it; the job's data."""

Fate = Literal["finished", "failed", "retry"]
Settlement = tuple[str, Fate, bytes, str, str, str, str, bytes]
"""How a claim ends: id, fate, outcome, error, counter, end, member of the statistics, what is rare; see settle.lua."""


def claim(
    queue: str, token: str, most: int, most_bytes: int = CLAIM_BYTES, margin: float = LEASE_MARGIN_SECONDS
) -> Call:
    """Claims up to `most` tasks of a queue; `read_claimed` reads the reply.

    Args:
        queue: its name.
        token: of the worker.
        most: tasks.
        most_bytes: of dicts, with which no more are claimed.
        margin: seconds by which a lease outlives the task's timeout.
    """
    arguments: list[Value] = [
        *(most, keys.JOB_PREFIX, token, margin, DEFAULT_TIMEOUT_SECONDS),
        *(keys.FOREVER_SECONDS, OUTCOMES_KEEP, most_bytes, queue),
    ]
    registries = [keys.started(queue), keys.failed(queue)]
    others = [keys.STOCK_RETRIES, keys.LEDGER, keys.SCHEDULE]
    return Call(script("claim"), [keys.queue(queue), *registries, *others], arguments)


def read_claimed(reply: list[Any]) -> tuple[float, Iterable[Claimed]]:
    """Redis's time in Unix seconds, and what was claimed."""
    fields = iter(reply)
    return float(next(fields)), zip(fields, fields, fields, fields, strict=True)


def put_back(queue: str, token: str, kept: Iterable[Value]) -> Call:
    """Puts back into its queue what a worker has claimed, but for the ids in `kept`; replies how many went back."""
    arguments: list[Value] = [keys.JOB_PREFIX, token, queue, *kept]
    return Call(script("put_back"), [keys.started(queue), keys.queue(queue), keys.LEDGER], arguments)


def settle(config: Config, token: str, settlements: Iterable[Settlement]) -> Call:
    """Ends claims of a worker of `config.queue`.

    Replies how many there were, and the ids of dead tasks that were dropped for want of room.
    """
    arguments: list[Value] = [
        *(keys.JOB_PREFIX, token, keys.STATS_PREFIX),
        *(
            config.retention_count,
            config.retention_seconds,
            config.stats_retention_count,
            config.stats_retention_seconds,
        ),
        *(
            keys.FOREVER_SECONDS,
            config.dead_retention_count,
            keys.WAKE,
            keys.ID_PREFIX,
            OUTCOMES_KEEP,
            keys.RESULTS_PREFIX,
        ),
        config.queue,
    ]
    for settlement in settlements:
        arguments += settlement
    queue = config.queue
    registries = [keys.started(queue), keys.finished(queue), keys.failed(queue)]
    others = [keys.COUNTERS, keys.SCHEDULE, keys.LEDGER, keys.STOCK_RETRIES]
    return Call(script("settle"), [*registries, *others], arguments)


def begin(task_id: str, queue: str) -> Call:
    """Counts a delivery that a stock worker begins; `read_begun` reads the reply.

    Args:
        task_id: its id, as it is stored.
        queue: name of its queue.
    """
    known = [keys.job(task_id), keys.failed(queue), keys.STOCK_RETRIES, keys.SCHEDULE]
    return Call(script("begin"), known, [task_id, OUTCOMES_KEEP])


def read_begun(reply: list[Any]) -> tuple[float, int, bytes]:
    """Redis's time in Unix seconds, the attempt and the due instant, as in `Claimed`."""
    now, attempt, due = reply
    return float(now), attempt, due
