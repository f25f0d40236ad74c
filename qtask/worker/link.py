"""The worker's link to Redis: two connections that are made, watched, lost, and made again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum
from functools import partial
from time import monotonic

from redis import Redis
from redis.exceptions import RedisError

from qtask.delivery.loop import READ, Loop
from qtask.model.errors import ConfigError
from qtask.store.channel import Channel
from qtask.store.connect import BACKOFF_SECONDS

STEADY_SECONDS = 5.0  # a connection that has lasted so long starts with the first pause again
STALL_SECONDS = 10.0  # without a reply that is owed, after which the connection counts as broken
IDLE_WAIT_SECONDS = 30  # Redis answers a blocked wait at least this often
LEAVE_WAIT_SECONDS = 1.0  # for an attempt to connect, when asked to stop

LINK_ERRORS = (RedisError, OSError)
"""What is raised when the link is broken, or when Redis answers an error that a new connection may cure."""

logger = logging.getLogger("qtask.worker")


class LinkState(Enum):
    """Where the link is: LOST, CONNECTING, CONNECTED, and LOST again; an attempt that fails leads back to LOST."""

    LOST = "there is no connection; the next attempt begins after a pause"
    CONNECTING = "a thread makes the connections and prepares them"
    CONNECTED = "commands may be sent, and replies are called back"


# Looked up once: in Python 3.11 a member of an enum costs as much as a call.
LOST, CONNECTING, CONNECTED = LinkState


class Link:
    """Two connections to Redis, one for claims and waits, and one for everything that must not stand behind a wait.

    Whoever sends over them catches `LINK_ERRORS` and calls `lose`.

    Args:
        redis: a client, whose pool the connections are made by.
        loop: on which replies are read.
        prepare: called in a thread once the connections are there; may raise `LINK_ERRORS` and `ConfigError`.
        on_connecting: called in the loop afterwards, as the last step before CONNECTED; may raise `LINK_ERRORS`.
        on_lost: called in the loop when the connections are gone, with all replies that were owed.

    Attributes:
        claims, settles: the connections, to be used while `connected`.
    """

    def __init__(
        self,
        redis: Redis,
        loop: Loop,
        prepare: Callable[[], None],
        on_connecting: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.claims = Channel(redis)
        self.settles = Channel(redis)
        self._loop = loop
        self._prepare = prepare
        self._on_connecting = on_connecting
        self._on_lost = on_lost
        self._state = LOST
        self._thread: threading.Thread | None = None
        self._connected_at = 0.0
        self._pause = BACKOFF_SECONDS[0]

    @property
    def connected(self) -> bool:
        """Whether commands may be sent."""
        return self._state is CONNECTED

    def connect(self) -> None:
        """Begins to connect, in a thread: a Redis that hangs must not hold up the deliveries in flight."""
        assert self._state is LOST
        self._state = CONNECTING
        self._thread = threading.Thread(target=self._connect, daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        try:
            self.claims.connect()
            self.settles.connect()
            self._prepare()
        except (*LINK_ERRORS, ConfigError) as error:  # a right may be taken away, and given again, at any time
            self._loop.call_from_thread(partial(self.lose, error))
        except Exception as error:  # a defect: without its thread the worker would stand still, so let it end
            self._loop.call_from_thread(partial(_raise, error))
        else:
            self._loop.call_from_thread(self._finish_connecting)

    def _finish_connecting(self) -> None:
        assert self._state is CONNECTING
        try:
            self._on_connecting()
        except LINK_ERRORS as error:
            self.lose(error)
            return
        self._loop.watch(self.claims.descriptor, READ, partial(self._read, self.claims))
        self._loop.watch(self.settles.descriptor, READ, partial(self._read, self.settles))
        self._state = CONNECTED
        self._connected_at = monotonic()

    def _read(self, channel: Channel, events: int) -> None:
        try:
            channel.read()
        except LINK_ERRORS as error:
            self.lose(error)

    def check(self) -> None:
        """Raises `TimeoutError` when a reply has been owed for too long."""
        if self.settles.waited() > STALL_SECONDS or self.claims.waited() > IDLE_WAIT_SECONDS + STALL_SECONDS:
            raise TimeoutError(f"no reply within {STALL_SECONDS:g} s")

    def lose(self, error: Exception) -> None:
        """Gives the connections up, and connects anew after a pause, which doubles with each attempt that fails."""
        if self._state is LOST:
            return  # by an earlier error
        if self._state is CONNECTED and monotonic() - self._connected_at > STEADY_SECONDS:
            self._pause = BACKOFF_SECONDS[0]
        logger.warning("redis_away", extra={"error": str(error), "retry_in_s": self._pause})
        for channel in (self.claims, self.settles):
            if channel.descriptor >= 0:
                self._loop.unwatch(channel.descriptor)
            channel.close()
        self._state = LOST
        self._on_lost()
        self._loop.call_later(self._pause, self.connect)
        self._pause = min(self._pause * 2, BACKOFF_SECONDS[1])

    def leave(self) -> None:
        """Ends the wait for the queue, and an attempt to connect, which must not register a worker that has gone."""
        if self._thread is not None:
            self._thread.join(LEAVE_WAIT_SECONDS)
        self.claims.close()


def _raise(error: Exception) -> None:
    raise error
