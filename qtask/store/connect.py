"""Makes clients of Redis; no other module does."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from qtask import forks
from qtask.model import redis_address as address
from qtask.model.errors import ConfigError, Unavailable
from qtask.model.redis_address import not_an_address, secrets_of, without_password, without_secrets
from qtask.private import redis_py

CONNECT_TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = (0.05, 2.0)  # the first and the longest pause before a process connects again
REPLY_TIMEOUT_SECONDS = 10.0  # without it, a process would wait forever for a Redis that hangs
# A connection that was idle for this long is replaced before it is used: a firewall or NAT may have dropped it without
# telling either side. The shortest limits in use are a few minutes.
IDLE_SECONDS = 60.0
# A sentinel that does not answer quickly is skipped: the next one knows the same.
_ASK_SENTINEL = {"socket_connect_timeout": 1.0, "socket_timeout": 1.0}

# Options that an address may have for other programs that share it. QTask overrides them: it reads replies as bytes.
_REPLIES = {"decode_responses": False, "encoding": "utf-8", "encoding_errors": "strict"}
_OPTION = re.compile(r"'(\w{1,40})'")

_Client = TypeVar("_Client", Redis, AsyncRedis)
_Read = TypeVar("_Read")


def connect(url: str, timeout: float | None = None) -> Redis:
    """A client of the Redis at `redis://…`, `rediss://…`, `unix://…` or `redis+sentinel://…`; it does not connect yet.

    Args:
        url: the address; see `qtask.model.redis_address` for its forms.
        timeout: seconds to wait for a reply; None waits without limit.

    The client never repeats a command: a script whose reply was lost may have run, and only the caller knows whether
    it is safe to run it again. Raises `ConfigError` for an invalid address.
    """
    redis = _client(url, timeout, Redis, Sentinel, Retry)
    redis_py.set_connection_base(redis, "Connection", _Connection)
    return redis


def connect_async(url: str, timeout: float | None = None) -> AsyncRedis:
    """As `connect`, for redis.asyncio; not for publish/subscribe."""
    redis = _client(url, timeout, AsyncRedis, AsyncSentinel, AsyncRetry)
    redis_py.set_connection_base(redis, "AsyncConnection", _AsyncConnection)
    return redis


def read_again(read: Callable[[], _Read]) -> _Read:
    """Calls `read`, and calls it again if its connection broke. Only for commands that change nothing in Redis."""
    try:
        return read()
    except RedisConnectionError:
        return read()


async def read_again_async(read: Callable[[], Awaitable[_Read]]) -> _Read:
    """As `read_again`, for redis.asyncio."""
    try:
        return await read()
    except RedisConnectionError:
        return await read()


class _Connection:
    """Base of a connection of redis that is replaced after idling. A pool calls `connect` before each use."""

    _used = 0.0

    def connect(self) -> None:
        idle = monotonic() - self._used > IDLE_SECONDS
        if self._used and idle:
            self.disconnect()  # type: ignore[attr-defined]
        super().connect()  # type: ignore[misc]
        self._used = monotonic()


class _AsyncConnection:
    """Base of a connection of redis.asyncio that is replaced after idling, or if Redis has closed it.

    A pool calls `connect` before each use. redis-py also checks whether Redis has closed the connection, but not while
    Redis's maintenance notifications are enabled, which is the default.
    """

    _used = 0.0

    async def connect(self) -> None:
        connection: Any = self
        if connection.is_connected and (monotonic() - self._used > IDLE_SECONDS or await self._has_ended()):
            await connection.disconnect(nowait=True)
        if not connection.is_connected:
            forks.register(self)
        await super().connect()  # type: ignore[misc]
        self._used = monotonic()

    async def _has_ended(self) -> bool:
        """Whether the connection is closed, or unexpected data has arrived, most likely the end of the connection."""
        try:
            return redis_py.is_closing(self) or await redis_py.has_unread(self)
        except (RedisError, OSError):
            return True

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Sends bytes. Raises redis-py's errors, also on uvloop when the connection was reset before the write.

        The transports of asyncio report such a reset as an `OSError` after the write, those of uvloop as a
        `RuntimeError` before it, which redis-py lets through. Callers handle connection errors only.
        """
        transport = redis_py.transport_of(self)
        try:
            await super().send_packed_command(command, check_health)  # type: ignore[misc]
        except RuntimeError as error:
            if transport is None or not transport.is_closing():
                raise
            raise RedisConnectionError(f"Connection reset before a command was sent: {error}") from error

    def after_fork(self) -> None:
        transport = redis_py.transport_of(self)
        if transport is not None:
            forks.release(transport)

    def pack_command(self, *args: Any) -> list[bytes]:
        """Packs with hiredis, as redis does. redis.asyncio packs in Python; that took a sixth of the gateway's time."""
        return redis_py.pack_command(*args)


