"""Limits that the socket and the HTTP API share."""

from __future__ import annotations

TURN = 200  # tasks of one connection that are checked in one turn of the loop
MAX_IN_ARRAY = 10_000  # tasks
ARRAY_FACTOR = 16  # an array may be this many times as large as a task
LINGER_SECONDS = 1.0  # for a client to read its last answers and to close its side
