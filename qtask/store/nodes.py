"""Node numbers: Redis leases one to each process that makes ids, so that no two processes make the same id."""

from __future__ import annotations

import secrets
from time import monotonic, monotonic_ns
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from qtask import forks
from qtask.model.ids import NODE_LIMIT, IdSource
from qtask.store import keys
from qtask.store.scripts import Value, script

# A submission may be sent again for as long as `accept_retry_seconds` allows, an hour at most, and its ids must still
# be known as ours by then. So a number is used for less time than it is leased.
LEASE_SECONDS = 10_800
USE_SECONDS = 3_600.0


class Node:
    """A number that is leased to us.

    Attributes:
        key: the key in Redis that says who holds it.
        nonce: what that key holds as long as it is ours.
        ids: makes ids under it, by Redis's clock.
    """

    def __init__(self, nonce: str, reply: list[Any]) -> None:
        number, (seconds, microseconds) = reply
        offset = (int(seconds) * 1_000_000 + int(microseconds)) * 1_000 - monotonic_ns()
        self.key = keys.node(number)
        self.nonce = nonce
        self.ids = IdSource(number, lambda: monotonic_ns() + offset)
        self.ends = monotonic() + USE_SECONDS


class Nodes:
    """Holds the number of this process for one client of Redis, and takes another when it needs one.

    A child that is forked begins without a number.
    """

    def __init__(self) -> None:
        self._node: Node | None = None
        forks.register(self)

    def after_fork(self) -> None:
        self._node = None

    def take(self, redis: Redis) -> Node:
        """The number that is held, or a new one. Raises redis-py's errors."""
        node = self._held()
        if node is None:
            nonce, arguments = _request()
            node = self._node = Node(nonce, script("take_number").run(redis, [keys.NODES], arguments))
        return node

    async def take_async(self, redis: AsyncRedis) -> Node:
        """As `take`, for redis.asyncio."""
        node = self._held()
        if node is None:
            nonce, arguments = _request()
            node = self._node = Node(nonce, await script("take_number").run_async(redis, [keys.NODES], arguments))
        return node

    def drop(self, node: Node) -> None:
        """Gives up a number that is not ours any more, or under which somebody else makes ids, too."""
        if self._node is node:
            self._node = None

    def _held(self) -> Node | None:
        node = self._node
        return node if node is not None and monotonic() < node.ends else None


def _request() -> tuple[str, list[Value]]:
    nonce = secrets.token_urlsafe(9)
    return nonce, [keys.NODE_PREFIX, NODE_LIMIT, nonce, LEASE_SECONDS]
