"""Reads the dicts of a file: NDJSON, one JSON object in any layout, or a JSON array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import msgspec

from qtask.destinations.parsing import parse
from qtask.model.errors import QTaskError, Refused
from qtask.model.rejection import refusal_of_form
from qtask.model.validation import bare

_OneLevel = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | int | float | bool | None

Item = tuple[str, Mapping[str, Any] | Refused]
"""The place of a dict in the file ("line 3"), and the dict or the reason why it is invalid."""


def read(file: BinaryIO) -> Iterator[Item]:
    """The dicts of a file, one after the other.

    An invalid line of NDJSON does not affect the others. Byte order marks are ignored. Raises `QTaskError` if the file
    is empty or not JSON.
    """
    lines = ((number, line) for number, line in enumerate(file, 1) if bare(line))
    number, first = next(((number, bare(line)) for number, line in lines), (0, b""))
    if not first:
        raise QTaskError("there is nothing to send: the file is empty")
    if (refused := refusal_of_form(first)) is not None:
        raise QTaskError(f"this file cannot be read: {refused}")
    try:
        one = decode(first)
    except msgspec.DecodeError as error:
        rest = b"".join(line for _, line in lines)
        try:
            one = decode(first + rest)
        except msgspec.DecodeError as whole:
            why = f"line {number}: {error}; as one document: {whole}"
            raise QTaskError(f"this is neither NDJSON nor one JSON document ({why})") from None
    if isinstance(one, list):
        yield from ((f"element {position}", _checked(element)) for position, element in enumerate(one, 1))
    else:
        yield f"line {number}", _checked(one)
    for number, line in lines:
        yield from _line(number, line)


def decode(text: bytes | str) -> Any:
    """Parses JSON one level deep, so that the values in a list or an object keep their original text.

    Raises `msgspec.DecodeError`.
    """
    return msgspec.json.decode(msgspec.json.format(text, indent=-1), type=_OneLevel)


def _line(number: int, line: bytes) -> Iterator[Item]:
    place = f"line {number}"
    try:
        found = decode(bare(line))
    except msgspec.DecodeError as error:
        yield place, Refused("invalid_json", "", f"this is not JSON: {error}")
        return
    for one in found if isinstance(found, list) else [found]:
        yield place, _checked(one)


def _checked(found: Any) -> Mapping[str, Any] | Refused:
    """A dict unchanged; for anything else, the refusal."""
    if isinstance(found, msgspec.Raw):
        found = decode(bytes(found))
    if isinstance(found, dict):
        return found
    try:
        parse(msgspec.json.encode(found))
    except Refused as refused:
        return refused
    raise AssertionError("a value that is not a dict is never a task")
