"""The dict that QTask accepts, and the only reader of it.

A task is a title, an address and settings. What `settings.data` may hold depends on `address.type`, so a task
is read in two steps: its frame by msgspec (a tagged union on `address.type`), then the data of its kind.
Nothing here touches the network, Redis or the clock.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from qtask import link
from qtask.errors import Refused
from qtask.retry import CAUSES, Retry, check_retry
from qtask.timing import MAX_DELAY_SECONDS, check_delay, parse_instant

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_TITLE_CHARACTERS = 500
MAX_DATAGRAM_BYTES = 65_507  # of UDP over IPv4
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 600.0

Kind = Literal["http", "socket", "udp", "pipe", "__graph__"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Scalar = str | int | float | bool  # int beside float, or a long number such as an id would lose its last digits
FormValue = Scalar | list[Scalar] | None


class _Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every part of a task: immutable, strict about unknown keys, silent about defaults."""


class HttpAddress(_Part, frozen=True, tag_field="type", tag="http"):
    """`link`: a URL that begins with http:// or https://."""

    link: str


class SocketAddress(_Part, frozen=True, tag_field="type", tag="socket"):
    """`link`: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""

    link: str


class UdpAddress(_Part, frozen=True, tag_field="type", tag="udp"):
    """`link`: `HOST:PORT` or `[IPv6]:PORT`."""

    link: str


class PipeAddress(_Part, frozen=True, tag_field="type", tag="pipe"):
    """`link`: the name of a FIFO in the pipe folder."""

    link: str


class GraphAddress(_Part, frozen=True, tag_field="type", tag="__graph__"):
    """A graph of how punctual deliveries were; it needs no link."""

    link: str = ""


Address = HttpAddress | SocketAddress | UdpAddress | PipeAddress | GraphAddress


class HttpData(_Part, frozen=True):
    """What an `http` task sends, in the words of requests; at most one of `json`, `data`, `body_base64`.

    Attributes:
        method: any HTTP method; the default is GET.
        headers: a dict of text, or `auto` for the headers of a random current browser.
        params: added to the query of the link; a list repeats its key, null leaves it out.
        json: anything; sent as JSON.
        data: text, or a dict that is sent as a form.
        body_base64: bytes, in base64.
    """

    method: str = "GET"
    headers: dict[str, str] | Literal["auto"] | UnsetType | None = UNSET
    params: dict[str, FormValue] | UnsetType | None = UNSET
    json: Any = UNSET
    data: str | dict[str, FormValue] | UnsetType | None = UNSET
    body_base64: str | UnsetType = UNSET


class PipeData(_Part, frozen=True):
    """What a `pipe` task writes: the JSON of `data`, as one line."""

    data: Any


class Settings(_Part, frozen=True):
    """When and what. Exactly one of `time` and `at`, except for `__graph__`, which is due at once.

    Attributes:
        time: delay in seconds before the delivery; fractions count.
        at: instant of the delivery instead: ISO 8601 with a zone, or Unix seconds.
        data: what is sent; its form depends on `address.type`.
        timeout: seconds that one delivery may take in all; 30 when left out.
        retry: how often and when a failed delivery is tried again.
        expires: seconds after due, or an instant in ISO 8601 with a zone, from which on no delivery begins.
        id: chosen by the client: a second submission of the same id is answered with the first and does nothing.
    """

    time: float | UnsetType = UNSET
    at: float | str | UnsetType = UNSET
    data: Any = UNSET
    timeout: float | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    expires: float | str | UnsetType = UNSET
    id: str | UnsetType = UNSET


class Task(_Part, frozen=True):
    """One dict that QTask accepts: `{"title": …, "address": {…}, "settings": {…}}`."""

    title: str
    address: Address
    settings: Settings = Settings()

    @property
    def kind(self) -> Kind:
        """`address.type`."""
        return self.address.__struct_config__.tag  # type: ignore[return-value]

    @property
    def timeout(self) -> float:
        """Seconds that one delivery may take in all."""
        timeout = self.settings.timeout
        return DEFAULT_TIMEOUT_SECONDS if timeout is UNSET else timeout


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
_BATCH_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_ID = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# A string that never ends is taken to the end of the text, so that no byte is looked at twice.
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_BOM = b"\xef\xbb\xbf"
# What frames a message on the wire is the transport's to say; a client that could set it could smuggle requests.
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})


def parse(raw: bytes, max_bytes: int = MAX_BYTES) -> Checked:
    """Reads and checks one dict.

    Args:
        raw: one JSON object in UTF-8, in any layout.
        max_bytes: the largest dict to accept.

    Raises `Refused`, which names the field, what is wrong and what would be right.
    """
    _check_size(raw, max_bytes, "a dict")
    _check_depth(raw)
    raw = raw.removeprefix(_BOM)
    try:
        task = _TASK_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, raw) from None
    delay, instant = _check(task)
    return Checked(task, msgspec.json.format(raw, indent=-1), delay, instant)


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
    """Splits a JSON array into the bytes of its elements. Raises `Refused` when it is not a sound array."""
    _check_size(raw, max_bytes, "an array")
    try:
        return [bytes(element) for element in _BATCH_DECODER.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, raw, wanted="array of dicts") from None


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
                raise _too_deep()
        elif letter in b"]}":
            depth -= 1


def _too_deep() -> Refused:
    return Refused("too_deep", "", f"a dict is nested at most {MAX_DEPTH} levels deep; send what is deeper as text")


def http_data(task: Task) -> HttpData:
    """The data of an `http` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return HttpData() if data is UNSET or data is None else _convert(data, HttpData)


