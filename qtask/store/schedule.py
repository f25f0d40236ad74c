"""The scripts of a scheduler: release due tasks, reclaim those whose lease ended, forget those whose retention ended.

Also rq-scheduler's lock, which keeps a stock `rqscheduler` passive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.client import PubSub

from qtask.model.outcome import OUTCOMES_KEEP, Outcome, encode_outcome
from qtask.store import keys
from qtask.store.scripts import NoKeys, Script

FLOW_LOOKS = 200  # flows whose instant has come that one release looks at
LOCK_HOLDER = b"qtask"  # value of the lock while a scheduler of QTask holds it

# --- releasing -----------------------------------------------------------------------------------------------------


class ReleaseKeys(NamedTuple):
    """See release.lua."""

    schedule: str
    queues: str
    stock_retries: str
    ledger: str
    flows: str


class ReleaseArguments(NamedTuple):
    """See release.lua."""

    limit: int
    looks: int


class Released(NamedTuple):
    """The result of `release`.

    Attributes:
        moved: how many jobs were moved.
        wait: seconds until the next is due, or a flow is to be looked at; infinity if none waits.
        foreign: ids of due jobs that rq-scheduler's own API wrote; they stay in the schedule.
        looked: how many flows were looked at.
    """

    moved: int
    wait: float
    foreign: list[str]
    looked: int


RELEASE = Script("release", ReleaseKeys, ReleaseArguments, replies=(Released,))


def release(redis: Redis, limit: int) -> Released:
    """Moves up to `limit` due jobs to their queues, in one round trip."""
    reply = Released._make(RELEASE.call(_RELEASE_KEYS, ReleaseArguments(limit=limit, looks=FLOW_LOOKS)).run(redis))
    return Released(
        moved=reply.moved,
        wait=float(reply.wait) if reply.wait else float("inf"),
        foreign=[_text(job_id) for job_id in reply.foreign],
        looked=reply.looked,
    )


_RELEASE_KEYS = ReleaseKeys(
    schedule=keys.SCHEDULE, queues=keys.QUEUES, stock_retries=keys.STOCK_RETRIES, ledger=keys.LEDGER, flows=keys.FLOWS
)


def put(redis: Redis, job_id: str, instant: float) -> None:
    """Sets the due instant of a job, in Unix seconds, and wakes the schedulers."""
    redis.zadd(keys.SCHEDULE, {job_id: instant})
    redis.publish(keys.WAKE, instant)


def postpone(redis: Redis, job_id: str, seconds: float) -> None:
    """Makes a job due later."""
    redis.zincrby(keys.SCHEDULE, seconds, job_id)


def subscribe(wake: PubSub) -> None:
    """Subscribes to the channel that announces tasks which are due before all others; waits until it is subscribed."""
    wake.subscribe(keys.WAKE)
    wake.get_message(timeout=1.0)


# --- reclaiming ----------------------------------------------------------------------------------------------------


class ReclaimKeys(NamedTuple):
    """See reclaim.lua."""

    workers: str
    ledger: str


class ReclaimedQueue(NamedTuple):
    """See reclaim.lua."""

    started: str
    queue: str


class ReclaimArguments(NamedTuple):
    """See reclaim.lua."""

    silent_since: float
    limit: int
    lost_outcome: bytes
    outcomes_keep: int


RECLAIM = Script("reclaim", ReclaimKeys, ReclaimArguments, each_key=ReclaimedQueue)

# The outcome of a delivery whose worker is gone; reclaim.lua fills in the attempt and the instant.
_LOST = (
    encode_outcome(
        Outcome(
            status="failed",
            started=-1.0,
            ended=-1.0,
            lateness=None,
            duration=0.0,
            attempt=-1,
            error="lost",
            message="the worker died or hung; the receiver may have got the task or not",
        )
    )
    .replace(b'"attempt":-1', b'"attempt":%ATTEMPT%')
    .replace(b"-1.0", b"%NOW%")
)


def reclaim(redis: Redis, queues: Sequence[str], silent_since: float, limit: int) -> list[str]:
    """Puts tasks whose lease ended, or whose worker died, back into their queues; returns their stored ids.

    Args:
        redis: a client.
        queues: all queues. A dead worker is forgotten, so its tasks in a queue that is not given would wait for the end
            of their leases.
        silent_since: a worker whose last heartbeat is not later counts as dead, in Unix seconds by Redis's clock.
        limit: tasks to reclaim from one queue at most.
    """
    pairs = [ReclaimedQueue(started=keys.started(queue), queue=keys.queue(queue)) for queue in queues]
    arguments = ReclaimArguments(
        silent_since=silent_since, limit=limit, lost_outcome=_LOST, outcomes_keep=OUTCOMES_KEEP
    )
    script_keys = ReclaimKeys(workers=keys.WORKERS, ledger=keys.LEDGER)
    call = RECLAIM.call(script_keys, arguments, key_records=pairs)
    return [_text(task_id) for task_id in call.run(redis)]


class Reclaimed(NamedTuple):
    """A task that was reclaimed: the data of its job (None when it has been removed since), and its attempt."""

    id: str
    data: bytes | None
    attempt: int


def read_reclaimed(redis: Redis, ids: Sequence[str]) -> list[Reclaimed]:
    """The data and the attempts of reclaimed tasks, for the log."""
    with redis.pipeline(transaction=False) as pipeline:
        for task_id in ids:
            pipeline.hmget(keys.job(task_id), "data", "attempt")
        rows = pipeline.execute()
    return [Reclaimed(task_id, data, int(attempt or 0)) for task_id, (data, attempt) in zip(ids, rows, strict=True)]


# --- forgetting ----------------------------------------------------------------------------------------------------


class ForgetArguments(NamedTuple):
    """See forget.lua."""

    limit: int


FORGET = Script("forget", NoKeys, ForgetArguments)


def forget(redis: Redis, queues: Sequence[str], limit: int) -> int:
    """Forgets up to `limit` delivered tasks of these queues whose retention has ended; returns how many."""
    registries = [keys.finished(queue) for queue in queues]
    forgotten: int = FORGET.call(NoKeys(), ForgetArguments(limit=limit), rest_of_keys=registries).run(redis)
    return forgotten


# --- queues and the lock -------------------------------------------------------------------------------------------


def queue_names(redis: Redis) -> list[str]:
    """The names of all queues that a task was ever released to."""
    found: Any = redis.smembers(keys.QUEUES)
    return [_text(key).removeprefix(keys.QUEUE_PREFIX) for key in found]


def hold_lock(redis: Redis, seconds: int) -> None:
    """Holds rq-scheduler's lock for some seconds, so that a stock `rqscheduler` stays passive."""
    if redis.get(keys.SCHEDULER_LOCK) == LOCK_HOLDER:
        redis.expire(keys.SCHEDULER_LOCK, seconds)
    else:
        redis.set(keys.SCHEDULER_LOCK, LOCK_HOLDER, nx=True, ex=seconds)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
