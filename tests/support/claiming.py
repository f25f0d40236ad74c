"""Claims of tasks without a worker process."""

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
    """Claims as `leases.claim` does and returns the ids; a margin of some minutes below 0 makes an expired lease."""
    reply = leases.claim(queue, token, limit, bytes_limit, margin).run(redis)
    return [task_id.decode() for task_id, *_ in leases.read_claimed(reply)[1]]
