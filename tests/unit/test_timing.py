"""Instants and delays: every form that is accepted, every one that is refused, and how they are formatted."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtask.model.errors import Refused
from qtask.model.timing import (
    MAX_DELAY_SECONDS,
    MAX_INSTANT,
    check_delay,
    format_duration,
    format_instant,
    format_second,
    parse_duration,
    parse_instant,
)

_zones = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_moments = st.datetimes(datetime(1970, 1, 3), datetime(2999, 12, 29), timezones=_zones)


@pytest.mark.parametrize("seconds", [0, -0.0, 1e-9, 0.5, 90, MAX_DELAY_SECONDS])
def test_valid_delay_is_unchanged(seconds: float) -> None:
    assert check_delay(seconds) == seconds
    assert isinstance(check_delay(seconds), float)


@pytest.mark.parametrize("seconds", [-1, -1e-9, MAX_DELAY_SECONDS + 1, 1e300, math.inf, -math.inf, math.nan])
def test_negative_or_excessive_delay_is_refused(seconds: float) -> None:
    with pytest.raises(Refused, match=r"from 0 to 315576000 \(ten years\)") as refused:
        check_delay(seconds, "settings.other")
    assert (refused.value.code, refused.value.field) == ("invalid_value", "settings.other")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        (" 0 ", 0),
        ("-1", -1),
        ("90s", 90),
        ("10m", 600),
        ("2h", 7_200),
        ("3d", 259_200),
        ("1h30m", 5_400),
        ("1d 2h 3m 4s 5ms", 93_784.005),
        ("1.5h", 5_400),
        ("250ms", 0.25),
        ("0s", 0),
    ],
)
def test_duration_is_parsed(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", " ", "s", "10x", "10 minutes", "m10", "30m1h", "1h1h", "1m30", "-10m", "1,5h", "1h."]
)
def test_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="seconds, or a duration such as 90s, 10m, 2h, 3d or 1h30m, is needed, got "):
        parse_duration(text)


def test_instant_in_a_table_has_whole_seconds() -> None:
    assert format_second(1_795_539_666.999) == "2026-11-24 17:01:06Z"


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-12-24T18:00:00Z", 1_798_135_200),
        ("2026-12-24T18:00:00z", 1_798_135_200),
        ("2026-12-24t18:00:00Z", 1_798_135_200),
        ("2026-12-24 18:00:00Z", 1_798_135_200),
        ("2026-12-24T18:00Z", 1_798_135_200),
        ("2026-12-24T18:00:00+00:00", 1_798_135_200),
        ("2026-12-24T18:00:00-00:00", 1_798_135_200),
        ("2026-12-24T18:00:00+01:00", 1_798_131_600),
        ("2026-12-24T18:00:00+0100", 1_798_131_600),
        ("2026-12-24T18:00:00+01", 1_798_131_600),
        ("2026-12-24T18:00:00-05:30", 1_798_155_000),
        ("2026-12-24 18:00:00 +0100", 1_798_131_600),
        ("20261224T180000Z", 1_798_135_200),
        ("2026-12-24T18:00:00.5Z", 1_798_135_200.5),
        ("2026-12-24T18:00:00,25Z", 1_798_135_200.25),
        ("2026-12-24T18:00:00.000001Z", 1_798_135_200.000001),
        ("2026-12-24T18:00:00.123456789Z", 1_798_135_200.123456),
        ("2024-02-29T00:00:00Z", 1_709_164_800),
        ("1970-01-01T01:00:00+01:00", 0),
        ("3000-01-01T00:00:00Z", MAX_INSTANT),
    ],
)
def test_each_iso_8601_form_with_a_zone_is_parsed(text: str, instant: float) -> None:
    assert parse_instant(text) == pytest.approx(instant, abs=1e-6)


@given(_moments, st.sampled_from(["T", " ", "t"]))
def test_instant_in_the_format_of_python_is_parsed(moment: datetime, separator: str) -> None:
    assert parse_instant(moment.isoformat(separator)) == pytest.approx(moment.timestamp(), abs=1e-6)


@pytest.mark.parametrize("seconds", [0, 1_795_539_666, 1_795_539_666.252, MAX_INSTANT])
def test_instant_may_be_unix_seconds(seconds: float) -> None:
    assert parse_instant(seconds) == seconds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "with its zone is needed, such as 2026-12-24T18:00:00\\+01:00"),
        ("now", "got 'now'"),
        ("2026-12-24", "with its zone"),
        ("2026-12-24T18:00:00", "with its zone"),
        ("2026-12-24T18:00:00 CET", "with its zone"),
        ("24.12.2026 18:00Z", "with its zone"),
        ("2026-12-24T18Z", "with its zone"),
        ("1795539666", "with its zone"),
        ("２０２６-12-24T18:00:00Z", "with its zone"),
        ("2026-12-24T18:00:00Z\n", "with its zone"),
        ("x" * 500, "got 'x{40}'$"),
        ("2026-02-30T00:00:00Z", "is not an instant: day is out of range"),
        ("2026-13-01T00:00:00Z", "is not an instant: month must be in"),
        ("2026-12-24T25:00:00Z", "is not an instant: hour must be in"),
        ("2026-12-24T18:00:60Z", "is not an instant: second must be in"),
        ("2026-12-24T18:00:00+24:00", "is not an instant"),
        ("2026-12-24T18:00 or soZ", "with its zone"),
        ("2026-12-24T18:00:00  +01:00", "with its zone"),
        ("2026-1224T18:00:00Z", "is not an instant"),
        ("0001-01-01T00:00:00+14:00", "year 3000"),
        ("9999-12-31T23:59:59-14:00", "year 3000"),
        ("1969-12-31T23:59:59Z", "from 0 to the year 3000 are needed, got -1"),
        (-1, "got -1"),
        (MAX_INSTANT + 1, "year 3000"),
        (1_795_539_666_252, "year 3000 are needed, got 1795539666252"),
        (math.nan, "got nan"),
        (math.inf, "got inf"),
    ],
)
def test_invalid_instant_is_refused_with_an_example(value: float | str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        parse_instant(value)
    assert (refused.value.code, refused.value.field) == ("invalid_value", "settings.at")


@given(st.text(max_size=40) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d.{0,9}(Z|[+-]\d\d:\d\d)", fullmatch=True))
def test_any_text_is_an_instant_in_bounds_or_refused(text: str) -> None:
    instant = 0.0
    with suppress(Refused):
        instant = parse_instant(text)
    assert 0 <= instant <= MAX_INSTANT


@given(st.floats(0, 32_000_000_000))
def test_formatted_instant_is_parsed_back_to_the_millisecond(seconds: float) -> None:
    written = format_instant(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", written)
    assert -0.000_002 <= seconds - parse_instant(written) <= 0.001_002


def test_instant_is_formatted_in_utc() -> None:
    assert format_instant(datetime(2026, 11, 24, 15, 46, 0, 250_999, UTC).timestamp()) == "2026-11-24T15:46:00.250Z"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 µs"),
        (-1e-9, "0 µs"),
        (0.000_001, "1 µs"),
        (0.000_85, "850 µs"),
        (0.000_999_4, "999 µs"),
        (0.000_999_6, "1.0 ms"),
        (0.001, "1.0 ms"),
        (0.0042, "4.2 ms"),
        (0.999_94, "999.9 ms"),
        (0.999_96, "1.00 s"),
        (1.5, "1.50 s"),
        (119.99, "119.99 s"),
        (119.996, "2 min 00 s"),
        (150, "2 min 30 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (7549, "2 h 06 min"),
        (1_000_000, "277 h 47 min"),
        (-0.0042, "-4.2 ms"),
        (-150, "-2 min 30 s"),
        (-7500, "-2 h 05 min"),
    ],
)
def test_duration_is_formatted_with_a_fitting_unit(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


_UNITS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_LIMITS = {"µs": 1000, "ms": 1000, "s": 120, "min": 60, "h": math.inf}


@given(st.floats(-1e8, 1e8) | st.floats(-2, 2) | st.floats(-0.01, 0.01))
def test_formatted_duration_is_the_rounded_duration(seconds: float) -> None:
    words = format_duration(seconds)
    parts = re.findall(r"([\d.]+) (µs|ms|s|min|h)", words)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    step = {"µs": 1e-6, "ms": 1e-4, "s": 0.01 if len(parts) == 1 else 1.0, "min": 60.0}[parts[-1][1]]
    assert total == pytest.approx(abs(seconds), abs=step * 0.501, rel=1e-9)
    assert words.startswith("-") == (seconds < 0 and total > 0)
    assert float(parts[0][0]) < _LIMITS[parts[0][1]]
    assert all(float(number) < 60 for number, _ in parts[1:])
