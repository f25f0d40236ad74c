"""Parses and formats instants and durations, as in `settings.time`, `settings.at` and flags."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache

from qtask.model.errors import Refused

MAX_DELAY_SECONDS = 315_576_000.0  # ten years; a larger delay is most likely a mistake in units
MAX_INSTANT = 32_503_680_000.0  # the year 3000; milliseconds given as seconds are far beyond it

_ISO_WITH_ZONE = re.compile(
    r"(\d{4}-?\d\d-?\d\d)[T ](\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?) ?(Z|[+-]\d\d(?::?\d\d)?)", re.ASCII | re.IGNORECASE
)

DURATION_FORMS = "seconds, or a duration such as 90s, 10m, 2h, 3d or 1h30m"
_DURATION = re.compile(
    r"(?=\S)" + r"\s*".join(rf"(?:(\d+(?:\.\d+)?)\s*{unit})?" for unit in ("d", "h", "m(?!s)", "s", "ms")), re.ASCII
)
_UNIT_SECONDS = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


def parse_duration(text: str) -> float:
    """Parses a duration as people write it: `90`, `1.5`, `90s`, `10m`, `2h`, `3d`, `1h30m`, `250ms`.

    Returns seconds; a bare number is not checked for its range. Raises ValueError for anything else.
    """
    text = text.strip()
    try:
        return float(text)
    except ValueError:
        match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{DURATION_FORMS}, is needed, got {text[:40]!r}")
    return sum(float(count) * unit for count, unit in zip(match.groups(), _UNIT_SECONDS, strict=True) if count)


def check_delay(seconds: float, field: str = "settings.time") -> float:
    """Returns a delay in seconds unchanged. Raises `Refused` if it is negative or more than ten years."""
    if not 0 <= seconds <= MAX_DELAY_SECONDS:
        raise Refused(
            "invalid_value",
            field,
            f"a delay in seconds from 0 to {MAX_DELAY_SECONDS:.0f} (ten years) is needed, got {seconds:g}",
        )
    return float(seconds)


def parse_instant(value: float | str, field: str = "settings.at") -> float:
    """Parses an instant: Unix seconds, or ISO 8601 with a zone (`2026-12-24T18:00:00+01:00`, `…Z`).

    Returns Unix seconds. Raises `Refused` if the text has no zone, is not an instant, or is after the year 3000.
    """
    if isinstance(value, str):
        match = _ISO_WITH_ZONE.fullmatch(value)
        if match is None:
            raise Refused(
                "invalid_value",
                field,
                f"an instant with its zone is needed, such as 2026-12-24T18:00:00+01:00 or …Z, got {value[:40]!r}",
            )
        try:
            seconds = datetime.fromisoformat(f"{match[1]}T{match[2]}{match[3].upper()}").timestamp()
        except (ValueError, OverflowError) as error:
            raise Refused("invalid_value", field, f"{value[:40]!r} is not an instant: {error}") from None
    else:
        seconds = float(value)
    if not 0 <= seconds <= MAX_INSTANT:
        raise Refused("invalid_value", field, f"Unix seconds from 0 to the year 3000 are needed, got {seconds:.15g}")
    return seconds


def format_instant(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC with milliseconds: `2026-11-24T15:46:00.250Z`."""
    whole, microseconds = divmod(round(seconds * 1e6), 1_000_000)
    return f"{_whole_second(whole)}.{microseconds // 1000:03d}Z"


def format_second(seconds: float) -> str:
    """As `format_instant`, but shorter, for tables: `2026-11-24 15:46:00Z`."""
    return f"{_whole_second(int(seconds)).replace('T', ' ')}Z"


@lru_cache(16)
def _whole_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19]


def format_duration(seconds: float | None) -> str:
    """A duration in seconds, rounded for people: `850 µs`, `4.2 ms`, `1.50 s`, `2 min 30 s`, `2 h 05 min`."""
    if seconds is None:
        return "–"
    size = abs(seconds)
    if (microseconds := round(size * 1e6)) < 1000:
        text = f"{microseconds} µs"
    elif (milliseconds := round(size * 1e3, 1)) < 1000:
        text = f"{milliseconds:.1f} ms"
    elif round(size, 2) < 120:
        text = f"{size:.2f} s"
    elif round(size) < 3600:
        text = "{} min {:02d} s".format(*divmod(round(size), 60))
    else:
        text = "{} h {:02d} min".format(*divmod(round(size / 60), 60))
    return f"-{text}" if seconds < 0 and text != "0 µs" else text
