"""The body of a task: how a client method gives it, and how the data of a task names exactly one."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from msgspec import UNSET, Raw, UnsetType

from qtask.model.errors import Refused
from qtask.model.task import decode_base64, json_text

_FORMS = ("json", "text", "base64")


class HasBody(Protocol):
    """Data with a body: any JSON, text, or bytes in base64."""

    @property
    def json(self) -> Raw | UnsetType: ...
    @property
    def text(self) -> str | UnsetType: ...
    @property
    def base64(self) -> str | UnsetType: ...


def forms_in(data: HasBody) -> list[str]:
    """The keys of the bodies that are given: none, or some of `json`, `text` and `base64`, in this order."""
    return [form for form in _FORMS if getattr(data, form) is not UNSET]


def check_one(keys: Sequence[str], noun: str = "body") -> None:
    """Raises `Refused` for more than one body.

    Args:
        keys: those of the bodies that are given, below `settings.data`.
        noun: what the destination calls a body.
    """
    if len(keys) > 1:
        words = f"one {noun} is sent, but both {keys[0]} and {keys[1]} are given; leave one out"
        raise Refused("invalid_value", f"settings.data.{keys[1]}", words)


def content_of(data: HasBody) -> bytes:
    """The bytes of the one body that is given. Raises `Refused` for text that is not base64."""
    if data.text is not UNSET:
        return data.text.encode()
    return json_text(data.json) if data.base64 is UNSET else decode_base64(data.base64, "settings.data.base64")


def body_of_arguments(data: Any, text_key: str = "text", bytes_key: str = "base64") -> dict[str, Any]:
    """The body that the argument `data` of a client method stands for: text as it is, bytes in base64.

    Args:
        data: text or bytes; None gives None.
        text_key, bytes_key: of `settings.data`, for text and for bytes.
    """
    if isinstance(data, bytes | bytearray):
        return {bytes_key: base64.b64encode(data).decode()}
    return {text_key: data}


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a client method that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}
