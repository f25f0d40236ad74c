"""The dict that QTask accepts, and the only reader of it.

A task is a title, an address and settings. What `settings.data` may hold depends on `address.type`, so a task
is read in two steps: its frame by msgspec (a tagged union on `address.type`), then the data of its kind.
Nothing here touches the network, Redis or the clock.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType

from qtask import link
from qtask.errors import Refused
from qtask.retry import Retry, check_retry
from qtask.timing import MAX_DELAY_SECONDS, check_delay, parse_instant

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_TITLE_CHARACTERS = 500
MAX_DATAGRAM_BYTES = 65_507  # of UDP over IPv4
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 600.0

Kind = Literal["http", "socket", "udp", "pipe", "__graph__"]
KINDS: tuple[Kind, ...] = get_args(Kind)


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
    params: dict[str, str | float | bool | list[str | float | bool] | None] | UnsetType | None = UNSET
    json: Any = UNSET
    data: str | dict[str, str | float | bool | list[str | float | bool] | None] | UnsetType | None = UNSET
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
# What frames a message on the wire is the transport's to say; a client that could set it could smuggle requests.
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})


def parse(raw: bytes, max_bytes: int = MAX_BYTES) -> Checked:
    """Reads and checks one dict.

    Args:
        raw: one JSON object in UTF-8, in any layout.
        max_bytes: the largest dict to accept.

    Raises `Refused`, which names the field, what is wrong and what would be right.
    """
    check_shape(raw, max_bytes)
    try:
        task = _TASK_DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, "") from None
    delay, instant = _check(task)
    try:
        body = msgspec.json.format(raw, indent=-1)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _refusal(error, "") from None
    return Checked(task, body, delay, instant)


def check_task(task: Task | Mapping[str, Any], max_bytes: int = MAX_BYTES) -> Checked:
    """As `parse`, for a `Task` or a dict that Python code made. Raises `Refused`."""
    return parse(encode(task), max_bytes)


def encode(task: Task | Mapping[str, Any]) -> bytes:
    """The JSON of a task or a dict. Raises `Refused` when something in it cannot be written as JSON."""
    try:
        return msgspec.json.encode(task)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused("wrong_type", "", f"the dict cannot be written as JSON: {error}") from None


def split_batch(raw: bytes, max_bytes: int = MAX_BYTES) -> list[bytes]:
    """Splits a JSON array into the bytes of its elements. Raises `Refused` when it is not a sound array."""
    check_shape(raw, max_bytes)
    try:
        return [bytes(element) for element in _BATCH_DECODER.decode(raw)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(error, "") from None


def check_shape(raw: bytes, max_bytes: int) -> None:
    """Raises `Refused` when a JSON text is larger than `max_bytes` or nested deeper than `MAX_DEPTH`."""
    if len(raw) > max_bytes:
        raise Refused("too_large", "", f"a dict has at most {max_bytes} bytes, got {len(raw)}")
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', raw, re.DOTALL):
        letter = match[0]
        if letter in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused("too_deep", "", f"a dict is nested at most {MAX_DEPTH} levels deep")
        elif letter in b"]}":
            depth -= 1


def http_data(task: Task) -> HttpData:
    """The data of an `http` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return HttpData() if data is UNSET or data is None else _convert(data, HttpData)


def pipe_data(task: Task) -> PipeData:
    """The data of a `pipe` task. Raises `Refused` when it has another form."""
    data = task.settings.data
    return _convert({} if data is UNSET else data, PipeData)


def _check(task: Task) -> tuple[float | None, float | None]:
    if not task.title.strip() or len(task.title) > MAX_TITLE_CHARACTERS:
        raise Refused("invalid_value", "title", f"a title of 1 to {MAX_TITLE_CHARACTERS} characters is needed")
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
                "invalid_value", "settings.at", "either time (a delay) or at (an instant) says when, not both"
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
        for name, value in data.headers.items():
            _check_header(name, value)
    bodies = [key for key in ("json", "data", "body_base64") if getattr(data, key) not in (UNSET, None)]
    if len(bodies) > 1:
        raise Refused(
            "invalid_value",
            f"settings.data.{bodies[1]}",
            f"one body is sent, but both {bodies[0]} and {bodies[1]} are given",
        )
    if data.body_base64 is not UNSET:
        decode_base64(data.body_base64)


