"""Queues as they are shown, and what people decide about them: pause, resume, purge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qtask.model.queue_record import QueueRecord
from qtask.model.queues import check_name
from qtask.store import keys
from qtask.store.pages import text, texts
from qtask.store.queries import Steps, commands, query
from qtask.store.scripts import Call, Script

PURGE_BATCH = 500  # tasks that one script cancels; Redis answers nobody else in between
_FIELD = "queue"  # in errors


class PurgeKeys(NamedTuple):
    """See purge.lua."""

    queue: str
    failed: str
    schedule: str
    ledger: str
    stock_retries: str
    flows: str


class PurgeArguments(NamedTuple):
    """See purge.lua."""

    queue_name: str
    limit: int


class Purged(NamedTuple):
    """See purge.lua."""

    taken: int
    cancelled: int


PURGE = Script("purge", PurgeKeys, PurgeArguments, replies=(Purged,))


@query
def queue_names() -> Steps[list[str]]:
    """The names of all queues: those that tasks were accepted for or released to, and those that are paused; sorted."""
    members, ledger, paused = yield commands(
        ("SMEMBERS", keys.QUEUES), ("HGETALL", keys.LEDGER), ("SMEMBERS", keys.PAUSED_QUEUES)
    )
    counted = (text(field).partition(":") for field in ledger)
    found = {text(key).removeprefix(keys.QUEUE_PREFIX) for key in members}
    found |= {queue for what, _, queue in counted if what == "accepted"}
    return sorted(found | set(texts(paused)))


@query
def list_queues() -> Steps[list[QueueRecord]]:
    """All queues, by name."""
    return (yield from _read((yield from queue_names.steps())))


@query
def pause_queue(name: str, paused: bool = True) -> Steps[QueueRecord]:
    """Pauses or resumes a queue, and returns it. It need not exist yet. Raises `Refused` for a name that is wrong."""
    check_name(name, _FIELD)
    yield commands(("SADD" if paused else "SREM", keys.PAUSED_QUEUES, name))
    (record,) = yield from _read([name])
    return record


@query
def purge_queue(name: str) -> Steps[int]:
    """Cancels the tasks that are queued, or wait in flows for this queue; returns how many.

    Tasks that are not yet due, wait for a retry or are in flight stay. So do those that are queued while this runs. If
    it is broken off, what it has cancelled so far stays cancelled. Raises `Refused` for a name that is wrong.
    """
    check_name(name, _FIELD)
    cancelled = 0
    (held,) = yield commands(("HGET", keys.LEDGER, f"held:{name}"))
    if int(held or 0) > 0:
        # Before the queue: each slot that is freed there lets a task of its flow into a queue.
        cancelled = yield from _purge_flows(name)
    (left,) = yield commands(("LLEN", keys.queue(name)))
    while left > 0:
        purged = Purged._make((yield _purge(name, limit=min(left, PURGE_BATCH))))
        cancelled += purged.cancelled
        left = left - purged.taken if purged.taken else 0
    return cancelled


def _purge_flows(name: str) -> Steps[int]:
    cancelled = 0
    flows = yield from _members(keys.FLOWS)
    for flow in flows:
        cursor = "0"
        while True:
            (reply,) = yield commands(("ZSCAN", keys.WAITING_PREFIX + flow, cursor, "COUNT", PURGE_BATCH))
            cursor, members = text_of_cursor(reply[0]), texts(member for member, _ in reply[1])
            for start in range(0, len(members), PURGE_BATCH):
                ids = [member.rpartition(":")[2] for member in members[start : start + PURGE_BATCH]]
                origins = yield commands(*(("HGET", keys.job(task_id), "origin") for task_id in ids))
                mine = [task_id for task_id, origin in zip(ids, origins, strict=True) if text(origin) == name]
                if mine:
                    cancelled += Purged._make((yield _purge(name, rest=mine))).cancelled
            if cursor == "0":
                break
    return cancelled


def _members(key: str) -> Steps[list[str]]:
    """All members of a sorted set."""
    found: set[str] = set()
    cursor = "0"
    while True:
        (reply,) = yield commands(("ZSCAN", key, cursor, "COUNT", PURGE_BATCH))
        cursor = text_of_cursor(reply[0])
        found.update(texts(member for member, _ in reply[1]))
        if cursor == "0":
            return sorted(found)


def text_of_cursor(cursor: Any) -> str:
    """The cursor in a reply to ZSCAN, which redis-py returns as a number or as bytes."""
    return str(cursor) if isinstance(cursor, int) else text(cursor)


def _purge(name: str, limit: int = 0, rest: Sequence[str] = ()) -> Call:
    script_keys = PurgeKeys(
        queue=keys.queue(name),
        failed=keys.failed(name),
        schedule=keys.SCHEDULE,
        ledger=keys.LEDGER,
        stock_retries=keys.STOCK_RETRIES,
        flows=keys.FLOWS,
    )
    return PURGE.call(script_keys, PurgeArguments(queue_name=name, limit=limit), rest=rest)


def _read(names: Sequence[str]) -> Steps[list[QueueRecord]]:
    if not names:
        return []
    asked = [
        command
        for name in names
        for command in (
            ("SISMEMBER", keys.PAUSED_QUEUES, name),
            ("LLEN", keys.queue(name)),
            ("ZCARD", keys.started(name)),
            ("HGET", keys.LEDGER, f"held:{name}"),
            ("ZCARD", keys.failed(name)),
            ("SCARD", keys.rq_workers(name)),
        )
    ]
    replies = yield commands(*asked)
    rows = zip(names, *(replies[start::6] for start in range(6)), strict=True)
    return [
        QueueRecord(name, bool(paused), queued, started, int(held or 0), dead, workers)
        for name, paused, queued, started, held, dead, workers in rows
    ]
