"""Accepting: a batch of checked tasks into Redis, in one atomic round trip."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from qtask.ids import NODE_LIMIT, IdSource
from qtask.store import keys
from qtask.store.scripts import Value, script
from qtask.task import Checked

RQ_TIMEOUT_MARGIN_SECONDS = 10  # a stock worker kills a job at its timeout; ours ends the delivery first


@dataclass(frozen=True, slots=True)
class Submission:
    """One task on its way into Redis.

    Attributes:
        id: its id.
        checked: the task.
        entry: id of its entry in the inbox, which is acknowledged in the same step; empty for other ways in.
        reply_key: key that the answer to this entry is pushed to, in the same step; empty for none.
    """

    id: str
    checked: Checked
    entry: str = ""
    reply_key: bytes = b""


def submit(redis: Redis, queue: str, submissions: Sequence[Submission]) -> list[float | None]:
    """Accepts a batch (at most about 1,000) in one round trip.

    Returns the due instant of each in Unix seconds, or None where another gateway had taken the inbox entry.
    """
    return _dues(script("submit").run(redis, _KEYS, _arguments(queue, submissions)))


async def submit_async(redis: AsyncRedis, queue: str, submissions: Sequence[Submission]) -> list[float | None]:
    """As `submit`, for redis.asyncio."""
    return _dues(await script("submit").run_async(redis, _KEYS, _arguments(queue, submissions)))


def id_source(redis: Redis) -> IdSource:
    """A source of ids for this process, with a node number of its own."""
    with redis.pipeline() as pipeline:
        return IdSource(int(_take_number(pipeline).execute()[-1]))


async def id_source_async(redis: AsyncRedis) -> IdSource:
    """As `id_source`, for redis.asyncio."""
    async with redis.pipeline() as pipeline:
        return IdSource(int((await _take_number(pipeline).execute())[-1]))


def _take_number(pipeline: Any) -> Any:
    # Counted from a random number on: a Redis that lost its data does not give the numbers of processes that run on.
    pipeline.set(keys.NODES, secrets.randbelow(NODE_LIMIT), nx=True)
    return pipeline.incr(keys.NODES)


_KEYS = [keys.SCHEDULE, keys.INBOX]


def _arguments(queue: str, submissions: Sequence[Submission]) -> list[Value]:
    arguments: list[Value] = [keys.JOB_PREFIX, queue, keys.WAKE, keys.INBOX_GROUP, keys.REPLY_SECONDS]
    for submission in submissions:
        checked = submission.checked
        timeout = checked.task.settings.timeout
        arguments += (
            submission.id,
            checked.body,
            "in" if checked.instant is None else "at",
            repr(checked.delay if checked.instant is None else checked.instant),
            "" if timeout is UNSET else math.ceil(timeout) + RQ_TIMEOUT_MARGIN_SECONDS,
            submission.entry.encode() + b" " + submission.reply_key if submission.reply_key else submission.entry,
        )
    return arguments


def _dues(reply: list[Any]) -> list[float | None]:
    return [float(due) if due else None for due in reply]
