"""The script with which a delivery by a stock RQ worker begins; QTask's own workers count theirs when they claim."""

from __future__ import annotations

from typing import Any, NamedTuple

from qtask.model.outcome import OUTCOMES_KEEP
from qtask.store import keys
from qtask.store.flows import Extra
from qtask.store.scripts import Call, Script


class BeginKeys(NamedTuple):
    """See begin.lua."""

    job: str
    failed: str
    stock_retries: str
    schedule: str
    flows: str
    ledger: str
    queues: str


class BeginArguments(NamedTuple):
    """See begin.lua."""

    id: str
    queue_name: str
    outcomes_keep: int
    destination: str
    extra: bytes


class Begun(NamedTuple):
    """The reply of begin.lua.

    Attributes:
        now: Redis's time in Unix seconds.
        attempt, due: as in `Claimed`.
        flow_name: of the task's flow, empty for none.
        timed: None unless its timeout adapts; then the seconds, or an empty text where they are not known.
        may_begin: whether its flow and its queue let the delivery begin now.
        paused: whether its queue is paused.
    """

    now: float
    attempt: int
    due: bytes
    flow_name: str
    timed: bytes | None
    may_begin: bool
    paused: bool


BEGIN = Script("begin", BeginKeys, BeginArguments, replies=(Begun,))


def begin(task_id: str, queue: str, destination: str = "") -> Call:
    """Counts a delivery that a stock worker begins; `read_begun` reads the reply.

    Args:
        task_id: its id, as it is stored.
        queue: name of its queue.
        destination: name of its flow, if it names none; empty for a job that is no task.
    """
    return BEGIN.call(
        BeginKeys(
            job=keys.job(task_id),
            failed=keys.failed(queue),
            stock_retries=keys.STOCK_RETRIES,
            schedule=keys.SCHEDULE,
            flows=keys.FLOWS,
            ledger=keys.LEDGER,
            queues=keys.QUEUES,
        ),
        BeginArguments(
            id=task_id,
            queue_name=queue,
            outcomes_keep=OUTCOMES_KEEP,
            destination=destination,
            extra=Extra(destination).encode(),
        ),
    )


def read_begun(reply: list[Any]) -> Begun:
    """Parses the reply of `begin`."""
    begun = Begun._make(reply)
    name: Any = begun.flow_name
    return begun._replace(
        now=float(begun.now), flow_name=name.decode(), may_begin=bool(begun.may_begin), paused=bool(begun.paused)
    )
