"""How a delivery ends: its outcome, whether and when it is tried again, and what is settled. No I/O.

The rules are the same for both kinds of worker; a settlement is what QTask's own makes of them.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import UNSET

from qtask import stats
from qtask.delivery.claim import Claim
from qtask.failure_log import FailureLog, Fields
from qtask.link import destination_of
from qtask.outcome import Answer, Failure, Outcome, encode_outcome
from qtask.retry import DEFAULT_RETRY, Retry, next_delay, parse_retry_after
from qtask.store.leases import Fate, Settlement
from qtask.task import expiry_of


def hindrance(claim: Claim, now: float) -> Failure | None:
    """Why a task that was claimed is not to be delivered any more, or None when it is.

    Args:
        claim: the task.
        now: Unix seconds.
    """
    most = _retry(claim).most
    if claim.attempt > most:
        times = "once" if most == 1 else f"in each of {most} attempts"
        return Failure("lost", f"its worker died or hung {times}; whether the receiver got it is not known")
    if claim.task.settings.expires is not UNSET and now >= expiry_of(claim.task, claim.due):
        return Failure("expired", "settings.expires had passed before a delivery could begin")
    return None


def outcome_of(claim: Claim, result: Answer | Failure, started: float, duration: float) -> Outcome:
    """The outcome of one delivery.

    Args:
        claim: what was delivered.
        result: what came of it.
        started: Unix seconds.
        duration: seconds.
    """
    answer, failure = (result.answer, result) if isinstance(result, Failure) else (result, None)
    lateness = max(0.0, started - claim.due) if claim.due else 0.0
    return Outcome(
        status="failed" if failure else "delivered",
        started=started,
        ended=started + duration,
        lateness=lateness if claim.attempt == 1 else None,
        duration=duration,
        attempt=claim.attempt,
        code=answer.code,
        answer=answer.text,
        error=failure.kind if failure else "",
        message=failure.message if failure else "",
    )


def unread_outcome(failure: Failure, attempt: int, now: float) -> Outcome:
    """The outcome of a job that is no task; `now` in Unix seconds."""
    return Outcome("failed", now, now, None, 0.0, attempt, error=failure.kind, message=failure.message)


def retry_delay(claim: Claim, failure: Failure, now: float) -> float | None:
    """Seconds until a failed delivery is to be tried again; None when the task is dead.

    Args:
        claim: what was delivered.
        failure: how it failed.
        now: Unix seconds.
    """
    retry_after = parse_retry_after(failure.retry_after, now) if failure.retry_after else None
    delay = next_delay(_retry(claim), claim.attempt, failure.kind, failure.answer.code, retry_after)
    if delay is not None and claim.task.settings.expires is not UNSET:
        if now + delay >= expiry_of(claim.task, claim.due):
            return None
    return delay


def settlement(
    claim: Claim, result: Answer | Failure, started: float, duration: float, id_seconds: float
) -> Settlement:
    """What is settled for a delivery that has ended.

    Args:
        claim, result, started, duration: as for `outcome_of`.
        id_seconds: for how long the id of a delivered task is remembered, where the client chose it.
    """
    outcome = outcome_of(claim, result, started, duration)
    rare: dict[str, Any] = {}
    fate: Fate = "finished"
    if claim.attempt > 1:
        rare["again"] = True
    if isinstance(result, Failure):
        delay = retry_delay(claim, result, outcome.ended)
        fate = "failed" if delay is None else "retry"
        if delay is not None:
            rare["delay"] = delay
    elif claim.task.settings.id is not UNSET:
        rare["remember"] = id_seconds
    return _settlement(claim.id, claim.task.kind, fate, outcome, encode_outcome(outcome), rare)


def retry_in(one: Settlement) -> float | None:
    """Seconds until the next attempt, of a settlement of a failed delivery; None when the task is dead."""
    delay: float | None = msgspec.json.decode(one[-1]).get("delay") if one[1] == "retry" else None
    return delay


def log_failure(log: FailureLog, claim: Claim, outcome: Failure, delay: float | None) -> None:
    """Logs a delivery that failed: `attempt_failed` when there will be another, else `dead`.

    Args:
        log: where to.
        claim: what was to be delivered.
        outcome: how that failed.
        delay: seconds until the next attempt; None when the task is dead.
    """
    address = claim.task.address

    def fields() -> Fields:
        about: Fields = {"task": claim.id, "type": claim.task.kind, "attempt": claim.attempt, "outcome": outcome.kind}
        if outcome.answer.code:
            about["status"] = outcome.answer.code
        if delay is not None:
            about["retry_in_s"] = round(delay, 3)
        return about

    level, event = (logging.WARNING, "dead") if delay is None else (logging.INFO, "attempt_failed")
    log.write(level, event, destination_of(claim.task.kind, address.link), fields)


def log_unread(log: FailureLog, task_id: str, attempt: int, failure: Failure) -> None:
    """Logs the death of a job that is no task."""
    about: Fields = {"task": task_id, "type": stats.UNKNOWN, "attempt": attempt, "outcome": failure.kind}
    log.write(logging.WARNING, "dead", "unknown", lambda: about)


def undelivered(claim: Claim, failure: Failure, now: float) -> Settlement:
    """What is settled for a task that was claimed and that no delivery was begun for; `now` in Unix seconds."""
    outcome = outcome_of(claim, failure, now, 0.0)
    # When its workers died, the lost deliveries stand in its history already.
    line = b"" if failure.kind == "lost" else encode_outcome(outcome)
    return _settlement(claim.id, claim.task.kind, "failed", outcome, line, {"again": True, "unbegun": True})


def unread(task_id: str, attempt: int, failure: Failure, now: float) -> Settlement:
    """What is settled for a job that is no task; `now` in Unix seconds."""
    outcome = unread_outcome(failure, attempt, now)
    return _settlement(task_id, stats.UNKNOWN, "failed", outcome, encode_outcome(outcome), {"again": attempt > 1})


def with_history(one: Settlement) -> Settlement:
    """A settlement whose outcome does not take the place of those before it; see settle.lua."""
    *rest, rare = one
    given: dict[str, Any] = msgspec.json.decode(rare) if rare else {}
    return (*rest, msgspec.json.encode({**given, "again": True}))  # type: ignore[return-value]


def _settlement(task_id: str, kind: str, fate: Fate, outcome: Outcome, line: bytes, rare: dict[str, Any]) -> Settlement:
    return (
        task_id,
        fate,
        line,
        outcome.message,
        stats.counter(kind, outcome),
        f"{outcome.ended:.6f}",
        stats.member(task_id, outcome),
        msgspec.json.encode(rare) if rare else b"",
    )


def _retry(claim: Claim) -> Retry:
    retry = claim.task.settings.retry
    return DEFAULT_RETRY if retry is UNSET else retry
