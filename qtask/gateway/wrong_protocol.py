"""Recognizes clients of the socket that speak another protocol: HTTP, TLS, other binary data. Pure."""

from __future__ import annotations

import re

from qtask.model.errors import Refused
from qtask.model.rejection import refusal_of_form

# The request line of any method: a web page can POST lines of JSON to any port.
_HTTP_REQUEST = re.compile(rb"(?:GET|POST|PUT|HEAD|OPTIONS|DELETE|PATCH|CONNECT) |[!#$%&'*+.^_`|~\w-]+ +\S+ +HTTP/\d")

# Bytes that can begin neither JSON nor a byte order mark nor white space: TLS, UTF-16 and gzip begin with them. The
# bytes after them are ignored, because a TLS session ticket (which a web page can choose) may hold lines of JSON.
_BINARY = (frozenset(range(0x21)) | frozenset(range(0x7F, 0x100))) - frozenset(b" \t\r\n\xef")

is_http_request = _HTTP_REQUEST.match


def binary_refusal(data: bytes) -> Refused | None:
    """The reason to refuse a connection whose first bytes are `data`; None when they may begin JSON."""
    if data[0] not in _BINARY:
        return None
    binary = Refused("wrong_protocol", "", "this port speaks JSON lines in UTF-8, got binary data")
    return refusal_of_form(data) or binary


class HttpRefused(Refused):
    """The client sent an HTTP request.

    Args:
        port: where HTTP is spoken.
    """

    def __init__(self, port: int) -> None:
        super().__init__("wrong_protocol", "", f"this port speaks JSON lines; HTTP is spoken on port {port}")
