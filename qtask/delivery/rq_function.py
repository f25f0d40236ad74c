"""The function that a stock `rq worker -S rq.serializers.JSONSerializer` calls for each task.

QTask's own worker never comes here. One task at a time, HTTP through requests; the other kinds run the same code
as in QTask's worker, on a loop that lives as long as the delivery.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import msgspec
from msgspec import UNSET
from redis import Redis
from rq import get_current_job

from qtask import stats
from qtask.config import Config, load
from qtask.delivery.ending import hindrance, outcome_of, retry_delay
from qtask.delivery.http_request import prepare
from qtask.delivery.kinds import Claim, deliverer
from qtask.delivery.loop import Loop
from qtask.errors import DeliveryFailed
from qtask.outcome import OUTCOMES_KEEP, Answer, Failure, Outcome, encode_outcome
from qtask.store import keys
from qtask.store.job import due_of
from qtask.task import Task

# RQ counts a job as failed after the function has ended, and only then may the scheduler take it for the next attempt.
LEAST_RETRY_SECONDS = 1.0


def deliver(task: dict[str, Any]) -> dict[str, Any]:
    """Delivers a task now, inside the RQ job that it is.

    Args:
        task: the dict.

    Returns the outcome as a dict, which RQ keeps as the job's result. Raises `DeliveryFailed`, so that RQ
    counts the job as failed; the outcome stands in the job and in the statistics either way. A task that is to be
    tried again is in the schedule then, and leaves RQ's failed registry when it is due.
    """
    job = get_current_job()
    if job is None:
        raise DeliveryFailed("deliver() runs inside an RQ worker; to deliver later, send the dict to QTask")
    redis: Redis = job.connection
    config = load()
    key = keys.job(job.id)
    attempt = int(redis.hincrby(key, "attempt", 1))
    checked = msgspec.convert(task, Task)
    written: Any = redis.hget(key, "due")
    claim = Claim(job.id, attempt, checked, due_of(checked, job.id, written))
    started, began = _now(redis), monotonic()
    result = hindrance(claim, started) or _attempt(claim, config)
    outcome = outcome_of(claim, result, started, monotonic() - began)
    _record(redis, claim, result, outcome, config)
    if outcome.status == "failed":
        raise DeliveryFailed(f"{outcome.error}: {outcome.message}")
    return dict(msgspec.to_builtins(outcome))


def _record(redis: Redis, claim: Claim, result: Answer | Failure, outcome: Outcome, config: Config) -> None:
    key = keys.job(claim.id)
    former: Any = redis.hget(key, "outcomes") or b""
    lines = [*former.split(b"\n"), encode_outcome(outcome)] if former else [encode_outcome(outcome)]
    with redis.pipeline() as pipeline:
        pipeline.hset(key, "outcomes", b"\n".join(lines[-OUTCOMES_KEEP:]))
        stats.record(pipeline, claim.task.kind, claim.id, outcome, config)
        if not isinstance(result, Failure):
            if claim.task.settings.id is not UNSET:
                pipeline.set(keys.ID_PREFIX + claim.id, repr(claim.due), ex=config.id_seconds)
        elif (delay := retry_delay(claim, result, outcome.ended)) is not None:
            instant = outcome.ended + max(delay, LEAST_RETRY_SECONDS)
            pipeline.zadd(keys.SCHEDULE, {claim.id: instant})
            pipeline.publish(keys.WAKE, instant)
        pipeline.execute()


def _now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def _attempt(claim: Claim, config: Config) -> Answer | Failure:
    if claim.task.kind == "http":
        from qtask.delivery import http_requests

        try:
            return http_requests.deliver(prepare(claim.task, claim.id, claim.attempt, claim.due))
        except Failure as failure:
            return failure
    loop = Loop()
    deliver_one = deliverer(claim.task.kind, loop, config)
    results: list[Answer | Failure] = []
    deliver_one.start(claim, results.append)
    while not results:
        loop.run_once()
    deliver_one.close()
    loop.close()
    return results[0]
