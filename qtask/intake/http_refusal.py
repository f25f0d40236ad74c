"""A whole HTTP answer by hand, for where no HTTP server is at work to make one."""

from __future__ import annotations

from http import HTTPStatus

from qtask.intake.intake import encode_answer
from qtask.model.errors import Refused

# Every answer has it: no browser takes one for a script or a page, whatever a task's text looks like.
NO_SNIFFING = ("X-Content-Type-Options", "nosniff")


def http_refusal(status: HTTPStatus, refused: Refused) -> bytes:
    """A refusal as an HTTP/1.1 answer, after which the connection is closed."""
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
