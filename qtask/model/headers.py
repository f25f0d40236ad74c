"""Checks the HTTP headers of a task. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from qtask.model.errors import Refused

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Headers that frame a message are set by the transport. A client that could set them could smuggle requests.
_FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect"})
_RESERVED_PREFIX = "qtask-"  # of the headers that let receivers recognise duplicates; see docs/retries.md


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises `Refused` for a header that cannot be sent, or that only QTask may set.

    Args:
        headers: `settings.data.headers`, by name.
    """
    for name, value in headers.items():
        _check_header(name, value)
    if len({name.lower() for name in headers}) < len(headers):
        raise Refused(
            "invalid_value", "settings.data.headers", "each header may be given only once; case does not matter"
        )


def _check_header(name: str, value: str) -> None:
    field = f"settings.data.headers.{name[:60]}"
    if not TOKEN.fullmatch(name):
        raise Refused(
            "invalid_value",
            "settings.data.headers",
            f"{name[:60]!r} is not a valid header name; use letters, digits and '-'",
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
        raise Refused("invalid_value", field, "a header must not contain line breaks or control characters")
    if value != value.strip(" \t"):
        raise Refused("invalid_value", field, "a header must not begin or end with a blank")
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused(
            "invalid_value", field, "a header must be Latin-1 text; percent-encode other characters"
        ) from None
