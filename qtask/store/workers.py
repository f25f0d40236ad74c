"""The heartbeat of a worker, and how it waits for its queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from redis import Redis

from qtask.store import keys
from qtask.store.leases import CLAIM, SETTLE
from qtask.store.scripts import Call, Script, Value


class HeartbeatKeys(NamedTuple):
    """See heartbeat.lua."""

    workers: str
    rq_worker: str


class HeartbeatArguments(NamedTuple):
    """See heartbeat.lua."""

    token: str
    ttl_seconds: int


HEARTBEAT = Script("heartbeat", HeartbeatKeys, HeartbeatArguments)


def heartbeat(token: str, rq_key: str, ttl_seconds: int, fields: Mapping[str, Value]) -> Call:
    """Records that a worker is alive; the reply is Redis's time in Unix seconds.

    Args:
        token: token of the worker.
        rq_key: key of its hash, which RQ's tools read.
        ttl_seconds: seconds after which that hash expires without another heartbeat.
        fields: fields of that hash.
    """
    pairs = [value for pair in fields.items() for value in pair]
    script_keys = HeartbeatKeys(workers=keys.WORKERS, rq_worker=rq_key)
    return HEARTBEAT.call(script_keys, HeartbeatArguments(token=token, ttl_seconds=ttl_seconds), rest=pairs)


def leave(redis: Redis, token: str) -> None:
    """Marks a worker as dead, so that a scheduler reclaims the tasks that it still holds."""
    redis.zadd(keys.WORKERS, {token: 0})


def is_suspended() -> tuple[Value, ...]:
    """The command whose reply is 1 while `rq suspend` holds the workers."""
    return ("EXISTS", keys.SUSPENDED)


def wait_for_tasks(queue: str, seconds: float) -> tuple[Value, ...]:
    """The command that Redis answers when a queue is not empty, or after some seconds.

    It moves the head of the queue onto itself, which changes nothing: no task can be lost with the reply.
    """
    return ("BLMOVE", keys.queue(queue), keys.queue(queue), "LEFT", "LEFT", seconds)


def load_scripts(redis: Redis) -> None:
    """Loads a worker's scripts into Redis. A text sent later would have to wait behind `wait_for_tasks`."""
    for script in (CLAIM, SETTLE, HEARTBEAT):
        redis.script_load(script.text)
