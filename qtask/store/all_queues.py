"""Lists, counts and dead letters of one queue or, without a name, of all queues."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import chain, islice

from redis import Redis

from qtask.model.mask import Mask
from qtask.model.record import STATES, State, TaskRecord
from qtask.store import keys, tasks
from qtask.store.ledger import read_figures
from qtask.store.queries import Steps, commands, query
from qtask.store.queues import queue_names

_MASK = Mask()
_SHARED: tuple[State, ...] = ("scheduled", "waiting")  # their tasks of all queues are in the same sorted sets


@query
def list_tasks(queue: str | None, state: State, limit: int = 50, mask: Mask = _MASK) -> Steps[list[TaskRecord]]:
    """Up to `limit` tasks in one state: those due next come first; of those that have ended, the newest."""
    if queue is not None or state in _SHARED:
        return (yield from tasks.list_tasks.steps(queue or "", state, limit, mask))
    found: list[TaskRecord] = []
    for name in (yield from queue_names.steps()):
        found += yield from tasks.list_tasks.steps(name, state, limit, mask)
    return sorted(found, key=_order)[:limit]


def each_task(
    redis: Redis, queue: str | None, state: State, limit: int = 50, mask: Mask = _MASK
) -> Iterator[TaskRecord]:
    """The tasks of `list_tasks` one by one, so that not all of them are in memory at once."""
    names = [queue or ""] if queue is not None or state in _SHARED else queue_names(redis)
    each = [chain.from_iterable(tasks.list_pages(redis, name, state, limit, mask)) for name in names]
    return islice(merge(*each, key=_order) if len(each) > 1 else chain(*each), limit)


def _order(record: TaskRecord) -> float:
    if record.state in ("delivered", "dead") and record.outcomes:
        return -record.outcomes[-1].ended
    return record.due


@query
def count_tasks(queue: str | None) -> Steps[dict[State, int]]:
    """How many tasks are in each state."""
    if queue is not None:
        return (yield from tasks.count_tasks.steps(queue))
    names = yield from queue_names.steps()
    asked = [
        command
        for name in names
        for command in (
            ("LLEN", keys.queue(name)),
            ("ZCARD", keys.started(name)),
            ("ZCARD", keys.finished(name)),
            ("ZCARD", keys.failed(name)),
        )
    ]
    scheduled, *rest = yield commands(("ZCARD", keys.SCHEDULE), *asked)
    waiting = max(0, (yield from read_figures.steps()).total("held"))
    return dict(zip(STATES, (scheduled, waiting, *(sum(rest[start::4]) for start in range(4))), strict=True))


@query
def find_dead(queue: str | None, wanted: tasks.Filter) -> Steps[list[str]]:
    """The ids of matching dead letters, the oldest of a queue first."""
    names = [queue] if queue is not None else (yield from queue_names.steps())
    found: list[str] = []
    for name in names:
        found += yield from tasks.find_dead.steps(name, wanted)
    return found


def dead_pages(redis: Redis, queue: str | None, wanted: tasks.Filter) -> Iterator[list[str]]:
    """The ids of `find_dead` in pages."""
    names = [queue] if queue is not None else queue_names(redis)
    return chain.from_iterable(tasks.dead_pages(redis, name, wanted) for name in names)
