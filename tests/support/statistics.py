"""Records outcomes in the statistics as a worker does, without a delivery."""

from __future__ import annotations

from redis import Redis

from qtask.config import Config
from qtask.model.outcome import Outcome, encode_outcome
from qtask.observe import stats
from qtask.store import keys, leases

KEPT_FOR_LONG = Config(stats_retention_seconds=10_000_000_000)


def record(redis: Redis, kind: str, task_id: str, outcome: Outcome, config: Config = KEPT_FOR_LONG) -> None:
    """Settles one outcome of a task that is claimed just for it."""
    redis.zadd(keys.started(config.queue), {f"{task_id}:test": keys.FOREVER_SECONDS * 2})
    settlement = leases.Settlement(
        id=task_id,
        fate="failed" if outcome.error else "finished",
        outcome=encode_outcome(outcome),
        error=outcome.message,
        counter=stats.counter(kind, outcome),
        ended=f"{outcome.ended:.6f}",
        member=stats.member(task_id, outcome),
    )
    assert leases.read_settled(leases.settle(config, "test", [settlement]).run(redis)).settled == 1
