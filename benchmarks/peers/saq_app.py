"""SAQ, whose schedule has whole seconds."""

# mypy: disable-error-code="import-not-found"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from typing import Any

from saq import Queue

from benchmarks.peers.aiohttp_post import each, post
from benchmarks.plan import Task, concurrency, redis_url

queue = Queue.from_url(redis_url())


async def deliver(context: Any, *, path: str) -> None:
    """The job."""
    await post(path)


settings = {"queue": queue, "functions": [deliver], "concurrency": concurrency()}


async def submit(tasks: list[Task]) -> None:
    """`enqueue` with `scheduled` in whole seconds, a hundred calls at once."""

    async def enqueue(due: float, path: str) -> None:
        await queue.enqueue("deliver", path=path, scheduled=int(due))

    await queue.connect()
    await each(tasks, enqueue)
    await queue.disconnect()
