"""The function that a stock `rq worker -S rq.serializers.JSONSerializer` calls for each task.

QTask's own worker does not use it. It delivers one task at a time, HTTP with requests. Other destinations run the same
code as in QTask's worker, on a loop that exists for the one delivery. It settles with the same script.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pkgutil import resolve_name
from time import monotonic
from typing import Any

import msgspec
from redis import Redis
from rq import get_current_job

from qtask.config import Config, load
from qtask.delivery.claim import Claim
from qtask.delivery.deliverer import deliverer
from qtask.delivery.ending import (
    by_stock_worker,
    held_back,
    log_failure,
    log_unread,
    outcome_of,
    reason_not_to_deliver,
    retry_in,
    settlement,
    undelivered,
    unread,
)
from qtask.delivery.exchange import broken
from qtask.delivery.flow_signs import Suspects
from qtask.delivery.loop import Loop
from qtask.destinations.registry import REGISTRY, flow_name_of
from qtask.model.errors import DeliveryFailed, Refused
from qtask.model.outcome import Answer, Failure
from qtask.model.task import with_timeout
from qtask.observe import log
from qtask.observe.failure_log import FailureLog
from qtask.store import leases, stock_delivery
from qtask.store.job import due_of, is_foreign, read_data
from qtask.store.leases import Settlement
from qtask.store.rq_job import set_retention

# RQ runs each job in a new process, where this has no effect; a worker that does not fork uses it for all its jobs.
_failures = FailureLog(logging.getLogger("qtask.worker"))


def do(task: dict[str, Any]) -> dict[str, Any]:
    """Delivers a task now, inside its RQ job.

    Args:
        task: not used: the task is read from the job, as every worker reads it.

    Returns the outcome as a dict, which RQ keeps as the result of the job. Raises `DeliveryFailed`, so that RQ counts
    the job as failed; the outcome is in the job and in the statistics in both cases. A task that is tried again is in
    the schedule then, and leaves the failed registry of RQ when it is due.

    RQ moves the job to its finished or failed registry after this has returned. The settlement has done that already,
    so nothing is lost or counted twice if the worker dies in between.
    """
    job = get_current_job()
    if job is None:
        raise DeliveryFailed("do() runs inside an RQ worker; to deliver later, send the dict to QTask")
    redis: Redis = job.connection
    config = replace(load(), queue=job.origin)
    set_retention(job, config)
    executions = job.execution_registry.get_execution_ids()
    token = executions[-1] if executions else ""
    begun = stock_delivery.read_begun(stock_delivery.begin(job.id, job.origin, _flow_of(job.data)).run(redis))
    now, attempt = begun.now, begun.attempt
    result: Answer | Failure
    try:
        read, accepted = read_data(job.data)
        timed = begun.timed is not None
        if timed:
            read = with_timeout(read, float(begun.timed) if begun.timed else None, abs(attempt))
        due = due_of(read, job.id, begun.due)
        claim = Claim(job.id, abs(attempt), read, due, attempt < 0, not accepted, timed=timed)
    except Refused as refused:  # another program put it into the queue; QTask does not accept such jobs
        failure = Failure("refused", refused.message)
        _settle(redis, config, token, unread(job.id, abs(attempt), failure, now, is_foreign(job.data)))
        log.setup_beside(config, "rq-worker")
        log_unread(_failures, job.id, abs(attempt), failure)
        raise DeliveryFailed(f"{failure.error}: {failure.message}") from None
    if not begun.may_begin:
        reason = f"its flow {begun.flow_name!r} has reached its limits; it waits"
        if begun.paused:
            reason = f"its queue {job.origin!r} is paused; it waits"
        _settle(redis, config, token, held_back(claim, reason))
        raise DeliveryFailed(reason)
    failed = reason_not_to_deliver(claim, now)
    if failed is not None:
        _settle(redis, config, token, undelivered(claim, failed, now, begun.flow_name))
        _log(config, claim, failed, None)
        raise DeliveryFailed(f"{failed.error}: {failed.message}")
    began = monotonic()
    result = _attempt(claim, config)
    duration = monotonic() - began
    signs = Suspects().signs_of(claim, result, begun.flow_name, now, config)
    settled = _settle(redis, config, token, settlement(claim, result, now, duration, config.idempotency_seconds, signs))
    if isinstance(result, Failure):
        _log(config, claim, result, retry_in(settled))
        raise DeliveryFailed(f"{result.error}: {result.message}")
    return dict(msgspec.to_builtins(outcome_of(claim, result, now, duration)))


def _flow_of(data: bytes) -> str:
    """The name of the flow of a task that names none; empty for a job that is no task."""
    try:
        return flow_name_of(read_data(data)[0])
    except Refused:
        return ""


def _settle(redis: Redis, config: Config, token: str, one: Settlement) -> Settlement:
    """Settles under the lease of this execution; if the task was reclaimed meanwhile, nothing is settled.

    Returns the settlement as it was sent.
    """
    settled = by_stock_worker(one)
    leases.settle(config, token, [settled]).run(redis)
    return settled


def _log(config: Config, claim: Claim, failure: Failure, delay: float | None) -> None:
    """Logs a failed delivery as QTask's own worker does; an `rq worker` logs only the events of RQ."""
    log.setup_beside(config, "rq-worker")
    log_failure(_failures, claim, failure, delay)


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
    destination = REGISTRY.find(claim.task.type)
    if destination is not None and destination.blocking:
        answer: Answer = resolve_name(destination.blocking)(claim, config)
        return answer
    loop = Loop()
    deliver_one = deliverer(claim.task.type, loop, config)
    results: list[Answer | Failure] = []
    try:
        deliver_one.start(claim, results.append)
        while not results:
            loop.run_once()
    finally:
        deliver_one.close()
        loop.close()
    return results[0]
