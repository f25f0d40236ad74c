"""How a delivery ends: its outcome, and whether and when it is tried again. The same for both kinds of worker. Pure."""

from __future__ import annotations

from msgspec import UNSET

from qtask.delivery.kinds import Claim
from qtask.outcome import Answer, Failure, Outcome
from qtask.retry import DEFAULT_RETRY, Retry, next_delay, parse_retry_after
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


def _retry(claim: Claim) -> Retry:
    retry = claim.task.settings.retry
    return DEFAULT_RETRY if retry is UNSET else retry
