"""Limits that the socket and the HTTP API share."""

from __future__ import annotations

TURN = 200  # dicts that one connection may have checked in one turn of the loop
MAX_IN_ARRAY = 10_000
ARRAY_FACTOR = 16  # an array may be this many times as large as a dict
LINGER_SECONDS = 1.0  # for a client to take its last answers and to close its side
