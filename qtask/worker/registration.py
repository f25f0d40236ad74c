"""How a worker appears to RQ and to schedulers: the registry of RQ, heartbeats, and the commands of RQ."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError
from rq.serializers import JSONSerializer
from rq.utils import now as utc_now
from rq.utils import utcformat
from rq.worker.base import WorkerStatus
from rq.worker_registration import clean_worker_registry

from qtask.private.rq import RegisteredWorker
from qtask.store import workers
from qtask.store.channel import Channel
from qtask.store.rq_job import TaskJob
from qtask.worker.clock import RedisClock
from qtask.worker.deliveries import Deliveries

logger = logging.getLogger("qtask.worker")


class Registration(RegisteredWorker):
    """An RQ worker for `rq info`, `rq suspend` and the commands of RQ; it does not run the tasks.

    Args:
        queue_names: the queues that the worker serves.
        redis: a client of Redis.
        token: of the worker, which its leases name.
        deliveries: for the counts in the heartbeat.
        clock: is set by the reply to each heartbeat.
        on_suspended: called after each heartbeat, with whether `rq suspend` is in effect.
    """

    def __init__(
        self,
        queue_names: Sequence[str],
        redis: Redis,
        token: str,
        deliveries: Deliveries,
        clock: RedisClock,
        on_suspended: Callable[[bool], None],
    ) -> None:
        super().__init__(
            queue_names, connection=redis, serializer=JSONSerializer, job_class=TaskJob, log_job_description=False
        )
        self._token = token
        self._deliveries = deliveries
        self._clock = clock
        self._on_suspended = on_suspended
        self._registered = False

    def register(self) -> None:
        """Registers with RQ and listens for its commands, unless that was done before. Raises redis-py's errors."""
        if not self._registered:
            self._register()
        if self.pubsub_thread is None:
            self.subscribe()

    def _register(self) -> None:
        try:
            self.connection.delete(self.key)  # an earlier attempt may have succeeded although its reply was lost
            self.register_birth()
            self._registered = True
            for queue in self.queues:
                clean_worker_registry(queue)  # removes killed workers; else only stock workers do it
        except OutOfMemoryError as error:  # it works on, which frees memory, but RQ's tools do not see it
            logger.warning("not_registered", extra={"error": str(error)})

    def beat(self, channel: Channel) -> None:
        """Sends a heartbeat, and asks whether `rq suspend` is in effect. Raises redis-py's errors."""
        done = self._deliveries
        fields: dict[str, str | int | float] = {
            "last_heartbeat": utcformat(utc_now()),
            "state": str(WorkerStatus.BUSY.value if done.in_flight else WorkerStatus.IDLE.value),
            "successful_job_count": done.delivered,
            "failed_job_count": done.failed,
            "total_working_time": done.seconds,
            "qtask": self._token,  # shows `qtask doctor` that this is a worker of QTask
        }
        channel.run(self._on_clock, workers.heartbeat(self._token, self.key, self.worker_ttl, fields))
        channel.send(self._on_suspension, *workers.is_suspended())

    def _on_clock(self, reply: Any) -> None:
        if not isinstance(reply, ResponseError):
            self._clock.set(float(reply))

    def _on_suspension(self, reply: Any) -> None:
        self._on_suspended(reply == 1)

    def leave(self) -> None:
        """Deregisters; then a scheduler reclaims the tasks that are left. Raises redis-py's errors."""
        workers.leave(self.connection, self._token)
        self.register_death()

    def close(self) -> None:
        """Stops listening for the commands of RQ."""
        if self.pubsub_thread is not None:
            self.pubsub_thread.stop()
