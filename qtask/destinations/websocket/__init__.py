"""`websocket` tasks: connect, send one message, wait for an answer if requested, close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

from msgspec import UNSET, Raw, UnsetType

from qtask.destinations.bodies import body_of_arguments, check_one, content_of, forms_in, given
from qtask.model import link
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import Refused
from qtask.model.headers import TOKEN, check_headers
from qtask.model.task import Address, Part, Task
from qtask.model.validation import DataReader

# The handshake sets them; see RFC 6455, section 4.1.
_HANDSHAKE_HEADERS = ("connection", "upgrade", "host", "sec-websocket-")


class WebSocketAddress(Address, frozen=True, tag_field="type", tag="websocket"):
    """`link`: a URL that begins with ws:// or wss://."""


class WebSocketData(Part, frozen=True):
    """The data of a `websocket` task: a message (exactly one of `json`, `text`, `base64`) and its options.

    Attributes:
        json: any JSON, as a text message.
        text: a text message.
        base64: a binary message, in base64.
        answer: whether to wait for a message, which is the answer.
        headers: of the handshake.
        subprotocol: the one that the receiver must choose.
    """

    json: Raw | UnsetType = UNSET
    text: str | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    answer: bool = False
    headers: dict[str, str] | UnsetType = UNSET
    subprotocol: str | UnsetType = UNSET


class Message(NamedTuple):
    """The message, and how it is sent; `binary` distinguishes a binary message from a text message."""

    content: bytes
    binary: bool
    wants_answer: bool
    headers: dict[str, str]
    subprotocol: str


_READER = DataReader(
    WebSocketData,
    {
        "base64": "; bytes in base64",
        "answer": "; whether to wait for an answer",
        "headers": "; a dict of text",
        "subprotocol": "; a name such as graphql-ws",
    },
)


def message_of(task: Task) -> Message:
    """The message of a `websocket` task. Raises `Refused` if its data has another form."""
    data = _READER.read(task)
    forms = forms_in(data)
    if not forms:
        raise Refused("missing_field", "settings.data", "a message is needed: json, text or base64")
    check_one(forms, "message")
    headers = {} if data.headers is UNSET else data.headers
    _check_headers(headers)
    subprotocol = "" if data.subprotocol is UNSET else data.subprotocol
    if data.subprotocol is not UNSET and not TOKEN.fullmatch(subprotocol):
        words = f"the name of a subprotocol is letters, digits and '-', got {subprotocol[:60]!r}"
        raise Refused("invalid_value", "settings.data.subprotocol", words)
    return Message(content_of(data), data.base64 is not UNSET, data.answer, headers, subprotocol)


def _check_headers(headers: Mapping[str, str]) -> None:
    for name in headers:
        if name.lower().replace("_", "-").startswith(_HANDSHAKE_HEADERS):
            words = "the handshake sets this header; leave it out"
            raise Refused("invalid_value", f"settings.data.headers.{name[:60]}", words)
    check_headers(headers)


def _check(task: Task) -> None:
    link.check_length(task.address.link)
    link.check_url(task.address.link, ("ws", "wss"))
    if "#" in task.address.link:
        raise Refused("invalid_value", link.FIELD, "a WebSocket's URL has no fragment; leave out the # and the rest")
    message_of(task)


def _websocket(
    url: str,
    *,
    json: Any = UNSET,
    data: str | bytes | None = None,
    answer: bool = False,
    headers: Mapping[str, str] | None = None,
    subprotocol: str | None = None,
    **options: Unpack[Options],
) -> Parts:
    """Submits a message for a WebSocket at `ws://…` or `wss://…`: `json` (any JSON) or `data`.

    Args:
        data: text for a text message, bytes for a binary one.
        answer: whether to wait for a message, which is the answer.
        headers: of the handshake.
        subprotocol: the one that the receiver must choose.
    """
    handshake = {"headers": headers, "subprotocol": subprotocol, "answer": answer or None}
    sent = given({**handshake, **body_of_arguments(data)})
    if json is not UNSET:
        sent["json"] = json
    return Parts(url, sent)


def _data_of_flags(flags: Mapping[str, Any], data: Raw | None) -> Any:
    message: dict[str, Any] = {} if data is None else {"json": data}
    if flags["answer"]:
        message["answer"] = True
    return message or UNSET


DESTINATION = Destination(
    name="websocket",
    address=WebSocketAddress,
    link_words="a ws:// URL",
    check=_check,
    place=link.place_of_url,
    flow=link.origin_of_url,
    shorthand=_websocket,
    flag=Flag("--websocket", "URL", "deliver to a WebSocket"),
    flags=(Flag("--answer", "", "with --websocket: wait for an answer"),),
    data_of_flags=_data_of_flags,
    deliverer="qtask.destinations.websocket.deliverer:WebSocketDeliverer",
)
