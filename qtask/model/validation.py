"""Checks that apply to tasks of all destinations, and the encoding of Python values as JSON.

`qtask.destinations.parsing` parses whole tasks. Pure: no network, no Redis, no clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct

from qtask.model.errors import Refused
from qtask.model.flow import check_flow
from qtask.model.queues import check_name
from qtask.model.rejection import refusal_of_data, refusal_of_text, too_deep
from qtask.model.retry import check_retry
from qtask.model.task import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_TIMEOUT_SECONDS,
    MAX_TITLE_CHARACTERS,
    Settings,
    Task,
    is_given,
)
from qtask.model.timing import MAX_DELAY_SECONDS, check_delay, parse_instant


class Checked(Struct, frozen=True):
    """A task that passed every check, ready to be stored.

    Attributes:
        task: the task itself.
        body: its JSON on one line, otherwise as the client wrote it.
        delay: seconds from acceptance to due, or None when `instant` is set.
        instant: due as Unix seconds, or None when `delay` is set.
    """

    task: Task
    body: bytes
    delay: float | None
    instant: float | None


_Data = TypeVar("_Data", bound=Struct)
_BATCH_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_ID = re.compile(r"[!-~]{1,200}", re.ASCII)
# An unterminated string matches to the end of the text, so that no byte is scanned twice.
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"


class _SettingsOfAnyData(Struct, frozen=True):
    data: Any = None


class _TaskOfAnyData(Struct, frozen=True):
    settings: _SettingsOfAnyData = _SettingsOfAnyData()


# Parses the data as well, to find integers that are too long. Floats of any size and precision are sent as written, so
# they are not checked.
_LONG_NUMBERS_DECODER = msgspec.json.Decoder(_TaskOfAnyData, float_hook=lambda text: None)


class DataReader(Generic[_Data]):
    """Parses `settings.data` of one destination.

    Args:
        struct: its type.
        hints: key to the text that is added to the message when its value is missing or has the wrong type.
    """

    def __init__(self, struct: type[_Data], hints: Mapping[str, str] | None = None) -> None:
        self.struct = struct
        self._decoder = msgspec.json.Decoder(struct)
        self._hints = {f"settings.data.{key}": hint for key, hint in (hints or {}).items()}

    def read(self, task: Task) -> _Data:
        """The data of a task; missing or null data is an empty object. Raises `Refused` if it does not fit the type."""
        data = task.settings.data
        text = data if is_given(data) else Raw(b"{}")
        try:
            return self._decoder.decode(text)
        except msgspec.ValidationError as error:
            raise refusal_of_data(error, bytes(text), self.struct, self._hints) from None


def check_size(raw: bytes, max_bytes: int, what: str) -> None:
    """Raises `Refused` for a text of more than `max_bytes` bytes, which the message calls `what`."""
    if len(raw) > max_bytes:
        raise Refused("too_large", "", f"{what} of at most {max_bytes} bytes is accepted, got {len(raw)}")


def check_depth(raw: bytes) -> None:
    """Raises `Refused` for JSON that is nested more than `MAX_DEPTH` levels deep."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(raw):
        letter = match[0]
        if letter in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise too_deep()
        elif letter in b"]}":
            depth -= 1


def check_text(raw: bytes) -> None:
    """Checks what parsing a task leaves unparsed. Raises `UnicodeDecodeError`, or `DecodeError` for a long number."""
    if not raw.isascii():
        raw.decode()  # msgspec does not check the UTF-8 of what it leaves unparsed
    if len(raw) > MAX_DIGITS:
        _LONG_NUMBERS_DECODER.decode(raw)


def bare(raw: bytes) -> bytes:
    """A JSON text without surrounding white space and without a byte order mark (RFC 8259, section 8.1)."""
    return raw.strip(_SPACE).removeprefix(_BOM).lstrip(_SPACE)


def encode(task: Task | Mapping[str, Any]) -> bytes:
    """The JSON of a task or a dict. Raises `Refused` if a value cannot be written as JSON."""
    try:
        raw = msgspec.json.encode(task)
        lossy = b"null" in raw and _holds_nan(task)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused("wrong_type", "", f"the dict cannot be written as JSON: {error}") from None
    if lossy:
        raise Refused("invalid_value", "", "the dict cannot be written as JSON, which has no NaN and no infinity")
    return raw


def _holds_nan(value: Any) -> bool:
    """Whether a value contains a NaN or an infinity, which msgspec would write as null."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Struct):
        return any(_holds_nan(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return any(map(_holds_nan, value.values()))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_holds_nan, value))


def split_batch(raw: bytes, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Splits a JSON array into the bytes of its elements. Raises `Refused` if it is not a valid array."""
    check_size(raw, max_bytes, "an array")
    if not raw.startswith(b"["):
        raw = bare(raw)
    try:
        return [bytes(element) for element in _BATCH_DECODER.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_text(error, raw, wanted="array of dicts") from None


def check_title(title: str) -> None:
    """Raises `Refused` for a title that is empty or too long."""
    if not title.strip() or len(title) > MAX_TITLE_CHARACTERS:
        got = f"{len(title)}" if title.strip() else "nothing but blanks"
        raise Refused(
            "invalid_value", "title", f"a title of 1 to {MAX_TITLE_CHARACTERS} characters is needed, got {got}"
        )


def check_settings(settings: Settings, at_once: bool) -> tuple[float | None, float | None]:
    """Checks all settings but the data. Returns the delay in seconds and the due instant; one of them is None.

    Args:
        settings: settings of a task.
        at_once: whether a task without `time` and `at` is due at once.

    Raises `Refused`.
    """
    timeout = settings.timeout
    if timeout is not UNSET and not isinstance(timeout, str) and not 0.05 <= timeout <= MAX_TIMEOUT_SECONDS:
        raise Refused(
            "invalid_value",
            "settings.timeout",
            f"seconds from 0.05 to {MAX_TIMEOUT_SECONDS:.0f} are needed, got {timeout:g}",
        )
    if settings.retry is not UNSET:
        check_retry(settings.retry)
    if settings.expires is not UNSET:
        _check_expires(settings.expires)
    if settings.flow is not UNSET:
        check_flow(settings.flow)
    if settings.queue is not UNSET:
        check_name(settings.queue)
    if settings.id is not UNSET and not _ID.fullmatch(settings.id):
        raise Refused("invalid_value", "settings.id", "an id is 1 to 200 printable ASCII characters without blanks")
    if settings.at is not UNSET:
        if settings.time is not UNSET:
            raise Refused("invalid_value", "settings.at", "give either time (a delay) or at (an instant), not both")
        return None, parse_instant(settings.at)
    if settings.time is not UNSET:
        return check_delay(settings.time), None
    if at_once:
        return 0.0, None
    raise Refused(
        "missing_field", "settings.time", "a delay in seconds is needed (0 for at once), or an instant in settings.at"
    )


def _check_expires(expires: float | str) -> None:
    if isinstance(expires, str):
        parse_instant(expires, "settings.expires")
    elif not 0 < expires <= MAX_DELAY_SECONDS:
        words = f"seconds after due, more than 0 and at most {MAX_DELAY_SECONDS:.0f}, are needed, got {expires:g}"
        raise Refused("invalid_value", "settings.expires", words)
