"""The dict that QTask accepts, as types: a title, an address and settings, and the limits of what they may hold.

What `settings.data` may hold depends on `address.type`, which tells the structs of an address apart. They say of
what type each value is; `qtask.model.validation` reads them from text and holds them to the rest.
"""

from __future__ import annotations

from typing import Literal, TypeGuard, get_args

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from qtask.model.errors import Refused
from qtask.model.retry import Retry
from qtask.model.timing import parse_instant

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_DIGITS = 4_300  # of a whole number: Python reads no longer ones, and a stock `rq worker` reads tasks with it
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
        json: the JSON text that is sent, as the client wrote it; null means none.
        data: text, or a dict that is sent as a form.
        body_base64: bytes, in base64.
    """

    method: str = "GET"
    headers: dict[str, str] | Literal["auto"] | UnsetType | None = UNSET
    params: dict[str, FormValue] | UnsetType | None = UNSET
    json: Raw | UnsetType = UNSET
    data: str | dict[str, FormValue] | UnsetType | None = UNSET
    body_base64: str | UnsetType = UNSET


class PipeData(_Part, frozen=True):
    """What a `pipe` task writes: the JSON text of `data`, as one line."""

    data: Raw


class Settings(_Part, frozen=True):
    """When and what. Exactly one of `time` and `at`, except for `__graph__`, which is due at once.

    Attributes:
        time: delay in seconds before the delivery; fractions count.
        at: instant of the delivery instead: ISO 8601 with a zone, or Unix seconds.
        data: the JSON text of what is sent, as the client wrote it; its form depends on `address.type`.
        timeout: seconds that one delivery may take in all; 30 when left out.
        retry: how often and when a failed delivery is tried again.
        expires: seconds after due, or an instant in ISO 8601 with a zone, from which on no delivery begins.
        id: chosen by the client: a second submission of the same id is answered with the first and does nothing.
    """

    time: float | UnsetType = UNSET
    at: float | str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
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


_NULL = Raw(b"null")


def is_given(data: Raw | UnsetType) -> TypeGuard[Raw]:
    """Whether a value is there and is not null."""
    return data is not UNSET and data != _NULL


def json_text(data: Raw | UnsetType) -> bytes:
    """The JSON that is sent for a value: the client's own text, on one line.

    Numbers, escapes and keys stay as they were written. White space outside of strings is removed if the text has
    several lines, as a task written by another program may have.

    Raises `Refused` when there is no value.
    """
    if data is UNSET:
        raise Refused("missing_field", "settings.data", "there is no data to send; any JSON will do")
    text = bytes(data)
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text
