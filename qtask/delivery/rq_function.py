"""The function that a stock `rq worker -S rq.serializers.JSONSerializer` calls for each task.

QTask's own worker never comes here. One task at a time, HTTP through requests; the other kinds run the same code
as in QTask's worker, on a loop that lives as long as the delivery.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

import msgspec
from redis import Redis
from rq import get_current_job
from rq.job import Job

from qtask import stats
from qtask.config import Config, load
from qtask.delivery.http_request import prepare
from qtask.delivery.kinds import Claim, deliverer
from qtask.delivery.loop import Loop
from qtask.errors import DeliveryFailed, Refused
from qtask.outcome import Answer, Failure, Outcome, encode_outcome
from qtask.store import keys
from qtask.store.job import due_of, read_data

_TRIM_BATCH = 1_000


def deliver(task: dict[str, Any]) -> dict[str, Any]:
    """Delivers a task now, inside the RQ job that it is.

    Args:
        task: the dict; it is read from the job again, in the one way in which every worker reads it.

    Returns the outcome as a dict, which RQ keeps as the job's result. Raises `DeliveryFailed`, so that RQ
    counts the job as failed; the outcome stands in the job and in the statistics either way.
    """
    job = get_current_job()
    if job is None:
        raise DeliveryFailed("deliver() runs inside an RQ worker; to deliver later, send the dict to QTask")
    redis: Redis = job.connection
    config = load()
    _set_keeping(job, redis, config)
    attempt = int(redis.hincrby(keys.job(job.id), "attempt", 1))
    kind, due, result = stats.UNKNOWN, 0.0, Answer()
    failure: Failure | None = None
    seconds, microseconds = redis.time()
    started, began = seconds + microseconds / 1e6, monotonic()
    try:
        checked = read_data(job.data)
        kind, due = checked.kind, due_of(checked, job.id, redis.hget(keys.job(job.id), "due"))
        result = _attempt(Claim(job.id, attempt, checked, due), config)
    except Refused as refused:  # what another program put into the queue; QTask's own ways in refuse it earlier
        failure = Failure("refused", refused.message)
    except Failure as caught:
        failure = caught
        result = caught.answer
    duration = monotonic() - began
    outcome = Outcome(
        status="failed" if failure else "delivered",
        started=started,
        ended=started + duration,
        lateness=max(0.0, started - due) if due else 0.0,
        duration=duration,
        attempt=attempt,
        code=result.code,
        answer=result.text,
        error=failure.kind if failure else "",
        message=failure.message if failure else "",
    )
    redis.hset(keys.job(job.id), "outcomes", encode_outcome(outcome))
    stats.record(redis, kind, job.id, outcome, config)
    if failure:
        raise DeliveryFailed(f"{failure.kind}: {failure.message}")
    return dict(msgspec.to_builtins(outcome))


def _attempt(claim: Claim, config: Config) -> Answer:
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
    result = results[0]
    if isinstance(result, Failure):
        raise result
    return result


def _set_keeping(job: Job, redis: Redis, config: Config) -> None:
    """Has RQ keep the task as QTask's own worker would: the dead for good, the history bounded in number and age."""
    job.result_ttl = config.history_seconds
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
