"""The link of a worker to Redis: connections that are made, watched, and made again when they are lost."""

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

STEADY_SECONDS = 5.0  # after a connection that lasted this long, the pauses begin with the first again
STALL_SECONDS = 10.0  # without an expected reply, after which the connection counts as broken
IDLE_WAIT_SECONDS = 30  # Redis answers a blocked wait at least this often
LEAVE_WAIT_SECONDS = 1.0  # at a stop, for an attempt to connect that is under way

LINK_ERRORS = (RedisError, OSError)
"""Errors that mean that the link is broken, or that a new connection may help."""

logger = logging.getLogger("qtask.worker")


class LinkState(Enum):
    """The states of the link: LOST, CONNECTING, CONNECTED, and LOST again; a failed attempt leads back to LOST."""

    LOST = "there is no connection; the next attempt begins after a pause"
    CONNECTING = "a thread makes the connections and prepares them"
    CONNECTED = "commands may be sent, and replies are passed to their callbacks"


# Looked up once: in Python 3.11 access to a member of an enum costs as much as a call.
LOST, CONNECTING, CONNECTED = LinkState


class Link:
    """The connections to Redis: one per queue for claims and waits, and one for commands that must not wait.

    A wait blocks its connection, and no command waits for several queues without taking a task out of one of them.

    Code that sends over them catches `LINK_ERRORS` and calls `lose`.

    Args:
        redis: a client, whose pool makes the connections.
        loop: reads the replies.
        prepare: called in a thread after the connections are made; may raise `LINK_ERRORS` and `ConfigError`.
        on_connecting: called in the loop after that, as the last step before CONNECTED; may raise `LINK_ERRORS`.
        on_lost: called in the loop when the connections, and all expected replies, are lost.
        queues: how many queues the worker serves.

    Attributes:
        claims: the connections for claims; use them, and the next one, only while `connected`.
        settles: the connection for all else.
    """

    def __init__(
        self,
        redis: Redis,
        loop: Loop,
        prepare: Callable[[], None],
        on_connecting: Callable[[], None],
        on_lost: Callable[[], None],
        queues: int = 1,
    ) -> None:
        self.claims = [Channel(redis) for _ in range(queues)]
        self.settles = Channel(redis)
        self._channels = (*self.claims, self.settles)
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
            for channel in self._channels:
                channel.connect()
            self._prepare()
        except (*LINK_ERRORS, ConfigError) as error:  # rights in Redis may be revoked and granted at any time
            self._loop.call_from_thread(partial(self.lose, error))
        except Exception as error:  # a defect: the worker cannot go on without this thread, so it ends
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
        for channel in self._channels:
            self._loop.watch(channel.descriptor, READ, partial(self._read, channel))
        self._state = CONNECTED
        self._connected_at = monotonic()

    def _read(self, channel: Channel, events: int) -> None:
        try:
            channel.read()
        except LINK_ERRORS as error:
            self.lose(error)

    def check(self) -> None:
        """Raises `TimeoutError` if an expected reply is too late."""
        waited = max(channel.waited() for channel in self.claims)
        if self.settles.waited() > STALL_SECONDS or waited > IDLE_WAIT_SECONDS + STALL_SECONDS:
            raise TimeoutError(f"no reply within {STALL_SECONDS:g} s")

    def lose(self, error: Exception) -> None:
        """Closes the connections, and connects again after a pause, which doubles with each failed attempt."""
        if self._state is LOST:
            return  # because of an earlier error
        if self._state is CONNECTED and monotonic() - self._connected_at > STEADY_SECONDS:
            self._pause = BACKOFF_SECONDS[0]
        logger.warning("redis_away", extra={"error": str(error), "retry_in_s": self._pause})
        for channel in self._channels:
            if channel.descriptor >= 0:
                self._loop.unwatch(channel.descriptor)
            channel.close()
        self._state = LOST
        self._on_lost()
        self._loop.call_later(self._pause, self.connect)
        self._pause = min(self._pause * 2, BACKOFF_SECONDS[1])

    def leave(self) -> None:
        """Ends the waits for tasks. Awaits an attempt to connect, which must not register a worker that has stopped."""
        if self._thread is not None:
            self._thread.join(LEAVE_WAIT_SECONDS)
        for channel in self.claims:
            channel.close()


def _raise(error: Exception) -> None:
    raise error
