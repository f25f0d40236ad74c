"""How a scheduler appears to rq-scheduler's tools: its registration, and the lock that keeps a stock one passive."""

from __future__ import annotations

import logging

import rq_scheduler
from redis.exceptions import OutOfMemoryError

from qtask.store import schedule

LOCK_SECONDS = 10

logger = logging.getLogger("qtask.scheduler")


class Registration:
    """Keeps one scheduler registered.

    Args:
        scheduler: whose name and connection are used.
    """

    def __init__(self, scheduler: rq_scheduler.Scheduler) -> None:
        self._scheduler = scheduler
        self._registered = False

    def restart(self) -> None:
        """Has the next `renew` register again, because Redis may have been restarted without its data."""
        self._registered = False

    def renew(self) -> None:
        """Registers, if that was not done yet, sends a heartbeat, and holds rq-scheduler's lock.

        While Redis is out of memory this is only logged: releasing tasks needs no memory, and frees some in the end.
        """
        scheduler = self._scheduler
        try:
            if not self._registered:
                scheduler.connection.delete(scheduler.key)  # else rq-scheduler refuses to register the same name again
                scheduler.register_birth()
                self._registered = True
            scheduler.heartbeat()
            schedule.hold_lock(scheduler.connection, LOCK_SECONDS)
        except OutOfMemoryError as error:
            logger.warning("out_of_memory", extra={"error": str(error)})
