"""How a delivery ends: its outcome, whether and when it is tried again, and what is settled. No I/O.

The rules are the same for both kinds of worker.
"""

from __future__ import annotations

import logging

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from qtask.delivery.claim import Claim
from qtask.delivery.flow_signs import FlowSigns
from qtask.destinations.registry import destination_of
from qtask.model.ids import client_id
from qtask.model.outcome import Answer, Failure, Outcome, decode_outcomes, encode_outcome
from qtask.model.retry import DEFAULT_RETRY, Retry, next_delay, parse_retry_after
from qtask.model.task import expiry_of
from qtask.observe import stats
from qtask.observe.failure_log import FailureLog, Fields
from qtask.store.leases import Fate, Settlement, SettleOptions

LEAST_STOCK_RETRY_SECONDS = 1.0  # before the next attempt after one by a stock worker
_NO_OPTIONS = SettleOptions()  # of most settlements


def reason_not_to_deliver(claim: Claim, now: float) -> Failure | None:
    """The reason why a claimed task must not be delivered any more, or None if it may be delivered.

    Args:
        claim: the task.
        now: Unix seconds.
    """
    limit = _retry(claim).max_attempts
    if claim.attempt > limit:
        times = "once" if limit == 1 else f"in each of {limit} attempts"
        return Failure("lost", f"its worker died or hung {times}; whether the receiver got it is not known")
    if claim.task.settings.expires is not UNSET and now >= expiry_of(claim.task, claim.due):
        return Failure("expired", "settings.expires had passed before a delivery could begin")
    return None


def outcome_of(claim: Claim, result: Answer | Failure, started: float, duration: float) -> Outcome:
    """The outcome of one delivery.

    Args:
        claim: what was delivered.
        result: how it ended.
        started: Unix seconds.
        duration: seconds.
    """
    answer, failure = (result.answer, result) if isinstance(result, Failure) else (result, None)
    lateness = max(0.0, started - claim.due) if claim.due else 0.0
    return Outcome(
        status="failed" if failure else "delivered",
        started=started,
        ended=started + duration,
        lateness=lateness if claim.attempt == 1 and not claim.retried else None,
        duration=duration,
        attempt=claim.attempt,
        code=answer.code,
        answer=answer.text,
        error=failure.error if failure else "",
        message=failure.message if failure else answer.note,
    )


def unread_outcome(failure: Failure, attempt: int, now: float) -> Outcome:
    """The outcome of a job that cannot be read as a task; `now` in Unix seconds."""
    return Outcome("failed", now, now, None, 0.0, attempt, error=failure.error, message=failure.message)


def retry_delay(claim: Claim, failure: Failure, now: float) -> float | None:
    """Seconds until a failed delivery is tried again; None when the task is dead.

    Args:
        claim: what was delivered.
        failure: how it failed.
        now: Unix seconds.
    """
    retry_after = 0.0 if failure.at_once else None
    if failure.retry_after:
        retry_after = parse_retry_after(failure.retry_after, now)
    delay = next_delay(_retry(claim), claim.attempt, failure.error, failure.answer.code, retry_after)
    if delay is not None and claim.task.settings.expires is not UNSET:
        if now + delay >= expiry_of(claim.task, claim.due):
            return None
    return delay


def settlement(
    claim: Claim,
    result: Answer | Failure,
    started: float,
    duration: float,
    idempotency_seconds: float,
    signs: FlowSigns | None = None,
) -> Settlement:
    """The settlement of a delivery that has ended.

    Args:
        claim, result, started, duration: as for `outcome_of`.
        idempotency_seconds: how long the id of a delivered task is remembered if the client chose it.
        signs: what is settled for its flow.
    """
    outcome = outcome_of(claim, result, started, duration)
    fate: Fate = "finished"
    delay = remember = None
    if isinstance(result, Failure):
        delay = retry_delay(claim, result, outcome.ended)
        fate = "failed" if delay is None else "retry"
    elif claim.task.settings.id is not UNSET:
        remember = idempotency_seconds
    options = _NO_OPTIONS
    if claim.attempt > 1 or claim.foreign or delay is not None or remember is not None or signs:
        options = SettleOptions(again=claim.attempt > 1, foreign=claim.foreign, delay=delay, remember=remember)
        if signs is not None:
            options.flow, options.health, options.rest = signs
            options.timed = claim.timed
    return _settlement(claim.id, claim.task.type, fate, outcome, encode_outcome(outcome), options)


def retry_in(one: Settlement) -> float | None:
    """Seconds until the next attempt, from the settlement of a failed delivery; None when the task is dead."""
    return _options(one).delay


