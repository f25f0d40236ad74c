"""arq."""

# mypy: disable-error-code="import-not-found"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.peers.aiohttp_post import each, post
from benchmarks.plan import Task, concurrency, redis_url


async def deliver(context: dict[Any, Any], path: str) -> None:
    """The job."""
    await post(path)


class WorkerSettings:
    """Settings of the `arq` command. Its default `poll_delay` of half a second would add that much lateness."""

    functions = (deliver,)
    redis_settings = RedisSettings.from_dsn(redis_url())
    max_jobs = concurrency()
    poll_delay = 0.05


async def submit(tasks: list[Task]) -> None:
    """`enqueue_job` with `_defer_until`, a hundred calls at once."""
    pool = await create_pool(RedisSettings.from_dsn(redis_url()))

    async def enqueue(due: float, path: str) -> None:
        await pool.enqueue_job("deliver", path, _defer_until=datetime.fromtimestamp(due, UTC))

    await each(tasks, enqueue)
    await pool.aclose()
