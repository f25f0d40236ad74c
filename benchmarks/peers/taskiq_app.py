"""taskiq with taskiq-redis: its stream broker, and its schedule source and scheduler."""

# mypy: disable-error-code="import-not-found, untyped-decorator"
# The packages are in a separate environment, which mypy does not see.

from __future__ import annotations

from datetime import UTC, datetime

from taskiq import TaskiqScheduler
from taskiq_redis import ListRedisScheduleSource, RedisStreamBroker

from benchmarks.peers.aiohttp_post import each, post
from benchmarks.plan import Task, redis_url

broker = RedisStreamBroker(url=redis_url())
source = ListRedisScheduleSource(redis_url())
scheduler = TaskiqScheduler(broker, sources=[source])


@broker.task
async def deliver(path: str) -> None:
    """The task."""
    await post(path)


async def submit(tasks: list[Task]) -> None:
    """`schedule_by_time`, a hundred calls at once."""

    async def schedule(due: float, path: str) -> None:
        await deliver.schedule_by_time(source, datetime.fromtimestamp(due, UTC), path)

    await source.startup()
    await each(tasks, schedule)
    await source.shutdown()
