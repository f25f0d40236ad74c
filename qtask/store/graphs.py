"""Pictures that `__graph__` tasks drew. Each is kept for a day, if it is among the newest."""

from __future__ import annotations

from typing import Any

from redis import Redis

from qtask.model.ids import stored_id
from qtask.store import keys
from qtask.store.queries import Steps, commands, query


def key_of(stored: str) -> str:
    """The key of the picture of the task with this stored id, for any Redis client."""
    return keys.graph(stored)


@query
def read(task_id: str) -> Steps[bytes | None]:
    """The picture of a task, by its id as the client knows it; None if there is none."""
    (picture,) = yield commands(("GET", keys.graph(stored_id(task_id))))
    found: bytes | None = picture
    return found


def keep(redis: Redis, stored: str, picture: bytes) -> None:
    """Keeps a picture under the stored id of its task."""
    now: int = redis.time()[0]
    with redis.pipeline() as pipeline:
        pipeline.set(keys.graph(stored), picture, ex=keys.GRAPH_SECONDS)
        pipeline.zadd(keys.GRAPHS, {stored: now})
        pipeline.zremrangebyscore(keys.GRAPHS, "-inf", now - keys.GRAPH_SECONDS)
        pipeline.zrange(keys.GRAPHS, 0, -1 - keys.GRAPHS_KEEP)
        old: list[Any] = pipeline.execute()[-1]
    if old:
        redis.unlink(*(keys.graph(one.decode()) for one in old))
        redis.zrem(keys.GRAPHS, *old)
