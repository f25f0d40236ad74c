"""Parses the limits of a flow, and changes to them, from JSON and from keyword arguments. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from qtask.model.errors import Refused
from qtask.model.flow import Changes, Limits
from qtask.model.rejection import refusal_of_text

_Read = TypeVar("_Read")

_LIMITS = msgspec.json.Decoder(Limits)
_CHANGES = msgspec.json.Decoder(Changes)
_HINTS = {"parallel": '; a whole number, or "auto"'}


def read_limits(body: bytes) -> Limits:
    """Parses limits from a JSON object. Raises `Refused`, which names the field; see `check_limits` for the values."""
    return _read(_LIMITS, body)


def read_changes(body: bytes) -> Changes:
    """As `read_limits`, for changes."""
    return _read(_CHANGES, body)


def changes_of(given: Mapping[str, Any]) -> Changes:
    """Changes from values of Python by their names. Raises `Refused`, which names the field."""
    try:
        changes = msgspec.convert(given, Changes)
    except msgspec.ValidationError as error:
        raise _refusal(error, b"{}") from None
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):  # JSON has no such number
            raise Refused("invalid_value", name, f"a finite number is needed, got {value:g}")
    return changes


def _read(decoder: msgspec.json.Decoder[_Read], body: bytes) -> _Read:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, body) from None


def _refusal(error: Exception, body: bytes) -> Refused:
    return refusal_of_text(error, body, "object of limits", _HINTS, Limits.__struct_fields__)
