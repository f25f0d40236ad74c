"""TLS without a socket: bytes in, bytes out; the caller reads and writes."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

_CHUNK_BYTES = 65_536


def trusting(authorities: Path) -> ssl.SSLContext:
    """A context for clients. Raises `OSError` if the file or folder of authorities cannot be read.

    Args:
        authorities: as `ca_bundle` returns it.
    """
    if authorities.is_dir():
        return ssl.create_default_context(capath=str(authorities))
    return ssl.create_default_context(cafile=str(authorities))


class Tls:
    """The client's side of one connection.

    Args:
        context: has the trusted authorities.
        host: the name that the certificate must have.
    """

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._received = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._received, self._out, server_hostname=host)
        self.established = False
        self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """Takes received bytes; returns what they contain for the protocol above. Raises `ssl.SSLError`."""
        self._received.write(data)
        if not self.established:
            self._shake_hands()
        plain = b""
        if self.established:
            with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while chunk := self._object.read(_CHUNK_BYTES):
                    plain += chunk
        return plain

    def send(self, data: bytes) -> None:
        """Encrypts data for `to_send`. Only after the handshake."""
        self._object.write(data)

    def to_send(self) -> bytes:
        """The bytes to write to the socket."""
        return self._out.read()

    def _shake_hands(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._object.do_handshake()
            self.established = True
