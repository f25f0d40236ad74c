"""Checks of requests before they are routed: parts of RFC 9110 and 9112 that h11 and uvicorn leave out."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import h11

from qtask.private.h11 import skip_received

# The absolute form of a request's target (RFC 9112, section 3.2.2), without its query.
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/.*)?", re.IGNORECASE | re.DOTALL)

Headers = list[tuple[bytes, bytes]]


class ServerConnection(h11.Connection):
    """h11's side of one connection, as strict as RFC 9112.

    Attributes:
        fault: why the last request could not be read, for the answer; None when it could.
    """

    def __init__(self, most_head_bytes: int) -> None:
        super().__init__(h11.SERVER, most_head_bytes)
        self.fault: h11.RemoteProtocolError | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As in h11. Raises `h11.RemoteProtocolError`, and keeps it as `fault`."""
        try:
            if self.their_state is h11.IDLE:
                self._skip_empty_lines()
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check(event)
        except h11.RemoteProtocolError as error:
            self.fault = error
            raise
        return event

    def _skip_empty_lines(self) -> None:
        """Some clients send a line break after a body, beyond its length (RFC 9112, section 2.2)."""
        received = self.trailing_data[0]
        if blank := len(received) - len(received.lstrip(b"\r\n")):
            skip_received(self, blank)


def _check(request: h11.Request) -> None:
    if not request.http_version.startswith(b"1."):
        version = request.http_version.decode("ascii")
        raise h11.RemoteProtocolError(f"HTTP/{version} is not spoken here", error_status_hint=505)
    names = {name for name, _ in request.headers}
    if {b"transfer-encoding", b"content-length"} <= names:
        # They may disagree about the end of the request, and a proxy before us may use the other one (section 6.1).
        raise h11.RemoteProtocolError("Transfer-Encoding and Content-Length exclude each other")


def split_target(raw_path: bytes, headers: Headers) -> tuple[str, str]:
    """The authority of a request, and the path for routing.

    Args:
        raw_path: the request's target without its query, in origin form or absolute form.
        headers: with names in lower case; `Host` counts unless the target names a host itself.

    The path's segments are percent-encoded in one way, so that an id may hold a slash. A slash at the end is removed.
    """
    authority = next((value for name, value in headers if name == b"host"), b"")
    if (absolute := _ABSOLUTE.fullmatch(raw_path)) is not None:
        authority, raw_path = absolute[1], absolute[2] or b"/"
    if raw_path == b"*":  # OPTIONS of the server as a whole
        return authority.decode("latin-1"), "*"
    path = "/".join(quote(unquote_to_bytes(segment), safe="") for segment in raw_path.split(b"/"))
    return authority.decode("latin-1"), path.removesuffix("/") or "/"


def other_codings(values: list[str]) -> list[str]:
    """The content codings in `Content-Encoding` fields, without `identity` (RFC 9110, section 8.4)."""
    codings = (coding.strip().lower() for value in values for coding in value.split(","))
    return [coding for coding in codings if coding not in ("", "identity")]


def is_json(content_types: list[str]) -> bool:
    """Whether `Content-Type` fields say JSON: `application/json` or `application/ANYTHING+json` (RFC 6839).

    A web page needs a preflight to send these to another origin. All fields have to say so. Parameters such as
    `charset` have no meaning for JSON (RFC 8259, section 11).
    """
    kinds = [value.partition(";")[0].strip().lower() for value in content_types]
    return bool(kinds) and all(re.fullmatch(r"application/(?:[\w.!#$&^-]+\+)?json", kind, re.ASCII) for kind in kinds)


def as_scope(scope: dict[str, Any], path: str) -> dict[str, Any]:
    """An ASGI scope with another path."""
    return {**scope, "path": path, "raw_path": path.encode("ascii")}