def decode_base64(text: str) -> bytes:
    """The bytes of `settings.data.body_base64`. Raises `Refused` when it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("invalid_value", "settings.data.body_base64", f"base64 is needed: {error}") from None


def _check_header(name: str, value: str) -> None:
    field = f"settings.data.headers.{name[:60]}"
    if not _TOKEN.fullmatch(name):
        raise Refused(
            "invalid_value",
            "settings.data.headers",
            f"{name[:60]!r} is no header name; letters, digits and '-' make one",
        )
    if name.lower() in _FRAMING_HEADERS:
        raise Refused("invalid_value", field, "this header frames the message and is set by QTask; leave it out")
    if _CONTROL.search(value):
        raise Refused("invalid_value", field, "a header holds no line breaks or control characters")
    if value != value.strip(" \t"):
        raise Refused("invalid_value", field, "a header neither begins nor ends with a space")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("invalid_value", field, "a header holds Latin-1 text; write the rest percent-encoded") from None


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

_MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`(?: - at `(?P<path>.*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`(?: - at `(?P<path>.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]*)`(?:, got `(?P<got>[^`]*)`)?(?: - at `(?P<path>.*)`)?")
_EXPECTED_KEY = re.compile(r"Expected `str` - at `key` in `(?P<path>.*)`")
_BAD_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*?)(?: - at `(?P<path>.*)`)?", re.DOTALL)
_AT_PATH = re.compile(r"(?P<what>.*?) - at `(?P<path>.*)`", re.DOTALL)
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object {…}",
    "array": "a list […]",
    "null": "null",
}
_KEYS_OF = {
    "": Task.__struct_fields__,
    "address": ("type", "link"),
    "settings": Settings.__struct_fields__,
    "settings.data": (),
    "settings.retry": Retry.__struct_fields__,
}


def _convert(data: Any, kind: type[_Data]) -> _Data:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise _refusal(error, "settings.data", kind.__struct_fields__) from None


def _refusal(error: Exception, base: str, keys: tuple[str, ...] = ()) -> Refused:
    words = str(error)
    if isinstance(error, UnicodeDecodeError):
        return Refused(
            "invalid_json", base, f"the text is not UTF-8: byte {error.object[error.start]:#04x} stands where none may"
        )
    if isinstance(error, RecursionError):
        return Refused("too_deep", base, f"a dict is nested at most {MAX_DEPTH} levels deep")
    if not isinstance(error, msgspec.ValidationError):
        if "truncated" in words:
            return Refused("invalid_json", base, "the text ends before the JSON object is complete")
        return Refused("invalid_json", base, f"one JSON object in UTF-8 is needed; {words}")
    if match := _MISSING.fullmatch(words):
        field = _path(base, match["path"], match["key"])
        return Refused("missing_field", field, f"{match['key']} is needed{_HINTS.get(field, '')}")
    if match := _UNKNOWN.fullmatch(words):
        place = _path(base, match["path"])
        known = ", ".join(keys or _KEYS_OF.get(place, ())) or "none"
        return Refused(
            "unknown_field",
            _path(base, match["path"], match["key"][:60]),
            f"{match['key'][:60]!r} is no key of {place or 'a task'}; its keys are: {known}",
        )
    if match := _EXPECTED_KEY.fullmatch(words):
        return Refused("wrong_type", _path(base, match["path"]), "a key is text")
    if match := _EXPECTED.fullmatch(words):
        field = _path(base, match["path"])
        wanted = " or ".join(_WORDS.get(word, word) for word in match["wanted"].split(" | "))
        got = f", got {_WORDS.get(match['got'], match['got'])}" if match["got"] else ""
        return Refused("wrong_type", field, f"{wanted} is needed{got}{_HINTS.get(field, '')}")
    if match := _BAD_VALUE.fullmatch(words):
        field = _path(base, match["path"])
        return Refused("invalid_value", field, f"{match['value'][:60]} is not possible here{_HINTS.get(field, '')}")
    if match := _AT_PATH.fullmatch(words):
        return Refused("invalid_value", _path(base, match["path"]), match["what"].lower())
    return Refused("invalid_value", base, words)


_HINTS = {
    "address.type": f"; one of {', '.join(KINDS)}",
    "address.link": "; http: a URL, socket and udp: HOST:PORT, pipe: the name of the pipe",
    "settings.data.headers": "; a dict of text, or auto for a browser's headers",
    "settings.data.data": "",
    "title": "; the name of the task",
    "address": '; {"type": …, "link": …}',
}


def _path(base: str, path: str | None, key: str = "") -> str:
    inner = re.sub(r"\[\.\.\.\]|^\$\.?", "", path or "")
    return ".".join(part for part in (base, inner, key) if part)
