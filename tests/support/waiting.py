"""Waiting for a condition, with a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")


def until(condition: Callable[[], _Value], seconds: float = 30.0, what: str = "", every: float = 0.01) -> _Value:
    """Asks every so many seconds until the answer is true, and returns it; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or condition}; last answer {value!r}")
        time.sleep(every)
    return value
