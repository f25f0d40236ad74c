"""h11: received bytes that are not yet parsed."""

from __future__ import annotations

import h11


def skip_received(connection: h11.Connection, count: int) -> None:
    """Discards the first `count` bytes that a connection has received and not yet parsed."""
    connection._receive_buffer.maybe_extract_at_most(count)
