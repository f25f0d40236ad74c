"""Reads and checks the dict that QTask accepts: whatever a client sends comes through here before it is stored.

What `settings.data` may hold depends on `address.type`, so a task is read in two steps: its frame by msgspec (a
tagged union on `address.type`), then the data of its kind. Nothing here touches the network, Redis or the clock.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct

from qtask.model import link
from qtask.model.errors import Refused
from qtask.model.rejection import refusal_of_data, refusal_of_text, too_deep
from qtask.model.retry import check_retry
from qtask.model.task import (
    MAX_BYTES,
    MAX_DATAGRAM_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_TIMEOUT_SECONDS,
    MAX_TITLE_CHARACTERS,
    Address,
    GraphAddress,
    HttpAddress,
    HttpData,
    PipeAddress,
    PipeData,
    SocketAddress,
    Task,
    UdpAddress,
    is_given,
)
from qtask.model.timing import MAX_DELAY_SECONDS, check_delay, parse_instant


class Checked(Struct, frozen=True):
    """A task that passed every check, ready to be stored.

    Attributes:
        task: the task itself.
        body: its JSON on one line, in the client's own words.
        delay: seconds from acceptance to due, or None when `instant` is set.
        instant: due as Unix seconds, or None when `delay` is set.
    """

    task: Task
    body: bytes
    delay: float | None
    instant: float | None


_Data = TypeVar("_Data", HttpData, PipeData)
_TASK_DECODER = msgspec.json.Decoder(Task)
_HTTP_DECODER = msgspec.json.Decoder(HttpData)
_PIPE_DECODER = msgspec.json.Decoder(PipeData)
_BATCH_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_ID = re.compile(r"[!-~]{1,200}", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"})  # the usual ones, for which nobody need look
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# A string that never ends is taken to the end of the text, so that no byte is looked at twice.
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class _SettingsOfAnyData(Struct, frozen=True):
    data: Any = None


class _TaskOfAnyData(Struct, frozen=True):
    settings: _SettingsOfAnyData = _SettingsOfAnyData()


# Reads the data as well, and so finds the integers that are too long. Floats of any size and precision are sent as
# they stand, so they are not looked at.
_LONG_NUMBERS_DECODER = msgspec.json.Decoder(_TaskOfAnyData, float_hook=lambda text: None)
_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
# What frames a message on the wire is the transport's to say; a client that could set it could smuggle requests.
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})
_RESERVED_PREFIX = "qtask-"  # of the headers by which receivers recognise duplicates; see docs/retries.md


def parse(raw: bytes, max_bytes: int = MAX_BYTES) -> Checked:
    """Reads and checks one dict.

    Args:
        raw: one JSON object in UTF-8, in any layout; a byte order mark before it is ignored.
        max_bytes: the largest dict to accept.

    Raises `Refused`, which names the field, what is wrong and what would be right.
    """
    _check_size(raw, max_bytes, "a dict")
    _check_depth(raw)
    if not raw.startswith(b"{"):
        raw = bare(raw)
    try:
        task = _TASK_DECODER.decode(raw)
        if not raw.isascii():
            raw.decode()  # msgspec does not check the UTF-8 of what it leaves as it is
        if len(raw) > MAX_DIGITS:
            _LONG_NUMBERS_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_text(error, raw) from None
    delay, instant = _check(task)
    return Checked(task, msgspec.json.format(raw, indent=-1), delay, instant)


def bare(raw: bytes) -> bytes:
    """A JSON text without the white space around it and the byte order mark before it (RFC 8259, section 8.1)."""
    return raw.strip(_SPACE).removeprefix(_BOM).lstrip(_SPACE)


def check_task(task: Task | Mapping[str, Any], max_bytes: int = MAX_BYTES) -> Checked:
    """As `parse`, for a `Task` or a dict that Python code made. Raises `Refused`."""
    return parse(encode(task), max_bytes)


def encode(task: Task | Mapping[str, Any]) -> bytes:
    """The JSON of a task or a dict. Raises `Refused` when something in it cannot be written as JSON."""
    try:
        raw = msgspec.json.encode(task)
        lossy = b"null" in raw and _holds_nan(task)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused("wrong_type", "", f"the dict cannot be written as JSON: {error}") from None
    if lossy:
        raise Refused("invalid_value", "", "the dict cannot be written as JSON: that has no NaN and no infinity")
    return raw


def _holds_nan(value: Any) -> bool:
    """Whether a NaN or an infinity is somewhere in it; msgspec would write null for it."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Struct):
        return any(_holds_nan(getattr(value, name)) for name in value.__struct_fields__)
    if isinstance(value, Mapping):
        return any(map(_holds_nan, value.values()))
    return isinstance(value, list | tuple | set | frozenset) and any(map(_holds_nan, value))


