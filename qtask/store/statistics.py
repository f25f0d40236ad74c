"""Statistics in Redis: the outcomes of each type in a sorted set, and exact totals in a hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis import Redis

from qtask.store import keys

_CHUNK = 20_000  # members per ZRANGE; a larger chunk would block Redis for others


def read_members(redis: Redis, task_type: str, newest: int | None = None) -> Iterator[tuple[bytes, float]]:
    """Members and ends (Unix seconds) of the outcomes of one type, oldest first; with `newest` only that many."""
    key = keys.stats(task_type)
    total = redis.zcard(key)
    start = 0 if newest is None else max(0, total - newest)
    while start < total:
        chunk: list[Any] = redis.zrange(key, start, start + _CHUNK - 1, withscores=True)
        if not chunk:
            return
        yield from chunk
        start += len(chunk)


def read_totals(redis: Redis) -> dict[str, int]:
    """How many outcomes there have been, by counter (`type:status`)."""
    found: Any = redis.hgetall(keys.COUNTERS)
    return {counter.decode(): int(count) for counter, count in found.items()}
