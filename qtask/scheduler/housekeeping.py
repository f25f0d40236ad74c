"""What a scheduler does every second besides releasing: it reclaims lost tasks and forgets old ones."""

from __future__ import annotations

import logging

from redis import Redis

from qtask.destinations.registry import destination_of
from qtask.model.errors import Refused
from qtask.model.ids import client_id
from qtask.store import schedule
from qtask.store.health import now
from qtask.store.job import read_data

DEAD_AFTER_SECONDS = 5.0  # without a heartbeat, after which a worker's tasks are reclaimed
GAP_SECONDS = 3.0  # between two runs, after which Redis must have been away; less than `DEAD_AFTER_SECONDS`
RECLAIM_BATCH = 5_000  # tasks of one queue, a script
LOST_LINES = 10  # deliveries that are logged one by one, of those that one run reclaims
FORGET_BATCH = 1_000  # delivered tasks whose retention has ended, a script
FORGET_BATCHES = 10  # a run

logger = logging.getLogger("qtask.scheduler")


class Housekeeping:
    """Reclaims and forgets tasks.

    Args:
        redis: a client of Redis.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._last_run = self._watching_since = 0.0  # Unix seconds by Redis's clock

    def run(self) -> None:
        """Reclaims and forgets in all queues. To be called every second, so that dead workers are noticed in time."""
        queues = schedule.queue_names(self._redis)
        reclaimed = self.reclaim(*queues, silent_since=self._silent_since())
        if reclaimed:
            logger.warning("reclaimed", extra={"tasks": len(reclaimed), "first": client_id(reclaimed[0])})
            self._log_lost(reclaimed[:LOST_LINES])
        for _ in range(FORGET_BATCHES):
            if self.forget(*queues) < FORGET_BATCH:
                break

    def reclaim(self, *queues: str, silent_since: float | None = None) -> list[str]:
        """Puts tasks whose lease ended, or whose worker died, back into their queues; returns their ids.

        Args:
            queues: all queues. A dead worker is forgotten, so its tasks in a queue that is left out would wait for the
                end of their leases.
            silent_since: a worker whose last heartbeat is not later counts as dead, in Unix seconds by Redis's clock;
                by default `DEAD_AFTER_SECONDS` ago.
        """
        if silent_since is None:
            silent_since = now(self._redis) - DEAD_AFTER_SECONDS
        return schedule.reclaim(self._redis, queues, silent_since, RECLAIM_BATCH)

    def forget(self, *queues: str) -> int:
        """Forgets up to `FORGET_BATCH` delivered tasks of these queues whose retention has ended; returns how many."""
        return schedule.forget(self._redis, queues, FORGET_BATCH)

    def _silent_since(self) -> float:
        """The instant since which a worker must have been silent to count as dead, in Unix seconds.

        After a gap between two runs, because Redis was away or hung or its clock was set, heartbeats may be missing
        although the workers live. So no worker counts as dead until it had `DEAD_AFTER_SECONDS` to send one.
        """
        at = now(self._redis)
        if not 0 <= at - self._last_run <= GAP_SECONDS:
            self._watching_since = at
        self._last_run = at
        return at - DEAD_AFTER_SECONDS if at - self._watching_since >= DEAD_AFTER_SECONDS else 0.0

    def _log_lost(self, ids: list[str]) -> None:
        """Logs deliveries whose worker died or hung; the event `reclaimed` says how many there are in all."""
        for one in schedule.read_reclaimed(self._redis, ids):
            try:
                task, _ = read_data(one.data or b"")
            except Refused:
                continue  # it was cancelled in the meantime, or is no task
            about = {"task": client_id(one.id), "type": task.type, "attempt": one.attempt, "outcome": "lost"}
            destination = destination_of(task.type, task.address.link)
            logger.warning("delivery_lost", extra={**about, "destination": destination})
