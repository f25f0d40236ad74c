"""Accepting: a batch of checked tasks into Redis, in one atomic round trip."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from time import monotonic_ns
from typing import Any

from msgspec import UNSET, Struct
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.sentinel import SentinelConnectionPool

from qtask.check import Checked
from qtask.errors import Unavailable
from qtask.ids import NODE_LIMIT, IdSource, stored_id
from qtask.store import keys
from qtask.store.scripts import Value, script

REPLICA_WAIT_SECONDS = 2.0
NUMBER_WAIT_SECONDS = 0.5  # for a replica to hear of a number; without one it is used all the same
RQ_TIMEOUT_MARGIN_SECONDS = 10  # a stock worker kills a job at its timeout; ours ends the delivery first


class Submission(Struct, frozen=True):
    """One task on its way into Redis.

    Attributes:
        id: its id, as the client knows it.
        checked: the task.
        entry: id of its entry in the inbox, which is acknowledged in the same step; empty for other ways in.
        reply_key: key that the answer to this entry is pushed to, in the same step; empty for none.
    """

    id: str
    checked: Checked
    entry: str = ""
    reply_key: bytes = b""


class Place(Struct, frozen=True):
    """Where a submission stands.

    Attributes:
        due: Unix seconds.
        duplicate: whether its id, which the client chose, belongs to a task that was accepted before.
    """

    due: float
    duplicate: bool


def submit(redis: Redis, queue: str, submissions: Sequence[Submission]) -> list[Place | None]:
    """Accepts a batch (at most about 1,000) in one round trip.

    Returns the place of each, or None where another gateway had taken the inbox entry. A batch whose reply was lost
    may be sent again, with the same ids.
    """
    return _places(script("submit").run(redis, _KEYS, _arguments(queue, submissions)))


async def submit_async(
    redis: AsyncRedis, queue: str, submissions: Sequence[Submission], replicas: int = 0
) -> list[Place | None]:
    """As `submit`, for redis.asyncio.

    Args:
        replicas: how many replicas of Redis must hold the batch, too. Raises `Unavailable` when fewer say so in time.
    """
    arguments = _arguments(queue, submissions)
    if not replicas:
        return _places(await script("submit").run_async(redis, _KEYS, arguments))
    async with redis.pipeline(transaction=False) as pipeline:  # one connection: WAIT speaks of what went over it
        pipeline.eval(script("submit").text, len(_KEYS), *_KEYS, *arguments)  # type: ignore[arg-type]
        pipeline.execute_command("WAIT", replicas, int(REPLICA_WAIT_SECONDS * 1000))
        reply, confirmed = await pipeline.execute()
    if confirmed < replicas:
        raise Unavailable(
            f"{confirmed} replicas of Redis hold the task after {REPLICA_WAIT_SECONDS:g} s, not {replicas}"
        )
    return _places(reply)


def id_source(redis: Redis) -> IdSource:
    """A source of ids for this process, with a node number of its own and by Redis's clock."""
    with redis.pipeline(transaction=False) as pipeline:  # one connection: WAIT speaks of what went over it
        return _id_source(_take_number(pipeline, redis.connection_pool).execute())


async def id_source_async(redis: AsyncRedis) -> IdSource:
    """As `id_source`, for redis.asyncio."""
    async with redis.pipeline(transaction=False) as pipeline:
        return _id_source(await _take_number(pipeline, redis.connection_pool).execute())


def _take_number(pipeline: Any, pool: object) -> Any:
    # Counted from a random number on: a Redis that lost its data does not give the numbers of processes that run on.
    pipeline.set(keys.NODES, secrets.randbelow(NODE_LIMIT), nx=True)
    pipeline.incr(keys.NODES)
    pipeline.time()
    if isinstance(pool, SentinelConnectionPool | AsyncSentinelConnectionPool):
        # A replica that became the master without having heard of this number would give it to somebody else.
        pipeline.execute_command("WAIT", 1, int(NUMBER_WAIT_SECONDS * 1000))
    return pipeline


def _id_source(reply: list[Any]) -> IdSource:
    _, node, (seconds, microseconds), *_ = reply
    offset = (seconds * 1_000_000 + microseconds) * 1_000 - monotonic_ns()
    return IdSource(node, lambda: monotonic_ns() + offset)


_KEYS = [keys.SCHEDULE, keys.INBOX, keys.LEDGER]


def id_of(checked: Checked, ids: IdSource) -> str:
    """The id of a task: the client's, or a new one."""
    chosen = checked.task.settings.id
    return ids.next() if chosen is UNSET else chosen


def _arguments(queue: str, submissions: Sequence[Submission]) -> list[Value]:
    arguments: list[Value] = [
        *(keys.JOB_PREFIX, queue, keys.WAKE, keys.INBOX_GROUP, keys.ID_PREFIX, keys.REPLY_SECONDS)
    ]
    for submission in submissions:
        checked = submission.checked
        timeout = checked.task.settings.timeout
        chosen = checked.task.settings.id is not UNSET
        arguments += (
            stored_id(submission.id) if chosen else submission.id,
            checked.body,
            _MODES[checked.instant is None, not chosen],
            repr(checked.delay if checked.instant is None else checked.instant),
            "" if timeout is UNSET else math.ceil(timeout) + RQ_TIMEOUT_MARGIN_SECONDS,
            submission.entry.encode() + b" " + submission.reply_key if submission.reply_key else submission.entry,
        )
    return arguments


# By whether there is a delay, and whether the id is QTask's; see submit.lua.
_MODES = {(True, True): "in", (True, False): "IN", (False, True): "at", (False, False): "AT"}


def _places(reply: list[Any]) -> list[Place | None]:
    return [_place(due) if due else None for due in reply]


def _place(due: bytes) -> Place:
    return Place(float(due[1:]), True) if due.startswith(b"=") else Place(float(due), False)
