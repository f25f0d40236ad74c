"""Parses the limits of a flow, and changes to them, from JSON and from values of Python. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from qtask.model.flow import Changes, Limits, check_values
from qtask.model.rejection import refusal_of_limits

_LIMITS = msgspec.json.Decoder(Limits)
_CHANGES = msgspec.json.Decoder(Changes)


def read_limits(body: bytes) -> Limits:
    """Parses limits from a JSON object. Raises `Refused`, which names the field; see `check_limits` for the values."""
    try:
        return _LIMITS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_limits(error, raw=body) from None


def read_changes(body: bytes) -> Changes:
    """As `read_limits`, for changes: null removes a limit."""
    try:
        return _CHANGES.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_limits(error, raw=body, removes="null") from None


def changes_of(given: Mapping[str, Any], removes: str = "None") -> Changes:
    """Changes from values of Python by their names: None removes a limit.

    Args:
        given: the values.
        removes: how the caller writes None, for messages.

    Raises `Refused`, which names the field, also for numbers that JSON does not have.
    """
    try:
        changes = msgspec.convert(given, Changes)
    except msgspec.ValidationError as error:
        raise refusal_of_limits(error, removes=removes) from None
    check_values(changes)
    return changes