def split_batch(raw: bytes, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Splits a JSON array into the bytes of its elements. Raises `Refused` when it is not a valid array."""
    _check_size(raw, max_bytes, "an array")
    if not raw.startswith(b"["):
        raw = bare(raw)
    try:
        return [bytes(element) for element in _BATCH_DECODER.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_text(error, raw, wanted="array of dicts") from None


def _check_size(raw: bytes, max_bytes: int, what: str) -> None:
    if len(raw) > max_bytes:
        raise Refused("too_large", "", f"{what} of at most {max_bytes} bytes is accepted, got {len(raw)}")


def _check_depth(raw: bytes) -> None:
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


def http_data(task: Task) -> HttpData:
    """The data of an `http` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return _read(data, _HTTP_DECODER) if is_given(data) else HttpData()


def pipe_data(task: Task) -> PipeData:
    """The data of a `pipe` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return _read(data if is_given(data) else Raw(b"{}"), _PIPE_DECODER)


def _read(data: Raw, decoder: msgspec.json.Decoder[_Data]) -> _Data:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise refusal_of_data(error, bytes(data), decoder.type) from None


def _check(task: Task) -> tuple[float | None, float | None]:
    if not task.title.strip() or len(task.title) > MAX_TITLE_CHARACTERS:
        got = f"{len(task.title)}" if task.title.strip() else "nothing but blanks"
        raise Refused(
            "invalid_value", "title", f"a title of 1 to {MAX_TITLE_CHARACTERS} characters is needed, got {got}"
        )
    settings = task.settings
    _KIND_CHECKS[type(task.address)](task)
    if settings.timeout is not UNSET and not 0.05 <= settings.timeout <= MAX_TIMEOUT_SECONDS:
        raise Refused(
            "invalid_value",
            "settings.timeout",
            f"seconds from 0.05 to {MAX_TIMEOUT_SECONDS:.0f} are needed, got {settings.timeout:g}",
        )
    if settings.retry is not UNSET:
        check_retry(settings.retry)
    if settings.expires is not UNSET:
        _check_expires(settings.expires)
    if settings.id is not UNSET and not _ID.fullmatch(settings.id):
        raise Refused("invalid_value", "settings.id", "an id is 1 to 200 printable ASCII characters without blanks")
    if settings.at is not UNSET:
        if settings.time is not UNSET:
            raise Refused(
                "invalid_value", "settings.at", "either time (a delay) or at (an instant) says when; leave one out"
            )
        return None, parse_instant(settings.at)
    if settings.time is not UNSET:
        return check_delay(settings.time), None
    if isinstance(task.address, GraphAddress):
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


def _check_http(task: Task) -> None:
    assert isinstance(task.address, HttpAddress)
    link.check_http(task.address.link)
    data = http_data(task)
    if data.method not in _METHODS and not _is_method(data.method):
        raise Refused(
            "invalid_value",
            "settings.data.method",
            f"an HTTP method such as GET or POST is needed, got {data.method[:40]!r}",
        )
    if isinstance(data.headers, dict):
        _check_headers(data.headers)
    if data.data is not UNSET or data.body_base64 is not UNSET:
        _check_bodies(data)


def _is_method(method: str) -> bool:
    return bool(_TOKEN.fullmatch(method)) and len(method) <= 32 and method.upper() != "CONNECT"


def _check_bodies(data: HttpData) -> None:
    bodies = ["json"] if is_given(data.json) else []
    bodies += [key for key in ("data", "body_base64") if getattr(data, key) not in (UNSET, None)]
    if len(bodies) > 1:
        raise Refused(
            "invalid_value",
            f"settings.data.{bodies[1]}",
            f"one body is sent, but both {bodies[0]} and {bodies[1]} are given; leave one out",
        )
    if data.body_base64 is not UNSET:
        decode_base64(data.body_base64)


def decode_base64(text: str) -> bytes:
    """The bytes of `settings.data.body_base64`. Raises `Refused` when it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("invalid_value", "settings.data.body_base64", f"base64 is needed: {error}") from None


def _check_headers(headers: dict[str, str]) -> None:
    for name, value in headers.items():
        _check_header(name, value)
    if len({name.lower() for name in headers}) < len(headers):
        raise Refused("invalid_value", "settings.data.headers", "a header is given once, in capitals or not")


def _check_header(name: str, value: str) -> None:
    field = f"settings.data.headers.{name[:60]}"
    if not _TOKEN.fullmatch(name):
        raise Refused(
            "invalid_value",
            "settings.data.headers",
            f"{name[:60]!r} is no name of a header; letters, digits and '-' make one",
        )
    # CGI and WSGI receivers cannot tell an underscore from a hyphen (RFC 3875, section 4.1.18), so neither does this.
    plain = name.lower().replace("_", "-")
    if plain in _FRAMING_HEADERS:
        raise Refused("invalid_value", field, "this header frames the message and is set by QTask; leave it out")
    if plain.startswith(_RESERVED_PREFIX):
        raise Refused(
            "invalid_value",
            field,
            "names that begin with QTask- are reserved for QTask's own headers; use another name",
        )
    if _CONTROL.search(value):
        raise Refused("invalid_value", field, "a header has no line breaks or control characters; leave them out")
    if value != value.strip(" \t"):
        raise Refused("invalid_value", field, "a header neither begins nor ends with a blank; leave it out")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("invalid_value", field, "a header is Latin-1 text; percent-encode the rest") from None


def _check_socket(task: Task) -> None:
    assert isinstance(task.address, SocketAddress)
    link.parse_socket(task.address.link)
    if task.settings.data is UNSET:
        raise Refused("missing_field", "settings.data", "what the socket is sent is needed; any JSON will do")


def _check_udp(task: Task) -> None:
    assert isinstance(task.address, UdpAddress)
    if link.parse_socket(task.address.link).path:
        raise Refused("invalid_value", link.FIELD, "udp wants HOST:PORT, such as 127.0.0.1:5000")
    if task.settings.data is UNSET:
        raise Refused("missing_field", "settings.data", "what the datagram holds is needed; any JSON will do")
    size = len(task.settings.data)
    if size > MAX_DATAGRAM_BYTES:  # with white space that is not sent
        size = len(msgspec.json.format(bytes(task.settings.data), indent=-1))
    if size > MAX_DATAGRAM_BYTES:
        raise Refused(
            "too_large", "settings.data", f"a datagram has at most {MAX_DATAGRAM_BYTES} bytes, this one is {size}"
        )


def _check_pipe(task: Task) -> None:
    assert isinstance(task.address, PipeAddress)
    link.check_pipe(task.address.link)
    pipe_data(task)


def _check_graph(task: Task) -> None:
    data = task.settings.data
    if data is not UNSET and msgspec.json.decode(data) not in (None, {}):
        raise Refused("unknown_field", "settings.data", "a __graph__ takes no data; leave it out")


_KIND_CHECKS: dict[type[Address], Callable[[Task], None]] = {
    HttpAddress: _check_http,
    SocketAddress: _check_socket,
    UdpAddress: _check_udp,
    PipeAddress: _check_pipe,
    GraphAddress: _check_graph,
}
