"""Masks the credentials in a task. Pure.

Redis and deliveries use the real values. Whatever shows a task to a person or a program masks it with this module:
`tasks.show` and `tasks.list_tasks` (for the commands, the gateway's HTTP and the Python client), the logs, and the
default title of a task.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw

MASKED = "***"

NAMES = (
    *("authorization", "proxy-authorization", "cookie", "set-cookie"),
    *("key", "token", "secret", "password", "signature", "sig", "apikey", "passwd"),
    *("*-key", "*-token", "*-secret", "*-password", "*-signature"),
)
"""Headers and query parameters with these names are credentials; see `Mask.hides` for how names are compared."""

_LEAST_SECRET = 4  # characters; replacing a shorter one in an answer would garble the answer
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SEPARATORS = re.compile(r"[^0-9a-z*?]+")
# In any text: the user and password of a URL, and its query parameters (which `;` and `#` separate as well).
_USERINFO = re.compile(r"(?<=://)[^/?#\s\"'<>]*(?=@)")
_PARAMETER = re.compile(r"(?<=[?&;#])([^=&;#?\s\"'<>]{1,200})=([^&;#\s\"'<>]+)")
_OBJECT = msgspec.json.Decoder(dict[str, Raw])

_Step = Callable[[Raw, set[str]], Raw]


class Mask:
    """Replaces credentials with `***`.

    Args:
        more: names of further headers and query parameters that are credentials, such as `X-Session` or `*-Pin`.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._names = frozenset(map(_plain, more)) | frozenset(NAMES)
        self._patterns = tuple(name for name in self._names if "*" in name or "?" in name)
        self.hides = lru_cache(4_096)(self._hides)

    def _hides(self, name: str) -> bool:
        """Whether a header or query parameter of this name is a credential.

        Case does not matter, and `api_key`, `api.key` and `apiKey` are the same name as `api-key`.
        """
        plain = _plain(name)
        return plain in self._names or any(fnmatchcase(plain, pattern) for pattern in self._patterns)

    def text(self, text: str, found: set[str] | None = None) -> str:
        """A text, such as a link or an error message, without the credentials of the URLs in it.

        Args:
            text: any text.
            found: the masked credentials are added to it.
        """
        found = set() if found is None else found
        if "@" in text:
            text = _USERINFO.sub(lambda match: _hide_userinfo(match[0], found), text)
        if "=" in text:
            text = _PARAMETER.sub(lambda match: self._hide_parameter(match, found), text)
        return text

    def task(self, body: bytes) -> tuple[bytes, frozenset[str]]:
        """A task without its credentials, and those credentials.

        Args:
            body: its JSON. Everything that is not masked stays as written, digit by digit.
        """
        found: set[str] = set()
        data = _fields({"headers": self._named, "params": self._named})
        steps: dict[str, _Step] = {
            "title": self._string,
            "address": _fields({"link": self._string}),
            "settings": _fields({"data": data}),
        }
        return bytes(_fields(steps)(Raw(body), found)), frozenset(found)

    def answer(self, text: str, found: Iterable[str]) -> str:
        """An answer without the credentials of its task, which receivers and errors may repeat.

        Args:
            text: an answer or an error message.
            found: the credentials, as `task` returns them.
        """
        for secret in sorted(found, key=len, reverse=True):
            if len(secret) >= _LEAST_SECRET:
                text = text.replace(secret, MASKED)
        return self.text(text)

    def _hide_parameter(self, match: re.Match[str], found: set[str]) -> str:
        name, value = match[1], match[2]
        if not self.hides(unquote(name)):
            return match[0]
        found.update((value, unquote(value)))
        return f"{name}={MASKED}"

    def _string(self, raw: Raw, found: set[str]) -> Raw:
        text = msgspec.json.decode(raw)
        if not isinstance(text, str):
            return raw
        masked = self.text(text, found)
        return raw if masked == text else Raw(msgspec.json.encode(masked))

    def _named(self, raw: Raw, found: set[str]) -> Raw:
        """Masks the members of an object by their names; values that are not credentials may be links."""
        fields = _read_object(raw)
        if fields is None:
            return raw
        for name, value in fields.items():
            if self.hides(name):
                found.update(_forms(msgspec.json.decode(value)))
                fields[name] = Raw(msgspec.json.encode(MASKED))
            else:
                fields[name] = self._string(value, found)
        return Raw(msgspec.json.encode(fields))


@cache
def mask_of(setting: str) -> Mask:
    """The mask for a value of the setting `mask_headers`: further names, separated by commas or blanks."""
    return Mask(name for name in re.split(r"[,\s]+", setting) if name)


def _plain(name: str) -> str:
    return _SEPARATORS.sub("-", _CAPITAL.sub("-", name).lower()).strip("-")


def _hide_userinfo(userinfo: str, found: set[str]) -> str:
    if not userinfo or userinfo == MASKED:
        return userinfo
    plain = unquote(userinfo)
    password = userinfo.partition(":")[2]
    # A delivery sends it as the header Authorization.
    sent = base64.b64encode(plain.encode()).decode()
    found.update(secret for secret in (userinfo, plain, password, unquote(password), sent) if secret)
    return MASKED


def _forms(value: Any) -> Iterable[str]:
    """The texts in which an answer may repeat the value of a header or parameter, such as `xyz` of `Bearer xyz`."""
    for one in value if isinstance(value, list) else [value]:
        if one is None or isinstance(one, bool | dict):
            continue
        text = str(one)
        yield text
        scheme, _, rest = text.partition(" ")
        if rest:
            yield rest.strip()
        if scheme.lower() == "basic":
            try:
                plain = base64.b64decode(rest, validate=True).decode()
            except (binascii.Error, ValueError):
                continue
            yield from (plain, plain.partition(":")[2])


def _fields(steps: dict[str, _Step]) -> _Step:
    """A step for a JSON object, which applies the given steps to the members with these names."""

    def step(raw: Raw, found: set[str]) -> Raw:
        fields = _read_object(raw)
        if fields is None:
            return raw
        changed = False
        for name, inner in steps.items():
            if name in fields:
                value = inner(fields[name], found)
                changed = changed or value is not fields[name]
                fields[name] = value
        return Raw(msgspec.json.encode(fields)) if changed else raw

    return step


def _read_object(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _OBJECT.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # null, `auto`, or the arbitrary data of a socket
