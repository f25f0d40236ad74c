"""The function that a stock `rq worker -S rq.serializers.JSONSerializer` calls for each task.

QTask's own worker never comes here. One task at a time, HTTP through requests; the other kinds run the same code
as in QTask's worker, on a loop that lives as long as the delivery.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import msgspec
from msgspec import UNSET
from redis import Redis
from redis.client import Pipeline
from rq import get_current_job
from rq.job import Job

from qtask import log, stats
from qtask.config import Config, load
from qtask.delivery.claim import Claim
from qtask.delivery.ending import hindrance, log_failure, log_unread, outcome_of, retry_delay, unread_outcome
from qtask.delivery.exchange import broken
from qtask.delivery.http_request import prepare
from qtask.delivery.kinds import deliverer
from qtask.delivery.loop import Loop
from qtask.errors import DeliveryFailed, Refused
from qtask.failure_log import FailureLog
from qtask.outcome import OUTCOMES_KEEP, Answer, Failure, Outcome, encode_outcome
from qtask.store import keys
from qtask.store.job import due_of, read_data

_TRIM_BATCH = 1_000
# RQ runs each job in a process of its own, where this bounds nothing; a worker without fork has it for all its jobs.
_failures = FailureLog(logging.getLogger("qtask.worker"))

# RQ counts a job as failed after the function has ended, and only then may the scheduler take it for the next attempt.
LEAST_RETRY_SECONDS = 1.0


def do(task: dict[str, Any]) -> dict[str, Any]:
    """Delivers a task now, inside the RQ job that it is.

    Args:
        task: the dict; it is read from the job again, in the one way in which every worker reads it.

    Returns the outcome as a dict, which RQ keeps as the job's result. Raises `DeliveryFailed`, so that RQ
    counts the job as failed; the outcome stands in the job and in the statistics either way. A task that is to be
    tried again is in the schedule then, and leaves RQ's failed registry when it is due.
    """
    job = get_current_job()
    if job is None:
        raise DeliveryFailed("do() runs inside an RQ worker; to deliver later, send the dict to QTask")
    redis: Redis = job.connection
    config = load()
    _set_keeping(job, redis, config)
    key = keys.job(job.id)
    attempt = int(redis.hincrby(key, "attempt", 1))
    started, began = _now(redis), monotonic()
    claim: Claim | None
    result: Answer | Failure
    try:
        checked = read_data(job.data)
        written: Any = redis.hget(key, "due")
        claim = Claim(job.id, attempt, checked, due_of(checked, job.id, written))
    except Refused as refused:  # what another program put into the queue; QTask's own ways in refuse it earlier
        claim = None
        result = unread = Failure("refused", refused.message)
        outcome = unread_outcome(unread, attempt, started)
    else:
        result = hindrance(claim, started) or _attempt(claim, config)
        outcome = outcome_of(claim, result, started, monotonic() - began)
    delay = _record(redis, job.id, claim, result, outcome, config)
    if isinstance(result, Failure):
        _log(config, job.id, attempt, claim, result, delay)
    if outcome.status == "failed":
        raise DeliveryFailed(f"{outcome.error}: {outcome.message}")
    return dict(msgspec.to_builtins(outcome))


def _record(
    redis: Redis, task_id: str, claim: Claim | None, result: Answer | Failure, outcome: Outcome, config: Config
) -> float | None:
    """Records an outcome, and returns the seconds until the next attempt; None when there is none."""
    key = keys.job(task_id)
    former: Any = redis.hget(key, "outcomes") or b""
    lines = [*former.split(b"\n"), encode_outcome(outcome)] if former else [encode_outcome(outcome)]
    with redis.pipeline() as pipeline:
        pipeline.hset(key, "outcomes", b"\n".join(lines[-OUTCOMES_KEEP:]))
        stats.record(pipeline, claim.task.kind if claim else stats.UNKNOWN, task_id, outcome, config)
        delay = _plan(pipeline, claim, result, outcome, config) if claim is not None else None
        pipeline.execute()
    return delay


def _log(config: Config, task_id: str, attempt: int, claim: Claim | None, result: Failure, delay: float | None) -> None:
    """Logs a failed delivery as QTask's own worker does, also in an `rq worker`, which logs nothing but RQ's events."""
    log.setup_beside(config, "rq-worker")
    if claim is None:
        log_unread(_failures, task_id, attempt, result)
    else:
        log_failure(_failures, claim, result, delay)


def _plan(pipeline: Pipeline, claim: Claim, result: Answer | Failure, outcome: Outcome, config: Config) -> float | None:
    """What is to be known or done later: the id that the client chose, the next attempt.

    Returns the seconds until the next attempt; None when there is none.
    """
    if not isinstance(result, Failure):
        if claim.task.settings.id is not UNSET:
            pipeline.set(keys.ID_PREFIX + claim.id, repr(claim.due), ex=config.id_seconds)
    elif (delay := retry_delay(claim, result, outcome.ended)) is not None:
        delay = max(delay, LEAST_RETRY_SECONDS)
        instant = outcome.ended + delay
        pipeline.zadd(keys.SCHEDULE, {claim.id: instant})
        pipeline.publish(keys.WAKE, instant)
        return delay
    return None


def _now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def _attempt(claim: Claim, config: Config) -> Answer | Failure:
    try:
        return _deliver(claim, config)
    except Failure as failure:
        return failure
    except Refused as refused:
        return Failure("refused", refused.message)
    except Exception as error:
        return broken(claim.id, error)


def _deliver(claim: Claim, config: Config) -> Answer | Failure:
    if claim.task.kind == "http":
        from qtask.delivery import http_requests

        return http_requests.deliver(prepare(claim.task, claim.id, claim.attempt, claim.due))
    loop = Loop()
    deliver_one = deliverer(claim.task.kind, loop, config)
    results: list[Answer | Failure] = []
    try:
        deliver_one.start(claim, results.append)
        while not results:
            loop.run_once()
    finally:
        deliver_one.close()
        loop.close()
    return results[0]


def _set_keeping(job: Job, redis: Redis, config: Config) -> None:
    """Has RQ keep the task as QTask's own worker would: the dead for good, the history bounded in number and age."""
    job.result_ttl = config.history_seconds + keys.FOREVER_SECONDS
    job.failure_ttl = keys.FOREVER_SECONDS
    finished = keys.finished(job.origin)
    over = redis.zcard(finished) - config.history_keep
    if over > 0:
        dropped: list[Any] = redis.zrange(finished, 0, min(over, _TRIM_BATCH) - 1)
        ids = [task_id.decode() for task_id in dropped]
        with redis.pipeline() as pipeline:
            pipeline.zrem(finished, *ids)
            pipeline.unlink(*(keys.job(task_id) for task_id in ids), *(keys.results(task_id) for task_id in ids))
            pipeline.execute()
