"""Retries of failed deliveries: the fields of `settings.retry`, and the delays that follow from them. Pure."""

from __future__ import annotations

import random
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Literal, get_args

from msgspec import UNSET, Struct, UnsetType

from qtask.model.errors import Refused
from qtask.model.outcome import ErrorKind

FIELD = "settings.retry"
MAX_ATTEMPTS = 100
MAX_DELAY_SECONDS = 2_592_000.0  # thirty days

Backoff = Literal["exponential", "linear", "fixed"]
StatusClass = Literal["4xx", "5xx"]
Cause = Literal[
    "dns",
    "connect",
    "timeout",
    "tls",
    "protocol",
    "redirect",
    "no_reader",
    "unavailable",
    "rejected",
    "internal",
    "4xx",
    "5xx",
]

# Failures that may pass. Other 4xx statuses and `rejected` mean that the task is wrong, which a retry does not change.
DEFAULT_CAUSES: tuple[Cause | int, ...] = (
    *("dns", "connect", "timeout", "tls", "protocol", "no_reader", "unavailable", "internal", "5xx"),
    *(408, 425, 429),
)


class Retry(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How often and when a failed delivery is retried.

    Attributes:
        attempts: deliveries in all, the first included; by default 5, or one more than the delays in `backoff`.
        backoff: how the delay grows: `exponential` (base, 2 base, 4 base, …), `linear` (base, 2 base, 3 base, …),
            `fixed` (base), or the delays themselves in seconds, of which the last repeats.
        base: seconds before the second delivery.
        cap: longest delay in seconds between two deliveries, even if the receiver asks for more with `Retry-After`.
        jitter: whether the delay is random, from 0 to the one that `backoff` gives, so that tasks that failed together
            are not retried together; by default only for `exponential`.
        on: which failures are retried: kinds of errors, HTTP statuses, `4xx`, `5xx`. All others are final.
    """

    attempts: int | UnsetType = UNSET
    backoff: Backoff | list[float] = "exponential"
    base: float = 5.0
    cap: float = 3600.0
    jitter: bool | UnsetType = UNSET
    on: list[Cause | int] | UnsetType = UNSET

    @property
    def max_attempts(self) -> int:
        """Deliveries in all."""
        if self.attempts is not UNSET:
            return self.attempts
        return len(self.backoff) + 1 if isinstance(self.backoff, list) else 5


DEFAULT_RETRY = Retry()


def check_retry(retry: Retry) -> None:
    """Raises `Refused` for a number that is out of range."""
    if not 1 <= retry.max_attempts <= MAX_ATTEMPTS:
        raise Refused("invalid_value", f"{FIELD}.attempts", f"1 to {MAX_ATTEMPTS} are needed, got {retry.max_attempts}")
    if isinstance(retry.backoff, list):
        if not retry.backoff:
            raise Refused("invalid_value", f"{FIELD}.backoff", "a list of seconds holds at least one delay")
        for seconds in retry.backoff:
            _check_seconds("backoff", seconds)
    _check_seconds("base", retry.base)
    _check_seconds("cap", retry.cap)
    if retry.on is not UNSET:
        for cause in retry.on:
            if isinstance(cause, int) and not 400 <= cause <= 599:
                raise Refused("invalid_value", f"{FIELD}.on", f"a status from 400 to 599 is a failure, {cause} is not")


def next_delay(
    retry: Retry, attempt: int, error: ErrorKind, status: int, retry_after: float | None = None
) -> float | None:
    """Seconds until the next attempt after a failed delivery, or None if there is none.

    Args:
        retry: the retry settings of the task.
        attempt: number of the failed delivery, from 1.
        error: kind of the error.
        status: HTTP status of the answer, 0 for none.
        retry_after: seconds that the receiver asked for, see `parse_retry_after`.
    """
    if attempt >= retry.max_attempts or not _is_tried_again(retry, error, status):
        return None
    if retry_after is not None:
        return min(retry_after, retry.cap)
    delay = min(_backoff(retry, attempt), retry.cap)
    jitter = retry.backoff == "exponential" if retry.jitter is UNSET else retry.jitter
    return random.uniform(0.0, delay) if jitter else delay  # noqa: S311  # no secret


def parse_retry_after(value: str, now: float) -> float | None:
    """Seconds from now that a `Retry-After` header asks for (RFC 9110, section 10.2.3); None if it is not valid.

    Args:
        value: a number of seconds, or an HTTP date in any of the three forms of RFC 9110, section 5.6.7. The form of
            asctime() names no zone; it is in UTC.
        now: Unix seconds.
    """
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        instant = parsedate_to_datetime(value)
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return max(0.0, instant.timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _is_tried_again(retry: Retry, error: ErrorKind, status: int) -> bool:
    causes = DEFAULT_CAUSES if retry.on is UNSET else retry.on
    if error != "status":
        return error in causes
    return status in causes or f"{status // 100}xx" in causes


def _backoff(retry: Retry, attempt: int) -> float:
    if isinstance(retry.backoff, list):
        return retry.backoff[min(attempt, len(retry.backoff)) - 1]
    if retry.backoff == "exponential":
        return retry.base * 2.0 ** min(attempt - 1, 60)
    return retry.base * attempt if retry.backoff == "linear" else retry.base


def _check_seconds(name: str, seconds: float) -> None:
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        words = f"seconds from 0 to {MAX_DELAY_SECONDS:.0f} (thirty days) are needed, got {seconds:g}"
        raise Refused("invalid_value", f"{FIELD}.{name}", words)


CAUSES: tuple[str, ...] = get_args(Cause)
