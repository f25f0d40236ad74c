"""How the URL of a task is written when it is sent: host names in ASCII, and which characters stay as they are."""

from __future__ import annotations

import idna

SAFE = "!$%&'()*+,/:;=?@~"  # not percent-encoded, as in requests: path and query of RFC 3986, and the percent sign


def ascii_host(host: str) -> str:
    """A host name in ASCII (IDNA 2008, with the mapping of UTS 46). Raises `idna.IDNAError`, a `UnicodeError`."""
    return host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
