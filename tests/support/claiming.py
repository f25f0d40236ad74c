"""Claiming as a worker does, without one: the tasks are then in the hands of the test."""

from __future__ import annotations

from redis import Redis

from qtask.store import leases


def claim(
    redis: Redis,
    token: str = "worker",
    limit: int = 100,
    bytes_limit: int = leases.CLAIM_BYTES,
    margin: float = leases.LEASE_MARGIN_SECONDS,
    queue: str = "qtask",
) -> list[str]:
    """Claims as `leases.claim` does and returns the ids; with a margin of some minutes below 0 the lease is over."""
    reply = leases.claim(queue, token, limit, bytes_limit, margin).run(redis)
    return [task_id.decode() for task_id, *_ in leases.read_claimed(reply)[1]]
