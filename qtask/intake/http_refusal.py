"""A complete HTTP response as bytes, for places without an HTTP server to build one."""

from __future__ import annotations

from http import HTTPStatus

from qtask.intake.intake import encode_answer
from qtask.model.errors import Refused

# In every response, so that no browser takes it for a script or a page, whatever text of a task it contains.
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")


def http_refusal(status: HTTPStatus, refused: Refused) -> bytes:
    """A refusal as an HTTP/1.1 response, after which the connection is closed."""
    body = encode_answer(refused) + b"\n"
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        ": ".join(NO_SNIFFING),
        "Connection: close",
    ]
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        lines.append("Retry-After: 1")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
