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

from qtask import stats
from qtask.config import Config, load
from qtask.delivery.http_request import prepare
from qtask.delivery.kinds import Claim, deliverer
from qtask.delivery.loop import Loop
from qtask.errors import DeliveryFailed
from qtask.outcome import Answer, Failure, Outcome, encode_outcome
from qtask.store import keys
from qtask.store.job import due_of
from qtask.task import Task


def deliver(task: dict[str, Any]) -> dict[str, Any]:
    """Delivers a task now, inside the RQ job that it is.

    Args:
        task: the dict.

    Returns the outcome as a dict, which RQ keeps as the job's result. Raises `DeliveryFailed`, so that RQ
    counts the job as failed; the outcome stands in the job and in the statistics either way.
    """
    job = get_current_job()
    if job is None:
        raise DeliveryFailed("deliver() runs inside an RQ worker; to deliver later, send the dict to QTask")
    redis: Redis = job.connection
    config = load()
    attempt = int(redis.hincrby(keys.job(job.id), "attempt", 1))
    checked = msgspec.convert(task, Task)
    due = due_of(checked, job.id, redis.hget(keys.job(job.id), "due"))
    claim = Claim(job.id, attempt, checked, due)
    outcome = _deliver(claim, config, redis)
    redis.hset(keys.job(job.id), "outcomes", encode_outcome(outcome))
    stats.record(redis, claim.task.kind, claim.id, outcome, config)
    if outcome.status == "failed":
        raise DeliveryFailed(f"{outcome.error}: {outcome.message}")
    return dict(msgspec.to_builtins(outcome))


def _deliver(claim: Claim, config: Config, redis: Redis) -> Outcome:
    seconds, microseconds = redis.time()
    started, began = seconds + microseconds / 1e6, monotonic()
    try:
        answer, failure = _attempt(claim, config), None
    except Failure as caught:
        answer, failure = caught.answer, caught
    duration = monotonic() - began
    return Outcome(
        status="failed" if failure else "delivered",
        started=started,
        ended=started + duration,
        lateness=max(0.0, started - claim.due) if claim.due else 0.0,
        duration=duration,
        attempt=claim.attempt,
        code=answer.code,
        answer=answer.text,
        error=failure.kind if failure else "",
        message=failure.message if failure else "",
    )


def _attempt(claim: Claim, config: Config) -> Answer:
    if claim.task.kind == "http":
        from qtask.delivery import http_requests

        return http_requests.deliver(prepare(claim.task, claim.id, claim.attempt, claim.due))
    loop = Loop()
    deliver_one = deliverer(claim.task.kind, loop, config)
    results: list[Answer | Failure] = []
    deliver_one.start(claim, results.append)
    while not results:
        loop.run_once()
    deliver_one.close()
    loop.close()
    result = results[0]
    if isinstance(result, Failure):
        raise result
    return result