def pipe_data(task: Task) -> PipeData:
    """The data of a `pipe` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return _convert({} if data is UNSET or data is None else data, PipeData)


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
        raise Refused("invalid_value", "settings.id", "an id is 1 to 100 letters, digits, '-' or '_'")
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


def expiry_of(task: Task, due: float) -> float:
    """The instant from which on no delivery of a task begins, in Unix seconds; infinity when there is none.

    Args:
        task: one that was accepted.
        due: its due instant in Unix seconds.
    """
    expires = task.settings.expires
    if expires is UNSET:
        return float("inf")
    return parse_instant(expires) if isinstance(expires, str) else due + expires


def _check_http(task: Task) -> None:
    assert isinstance(task.address, HttpAddress)
    link.check_http(task.address.link)
    data = http_data(task)
    if not _TOKEN.fullmatch(data.method) or len(data.method) > 32 or data.method.upper() == "CONNECT":
        raise Refused(
            "invalid_value",
            "settings.data.method",
            f"an HTTP method such as GET or POST is needed, got {data.method[:40]!r}",
        )
    if isinstance(data.headers, dict):
        _check_headers(data.headers)
    bodies = [key for key in ("json", "data", "body_base64") if getattr(data, key) not in (UNSET, None)]
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
    if name.lower() in _FRAMING_HEADERS:
        raise Refused("invalid_value", field, "this header frames the message and is set by QTask; leave it out")
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
    size = len(encode_data(task.settings.data))
    if size > MAX_DATAGRAM_BYTES:
        raise Refused(
            "too_large", "settings.data", f"a datagram has at most {MAX_DATAGRAM_BYTES} bytes, this one is {size}"
        )


def encode_data(data: Any) -> bytes:
    """What is sent for `settings.data`: its JSON."""
    return msgspec.json.encode(data)


def _check_pipe(task: Task) -> None:
    assert isinstance(task.address, PipeAddress)
    link.check_pipe(task.address.link)
    pipe_data(task)


def _check_graph(task: Task) -> None:
    if task.settings.data not in (UNSET, None, {}):
        raise Refused("unknown_field", "settings.data", "a __graph__ takes no data; leave it out")


_KIND_CHECKS: dict[type[Address], Callable[[Task], None]] = {
    HttpAddress: _check_http,
    SocketAddress: _check_socket,
    UdpAddress: _check_udp,
    PipeAddress: _check_pipe,
    GraphAddress: _check_graph,
}


# --- msgspec's words into ours -------------------------------------------------------------------------------

_PATH = r"(?: - at `(?P<path>\$[^`]*)`)?"
_MALFORMED = re.compile(r"JSON is malformed: (?P<what>.*) \(byte (?P<position>\d+)\)")
_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`" + _PATH)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`" + _PATH, re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]*)`(?:, got `(?P<got>[^`]*)`)?" + _PATH)
_BAD_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*?)" + _PATH, re.DOTALL)
_OUT_OF_RANGE = re.compile(r"(?:Number|Integer value) out of range" + _PATH)
_WORDS = {  # in the order in which they are told
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list […]",
    "object": "an object {…}",
    "null": "null",
}
_KEYS_OF = {
    "": Task.__struct_fields__,
    "address": ("type", "link"),
    "settings": Settings.__struct_fields__,
    "settings.retry": Retry.__struct_fields__,
}
_HINTS = {
    "title": "; the name of the task",
    "address": '; {"type": …, "link": …}',
    "address.type": f"; one of {', '.join(KINDS)}",
    "address.link": "; http: a URL, socket and udp: HOST:PORT, pipe: the name of the pipe",
    "settings": '; {"time": …, "data": …}',
    "settings.time": "; a delay in seconds, such as 90 or 1.5",
    "settings.at": "; Unix seconds, or an instant such as 2026-12-24T18:00:00+01:00",
    "settings.timeout": f"; seconds, up to {MAX_TIMEOUT_SECONDS:.0f}",
    "settings.retry": '; {"attempts": 5, "backoff": "exponential", …}',
    "settings.retry.backoff": "; exponential, linear, fixed, or a list of seconds",
    "settings.retry.on": f"; a list of statuses and of {', '.join(CAUSES)}",
    "settings.expires": "; seconds after due, or an instant such as 2026-12-24T18:00:00+01:00",
    "settings.id": "; text of your choosing",
    "settings.data.method": "; an HTTP method such as GET or POST",
    "settings.data.headers": "; a dict of text, or auto for a browser's headers",
    "settings.data.params": "; a dict of text, numbers, or lists of them",
    "settings.data.data": "; text or a form for http, any JSON for pipe",
    "settings.data.body_base64": "; bytes in base64",
}


def _convert(data: Any, kind: type[_Data]) -> _Data:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        words = str(error)
    name = _culprit(data, kind) if "[...]" in words else ""
    raise _invalid(words, "settings.data", kind.__struct_fields__, name)


def _culprit(data: dict[str, Any], kind: type[_Data]) -> str:
    """The first name with a value that does not fit, in a dict such as `headers`: msgspec does not tell it."""
    for key, names in data.items():
        for name, value in islice(names.items(), 1_000) if isinstance(names, dict) else ():
            try:
                msgspec.convert({key: {name: value}}, kind)
            except msgspec.ValidationError as error:
                if "[...]" in str(error):
                    return str(name)
    return ""


def _refusal(error: Exception, raw: bytes, wanted: str = "object") -> Refused:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return Refused("invalid_json", "", f"JSON is written in UTF-8, where byte {byte:#04x} cannot stand as it does")
    if isinstance(error, RecursionError):
        return _too_deep()
    words = str(error)
    if isinstance(error, msgspec.ValidationError):
        return _invalid(words, "")
    if not raw.strip():
        return Refused("invalid_json", "", f"one JSON {wanted} is needed, got nothing")
    if (match := _MALFORMED.fullmatch(words)) is None and (match := _MALFORMED.fullmatch(_lengthened(raw))) is None:
        return Refused("invalid_json", "", f"one JSON {wanted} is needed; the text ends before it is complete")
    what, position = match["what"], int(match["position"])
    near = raw[max(0, position - 12) : position + 12].decode("utf-8", "replace")
    hint = _hint_at(what, raw, position)
    return Refused("invalid_json", "", f"one JSON {wanted} is needed; {what} at byte {position}, near {near!r}{hint}")


def _hint_at(what: str, raw: bytes, position: int) -> str:
    """Where the JSON itself is broken, msgspec says what it met, but not how people get there."""
    if what == "trailing characters":
        return "; one dict a line, or several in an array"
    if what == "object keys must be strings":
        return "; keys stand in double quotes"
    if what == "invalid number" or (what == "invalid character" and raw[position : position + 1] in (b"+", b".")):
        return "; JSON's numbers have no plus sign, no leading zeros, and digits on both sides of the point"
    if re.match(rb"True|False|None", raw[position:]):
        return "; JSON's words are true, false and null"
    if re.match(rb"NaN|-?Infinity", raw[position:]) or raw[position - 1 :].startswith(b"-Infinity"):
        return "; JSON has no NaN and no infinity"
    met = raw[position : position + 1]
    if met and met < b" ":
        return "; JSON's text has control characters only as escapes such as \\n"
    return "; JSON is written in UTF-8" if met >= b"\x80" else ""


def _lengthened(raw: bytes) -> str:
    """What msgspec says to a text that has room behind it: half a surrogate pair near the end looks cut off."""
    try:
        msgspec.json.decode(raw + b" " * 12)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    return ""


def _invalid(words: str, base: str, keys: tuple[str, ...] = (), name: str = "") -> Refused:
    if match := _MISSING.fullmatch(words):
        field = _path(base, match["path"], name, match["key"])
        return Refused("missing_field", field, f"{match['key']} is needed{_HINTS.get(field, '')}")
    if match := _UNKNOWN.fullmatch(words):
        place = _path(base, match["path"], name)
        known = ", ".join(keys or _KEYS_OF.get(place, ()))
        return Refused(
            "unknown_field",
            _path(base, match["path"], name, match["key"][:60]),
            f"{match['key'][:60]!r} is no key of {place or 'a task'}; its keys are: {known}",
        )
    if match := _EXPECTED.fullmatch(words):
        field = _path(base, match["path"], name)
        got = f", got {_WORDS.get(match['got'], match['got'])}" if match["got"] else ""
        hint = f"; its keys are: {', '.join(keys)}" if keys and field == base else _HINTS.get(field, "")
        return Refused("wrong_type", field, f"{_wanted(match['wanted'])} is needed{got}{hint}")
    if match := _OUT_OF_RANGE.fullmatch(words):
        limits = "a number goes up to 1.7e308, a whole one up to 4,300 digits; write larger ones as text"
        return Refused("invalid_value", _path(base, match["path"], name), limits)
    if match := _BAD_VALUE.fullmatch(words):
        field = _path(base, match["path"], name)
        return Refused("invalid_value", field, f"{match['value'][:60]} is not possible here{_HINTS.get(field, '')}")
    return Refused("invalid_value", base, words)


def _wanted(types: str) -> str:
    """`float | str | int` → `text or a number`."""
    wanted = set(types.split(" | "))
    if "float" in wanted:
        wanted.discard("int")
    return " or ".join(told for word, told in _WORDS.items() if word in wanted)


def _path(base: str, path: str | None, name: str, key: str = "") -> str:
    """`$.params[...][2]` below `settings.data`, where the name `page` was at fault → `settings.data.params.page[2]`."""
    inner = re.sub(r"^\$\.?", "", path or "").replace("[...]", f".{name[:60]}" if name else "")
    return ".".join(part for part in (base, inner, key) if part)
