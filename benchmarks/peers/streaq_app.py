"""streaQ."""

# mypy: disable-error-code="import-not-found, untyped-decorator"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from datetime import UTC, datetime

from streaq import Worker

from benchmarks.peers.aiohttp_post import post
from benchmarks.plan import Task, concurrency, redis_url

_BATCH = 500

worker = Worker(redis_url=redis_url(), concurrency=concurrency())


@worker.task
async def deliver(path: str) -> None:
    """The task."""
    await post(path)


async def submit(tasks: list[Task]) -> None:
    """`enqueue_many`, in batches."""
    async with worker:
        for first in range(0, len(tasks), _BATCH):
            await worker.enqueue_many(
                [
                    deliver.enqueue(path).start(schedule=datetime.fromtimestamp(due, UTC))
                    for due, path in tasks[first : first + _BATCH]
                ]
            )