def require(redis: Redis, url: str) -> None:
    """Raises `Unavailable`, with the reason and advice, if Redis does not answer."""
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        what, advice = trouble(error, url)
        raise Unavailable(f"{what}. {advice}") from None


def is_misconf(error: Exception) -> bool:
    """Whether Redis refuses commands because it cannot write to its disk."""
    return isinstance(error, ResponseError) and str(error).startswith("MISCONF")


def trouble(error: Exception, url: str) -> tuple[str, str]:
    """The problem of a Redis that did not answer PING, and advice.

    Args:
        error: the error of redis-py.
        url: its address.
    """
    place, said = without_password(url), reason_of(error, url)
    if isinstance(error, BusyLoadingError):
        return (
            f"the Redis at {place} is still loading its data",
            "Wait until it has finished; its log shows how far it is",
        )
    if isinstance(error, NoPermissionError):
        return f"the Redis at {place} does not allow PING: {said}", "Grant the rights in docs/deployment.md"
    if isinstance(error, AuthenticationError):
        if "required" in said or "already authenticated" in said:  # to another command, and to HELLO
            advice = "Set QTASK_REDIS_URL to redis://USER:PASSWORD@HOST:PORT/0"
            return f"the Redis at {place} requires a password, and the address has none", advice
        advice = "Check both in QTASK_REDIS_URL; special characters in a password must be percent-encoded"
        return f"the Redis at {place} rejects the user or the password: {said}", advice
    if redis_py.hangs_after_connecting(error):
        advice = (
            "If it is a Redis, it hangs: check its log, and whether it is stopped, swapping or running a long script"
        )
        return f"the server at {place} accepts connections and does not answer", advice
    if redis_py.is_no_redis(error):
        return f"the server at {place} is not a Redis: {said[:200]}", "Name the right port with --redis"
    if is_misconf(error):
        advice = "Its disk may be full: free some space, and it recovers without a restart; see its log"
        return f"the Redis at {place} cannot write its data, so it accepts no tasks: {said}", advice
    if isinstance(error, ResponseError):
        return f"the Redis at {place} does not work: {said}", "Look at its log"
    if "Permission denied" in said:
        advice = "Run this as the user who runs `qtask up`, or name a Redis with --redis"
        return f"this user may not connect to {place}: {said}", advice
    return f"no Redis answers at {place}: {said}", "Start one, or name another with --redis"


def reason_of(error: Exception, url: str = "") -> str:
    """The message of an error of redis-py, without secrets.

    Args:
        error: the error.
        url: the address of that Redis, whose secrets are removed from the message.
    """
    return without_secrets(redis_py.without_client_repr(str(error)), secrets_of(url))


def _client(
    url: str,
    timeout: float | None,
    kind: type[_Client],
    sentinel: type[Sentinel] | type[AsyncSentinel],
    retry: type[Retry] | type[AsyncRetry],
) -> _Client:
    """Makes the client of `connect` and `connect_async`; the three classes are those of redis or of redis.asyncio."""
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": timeout,
        "retry": retry(NoBackoff(), 0),
    }
    place = address.parse(url)
    try:
        if place.scheme != address.SENTINEL_SCHEME:
            client: _Client = kind.from_url(place.url, **options)
        else:
            way = address.parse_sentinel(url)
            ask: dict[str, Any] = {**_ASK_SENTINEL, "retry": retry(NoBackoff(), 0), **way.options}
            named: dict[str, Any] = {"db": way.database}
            if place.user or place.password:
                named |= {"username": place.user or None, "password": place.password}
            client = sentinel(way.sentinels, sentinel_kwargs=ask, **options).master_for(way.service, **named)
        pool = client.connection_pool
        pool.connection_kwargs |= _REPLIES
        pool.connection_class(**pool.connection_kwargs)  # else an unknown option would be found at the first connection
    except ConfigError:
        raise
    except (TypeError, ValueError, RedisError) as error:
        given = {name for name, _ in place.query}
        named_by_error = [name for name in _OPTION.findall(str(error)) if name in given]
        names = ", ".join(named_by_error or sorted(given)) or "?"
        raise not_an_address(url, f"some options are unknown or have invalid values: {names}") from None
    return client
