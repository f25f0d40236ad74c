"""RQ: the base class of its workers."""

from __future__ import annotations

from time import sleep
from typing import Any

from redis.exceptions import RedisError
from rq.worker.base import BaseWorker

COMMANDS_RETRY_SECONDS = 2.0  # between two attempts to listen for commands


class RegisteredWorker(BaseWorker):
    """A worker that RQ's tools see, and that goes on listening for their commands after any error of Redis."""

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Lets the thread that listens for RQ's commands go on after an error.

        RQ's own method gives up at a timeout. The error may also be the reply to the subscription, which is sent again
        after reconnecting.
        """
        if not isinstance(exc, RedisError | OSError):
            raise exc
        if pubsub.connection is not None:
            pubsub.connection.disconnect()
        sleep(COMMANDS_RETRY_SECONDS)
