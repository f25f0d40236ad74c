"""When a failed delivery is retried, and when it is not."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtask.model.errors import Refused
from qtask.model.outcome import ErrorKind
from qtask.model.retry import MAX_ATTEMPTS, Retry, check_retry, next_delay, parse_retry_after


def delays(retry: Retry) -> list[float | None]:
    """The delay after each failed delivery, until there is no further attempt."""
    found = [next_delay(retry, attempt, "connect", 0) for attempt in range(1, retry.max_attempts + 1)]
    assert found[-1] is None
    return found[:-1]


def test_backoff_grows_up_to_the_cap() -> None:
    assert delays(Retry(backoff="exponential", base=2, cap=10, attempts=6, jitter=False)) == [2, 4, 8, 10, 10]
    assert delays(Retry(backoff="linear", base=2, cap=7, attempts=5)) == [2, 4, 6, 7]
    assert delays(Retry(backoff="fixed", base=3, attempts=4)) == [3, 3, 3]
    assert delays(Retry(backoff=[1, 60, 5])) == [1, 60, 5]
    assert delays(Retry(backoff=[1, 60], attempts=5)) == [1, 60, 60, 60]
    assert delays(Retry(attempts=1)) == []


def test_default_is_five_attempts_with_exponential_backoff_and_full_jitter() -> None:
    seen = [delays(Retry()) for _ in range(200)]
    for number, most in enumerate((5, 10, 20, 40)):
        drawn = [one[number] or 0.0 for one in seen]
        assert all(0 <= delay <= most for delay in drawn)
        assert min(drawn) < most * 0.2 and max(drawn) > most * 0.8, "jitter covers the whole range"


@given(st.integers(1, MAX_ATTEMPTS - 1))
def test_hundred_attempts_do_not_overflow(attempt: int) -> None:
    delay = next_delay(Retry(attempts=MAX_ATTEMPTS, base=2_592_000, cap=2_592_000), attempt, "timeout", 0)
    assert delay is not None and 0 <= delay <= 2_592_000


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        ("connect", 0, True),
        ("dns", 0, True),
        ("timeout", 0, True),
        ("tls", 0, True),
        ("protocol", 0, True),
        ("no_reader", 0, True),
        ("internal", 0, True),
        ("status", 408, True),
        ("status", 425, True),
        ("status", 429, True),
        ("status", 500, True),
        ("status", 503, True),
        ("status", 599, True),
        ("status", 400, False),
        ("status", 404, False),
        ("status", 410, False),
        ("redirect", 302, False),
        ("refused", 0, False),
        ("expired", 0, False),
        ("lost", 0, False),
    ],
)
def test_temporary_errors_are_retried_and_permanent_ones_are_not(error: ErrorKind, status: int, again: bool) -> None:
    assert (next_delay(Retry(), 1, error, status) is not None) is again


def test_on_selects_the_causes_that_are_retried() -> None:
    picky = Retry(on=["timeout", 404, "5xx"])
    assert next_delay(picky, 1, "timeout", 0) is not None
    assert next_delay(picky, 1, "status", 404) is not None
    assert next_delay(picky, 1, "status", 502) is not None
    assert next_delay(picky, 1, "status", 429) is None
    assert next_delay(picky, 1, "connect", 0) is None
    assert next_delay(Retry(on=["4xx"]), 1, "status", 410) is not None
    assert next_delay(Retry(on=[]), 1, "timeout", 0) is None


def test_retry_after_is_respected_up_to_the_cap() -> None:
    assert next_delay(Retry(), 1, "status", 429, 17.0) == 17
    assert next_delay(Retry(cap=10), 1, "status", 503, 17.0) == 10
    assert next_delay(Retry(), 1, "status", 404, 17.0) is None
    assert next_delay(Retry(attempts=1), 1, "status", 429, 17.0) is None


def test_retry_after_is_parsed_as_seconds_and_as_date() -> None:
    now = 1_795_539_666.25
    date = format_datetime(datetime.fromtimestamp(1_795_539_700, UTC), usegmt=True)
    assert parse_retry_after("120", now) == 120
    assert parse_retry_after(" 0 ", now) == 0
    assert parse_retry_after(date, now) == pytest.approx(33.75)
    assert parse_retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now) == 0
    for nonsense in ("", "soon", "-5", "1.5", "½", "Fri, 99 Dec 2026 99:99:99 GMT", "9" * 400):
        parsed = parse_retry_after(nonsense, now)
        assert parsed is None or parsed > 1e9, nonsense


@pytest.mark.parametrize(
    "date",
    [
        "Tue, 24 Nov 2026 17:01:40 GMT",
        "Tuesday, 24-Nov-26 17:01:40 GMT",
        "Tue Nov 24 17:01:40 2026",
        "Tue, 24 Nov 2026 17:01:40 -0000",
        "Tue, 24 Nov 2026 17:01:40",
        "Tue, 24 Nov 2026 19:01:40 +0200",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_each_date_format_is_read_as_utc_in_any_time_zone(
    zone: str, date: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_retry_after(date, 1_795_539_666.25) == pytest.approx(33.75)
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text(max_size=60))
def test_any_retry_after_value_is_parsed_without_an_error(value: str) -> None:
    parsed = parse_retry_after(value, 0.0)
    assert parsed is None or parsed >= 0


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 101}, "attempts"),
        ({"backoff": []}, "backoff"),
        ({"backoff": [1.0] * 100}, "attempts"),
        ({"backoff": [-1.0]}, "backoff"),
        ({"base": -0.1}, "base"),
        ({"cap": 2_592_001.0}, "cap"),
        ({"base": float("nan")}, "base"),
        ({"on": [200]}, "on"),
        ({"on": [600]}, "on"),
    ],
)
def test_numbers_out_of_bounds_are_refused(given: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        check_retry(Retry(**given))
    assert refused.value.field == f"settings.retry.{field}"