def log_failure(log: FailureLog, claim: Claim, outcome: Failure, delay: float | None) -> None:
    """Logs a delivery that failed: `attempt_failed` when there will be another, else `dead`.

    Args:
        log: gets the line.
        claim: what was to be delivered.
        outcome: how it failed.
        delay: seconds until the next attempt; None when the task is dead.
    """
    address = claim.task.address

    def fields() -> Fields:
        about: Fields = {
            "task": client_id(claim.id),
            "type": claim.task.type,
            "attempt": claim.attempt,
            "outcome": outcome.error,
        }
        if outcome.answer.code:
            about["status"] = outcome.answer.code
        if delay is not None:
            about["retry_in_s"] = round(delay, 3)
        return about

    level, event = (logging.WARNING, "dead") if delay is None else (logging.INFO, "attempt_failed")
    log.write(level, event, destination_of(claim.task.type, address.link), fields)


def log_unread(log: FailureLog, task_id: str, attempt: int, failure: Failure) -> None:
    """Logs the death of a job that cannot be read as a task."""
    about: Fields = {"task": client_id(task_id), "type": stats.UNKNOWN, "attempt": attempt, "outcome": failure.error}
    log.write(logging.WARNING, "dead", "unknown", lambda: about)


def undelivered(claim: Claim, failure: Failure, now: float, flow: str = "") -> Settlement:
    """The settlement of a claimed task whose delivery was not begun.

    Args:
        claim: the task.
        failure: why.
        now: Unix seconds.
        flow: as for `settlement`.
    """
    outcome = replace(outcome_of(claim, failure, now, 0.0), lateness=None)
    # If its workers died, the lost deliveries are in its history already.
    line = b"" if failure.error == "lost" else encode_outcome(outcome)
    options = SettleOptions(again=True, unbegun=True, foreign=claim.foreign, flow=flow or None)
    return _settlement(claim.id, claim.task.type, "failed", outcome, line, options)


def held_back(claim: Claim, reason: str) -> Settlement:
    """The settlement of a task that a stock worker must not deliver yet, because of its flow or its queue.

    Args:
        claim: the task.
        reason: what it waits for, in words.
    """
    options = SettleOptions(again=True, unbegun=True, foreign=claim.foreign, delay=LEAST_STOCK_RETRY_SECONDS)
    return Settlement(
        id=claim.id,
        fate="retry",
        outcome=b"",
        error=reason,
        counter="",
        ended="",
        member="",
        options=msgspec.json.encode(options),
    )


def unread(task_id: str, attempt: int, failure: Failure, now: float, foreign: bool) -> Settlement:
    """The settlement of a job that cannot be read as a task.

    Args:
        task_id, attempt: of the job.
        failure: what is wrong with it.
        now: Unix seconds.
        foreign: whether another program put it into Redis, so QTask never accepted it.
    """
    outcome = unread_outcome(failure, attempt, now)
    options = SettleOptions(again=attempt > 1, foreign=foreign)
    return _settlement(task_id, stats.UNKNOWN, "failed", outcome, encode_outcome(outcome), options)


def with_history(one: Settlement) -> Settlement:
    """A settlement whose outcome is added to earlier ones; see `SettleOptions`."""
    options = _options(one)
    options.again = True
    return _with(one, options)


def sent_again(one: Settlement) -> Settlement:
    """A settlement whose reply was lost, so its task may have been claimed again; see `SettleOptions`."""
    if not one.outcome:
        return one  # the task is dead, so nothing claims it again
    options = _options(one)
    options.attempt = decode_outcomes(one.outcome)[-1].attempt
    return _with(one, options)


def by_stock_worker(one: Settlement) -> Settlement:
    """A settlement by a stock worker, in which RQ moves the job itself afterwards; see settle.lua.

    RQ counts the job as failed after the function has ended. Only after that may the scheduler release it for the next
    attempt.
    """
    options = _options(one)
    options.stock = options.again = True
    if options.delay is not None:
        options.delay = max(options.delay, LEAST_STOCK_RETRY_SECONDS)
    return _with(one, options)


def _options(one: Settlement) -> SettleOptions:
    return msgspec.json.decode(one.options, type=SettleOptions) if one.options else SettleOptions()


def _with(one: Settlement, options: SettleOptions) -> Settlement:
    return replace(one, options=msgspec.json.encode(options))


def _settlement(
    task_id: str, task_type: str, fate: Fate, outcome: Outcome, line: bytes, options: SettleOptions
) -> Settlement:
    return Settlement(
        id=task_id,
        fate=fate,
        outcome=line,
        error=outcome.message,
        counter=stats.counter(task_type, outcome),
        ended=f"{outcome.ended:.6f}",
        member=stats.member(task_id, outcome),
        options=b"" if options is _NO_OPTIONS else msgspec.json.encode(options),
    )


def _retry(claim: Claim) -> Retry:
    retry = claim.task.settings.retry
    return DEFAULT_RETRY if retry is UNSET else retry
