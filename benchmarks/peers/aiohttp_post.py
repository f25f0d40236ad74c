"""Delivery of asyncio peers: POST with aiohttp, one `ClientSession` per process, no limit of connections."""

# mypy: disable-error-code="import-not-found"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks.plan import BODY, Task, receiver_url

_sessions: list[aiohttp.ClientSession] = []


async def post(path: str) -> None:
    """Posts the body; raises if the answer is an error."""
    if not _sessions:
        _sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), raise_for_status=True))
    headers = {"Content-Type": "application/json"}
    async with _sessions[0].post(receiver_url() + path, data=BODY, headers=headers) as answer:
        await answer.read()


async def each(tasks: list[Task], submit: Callable[[float, str], Awaitable[object]], at_once: int = 100) -> None:
    """Submits tasks, `at_once` at a time, for clients without batches."""
    for first in range(0, len(tasks), at_once):
        await asyncio.gather(*(submit(due, path) for due, path in tasks[first : first + at_once]))
