"""Statistics as Redis holds them: outcomes in a sorted set for each kind, and exact totals in a hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis import Redis

from qtask.store import keys

_CHUNK = 20_000  # members a ZRANGE: a larger one would make others wait for Redis


def read_members(redis: Redis, kind: str, newest: int | None = None) -> Iterator[tuple[bytes, float]]:
    """Members and ends (Unix seconds) of the outcomes of one kind, oldest first; with `newest` only so many."""
    key = keys.stats(kind)
    total = redis.zcard(key)
    start = 0 if newest is None else max(0, total - newest)
    while start < total:
        chunk: list[Any] = redis.zrange(key, start, start + _CHUNK - 1, withscores=True)
        if not chunk:
            return
        yield from chunk
        start += len(chunk)


def read_totals(redis: Redis) -> dict[str, int]:
    """How many outcomes there were ever, by counter (`kind:status`)."""
    found: Any = redis.hgetall(keys.COUNTERS)
    return {counter.decode(): int(count) for counter, count in found.items()}
