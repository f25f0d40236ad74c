"""Queries of `qtask doctor`: which processes are alive, what waits for too long, what has failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from redis import Redis

from qtask.model.ids import client_id, stored_id
from qtask.store import keys
from qtask.store.schedule import LOCK_HOLDER

REFUSED = keys.REFUSED  # the key, for the advice to the user
_SCANS = 200  # pages of keys that are searched for a stock rqscheduler
_SCAN_PAGE = 1_000


class RegisteredWorker(NamedTuple):
    """A worker that is registered with RQ; fields that it does not have are empty."""

    token: str
    last_heartbeat: str
    hostname: str
    pid: str


class Waiting(NamedTuple):
    """A queue with tasks.

    Attributes:
        name: of the queue.
        length: tasks.
        has_worker: whether a worker takes tasks from it.
        oldest_due: the due instant of its first task in Unix seconds; None if it is not known.
    """

    name: str
    length: int
    has_worker: bool
    oldest_due: float | None


def now(redis: Redis) -> float:
    """Redis's time in Unix seconds."""
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def count_workers(redis: Redis, since: float) -> int:
    """How many workers of QTask sent a heartbeat at or after an instant, in Unix seconds."""
    return int(redis.zcount(keys.WORKERS, since, "+inf"))


def count_registered_workers(redis: Redis) -> int:
    """How many workers of any kind are registered with RQ."""
    return int(redis.scard(keys.RQ_WORKERS))


def registered_workers(redis: Redis) -> list[RegisteredWorker]:
    """The workers of any kind that are registered with RQ; the token is empty for a stock worker."""
    found = []
    for key in redis.smembers(keys.RQ_WORKERS):
        row: Any = redis.hmget(key, "qtask", "last_heartbeat", "hostname", "pid")
        found.append(RegisteredWorker(*(value.decode() if value else "" for value in row)))
    return found


def has_scheduler(redis: Redis) -> bool:
    """Whether a scheduler, QTask's or a stock one, holds rq-scheduler's lock."""
    return redis.get(keys.SCHEDULER_LOCK) is not None


def is_stock_scheduler(redis: Redis) -> bool:
    """Whether a stock rqscheduler holds the lock."""
    return redis.get(keys.SCHEDULER_LOCK) not in (None, LOCK_HOLDER)


def has_stock_scheduler(redis: Redis) -> bool:
    """Whether a stock rqscheduler is registered; it holds the lock only while it looks for due tasks."""
    cursor = 0
    for _ in range(_SCANS):
        found: Any = redis.scan(cursor, match=keys.STOCK_SCHEDULERS, count=_SCAN_PAGE)
        cursor, names = found
        if names:
            return True
        if not cursor:
            break
    return False


def count_scheduled(redis: Redis) -> int:
    """How many tasks are in the schedule, of all queues."""
    return int(redis.zcard(keys.SCHEDULE))


def count_due_before(redis: Redis, instant: float) -> int:
    """How many tasks in the schedule were due at or before an instant, in Unix seconds."""
    return int(redis.zcount(keys.SCHEDULE, "-inf", instant))


def any_task(redis: Redis, queues: Iterable[str]) -> str | None:
    """The id, as clients know it, of a task in the schedule, or of a dead or delivered one in these queues, or None."""
    for key in (keys.SCHEDULE, *(place(queue) for queue in queues for place in (keys.failed, keys.finished))):
        found: Any = redis.zrange(key, -1, -1)
        if found:
            return client_id(found[0].decode())
    return None


def exists(redis: Redis, task_id: str) -> bool:
    """Whether there is a task with this id, as clients know it."""
    return bool(redis.exists(keys.job(stored_id(task_id))))


def waiting(redis: Redis, name: str) -> Waiting | None:
    """The state of a queue; None if it is empty."""
    length = int(redis.llen(keys.queue(name)))
    if not length:
        return None
    head: Any = redis.lrange(keys.queue(name), 0, 0)
    due: Any = redis.hmget(keys.job(head[0].decode()), "due")[0] if head else None
    return Waiting(name, length, bool(redis.scard(keys.rq_workers(name))), float(due) if due else None)


def count_refused(redis: Redis) -> int:
    """How many refused entries of the inbox are kept."""
    return int(redis.xlen(keys.REFUSED))


def newest_refusal(redis: Redis) -> bytes | None:
    """Why the newest entry was refused (JSON); None if there is none."""
    found: Any = redis.xrevrange(keys.REFUSED, count=1)
    return found[0][1].get(b"error") if found else None
