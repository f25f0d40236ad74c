"""What an HTTP delivery sends, decided once for both transports, so that receivers cannot tell them apart."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, ready to be put on the wire as it stands.

    Attributes:
        method: as sent.
        url: absolute, percent-encoded, ASCII.
        headers: in the order in which they are sent; Host, Content-Length and Connection are the transport's.
        body: None when there is none.
        timeout: seconds for all of it.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    timeout: float
