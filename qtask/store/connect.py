"""How QTask reaches Redis; the one place that makes clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from qtask import forks
from qtask.errors import ConfigError, Unavailable

CONNECT_TIMEOUT_SECONDS = 5.0
REPLY_TIMEOUT_SECONDS = 10.0  # for a process that would otherwise wait for ever for a Redis that hangs
# A connection that was not used for so long is replaced before it is used: a firewall or NAT on the way may have
# forgotten it, and tells neither side. The shortest limits in use are some minutes.
IDLE_SECONDS = 60.0
SENTINEL_SCHEME = "redis+sentinel://"
_SENTINEL_PORT = 26_379
# One that does not answer at once is passed over: the next one knows as much.
_ASK_SENTINEL = {"socket_connect_timeout": 1.0, "socket_timeout": 1.0}

_Client = TypeVar("_Client", Redis, AsyncRedis)
_Read = TypeVar("_Read")


def connect(url: str, timeout: float | None = None) -> Redis:
    """A client of the Redis at `redis://…`, `rediss://…`, `unix://…` or `redis+sentinel://…`; nothing is sent yet.

    Args:
        url: the address; see `_parse_sentinel` for the last form.
        timeout: seconds to wait for a reply; None waits for as long as it takes.

    It never repeats a command by itself: a script whose reply was lost may have run, and only the caller knows
    whether running it again is harmless. Raises `ConfigError` for an address of another form.
    """
    redis = _client(url, timeout, Redis, Sentinel, Retry)
    pool = redis.connection_pool
    pool.connection_class = type("Connection", (_Connection, pool.connection_class), {})
    return redis


def connect_async(url: str, timeout: float | None = None) -> AsyncRedis:
    """As `connect`, for redis.asyncio; not for publish/subscribe."""
    redis = _client(url, timeout, AsyncRedis, AsyncSentinel, AsyncRetry)
    pool = redis.connection_pool
    pool.connection_class = type("AsyncConnection", (_AsyncConnection, pool.connection_class), {})
    return redis


def read_again(read: Callable[[], _Read]) -> _Read:
    """Calls `read`, and once more when its connection broke. Only for what changes nothing in Redis."""
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
    """For a connection of redis: is replaced when it was idle. A pool calls `connect` before each use."""

    _used = 0.0

    def connect(self) -> None:
        idle = monotonic() - self._used > IDLE_SECONDS
        if self._used and idle:
            self.disconnect()  # type: ignore[attr-defined]
        super().connect()  # type: ignore[misc]
        self._used = monotonic()


class _AsyncConnection:
    """For a connection of redis.asyncio: is replaced when it was idle or Redis has closed it.

    A pool calls `connect` before each use. Redis's own client looks whether Redis has closed the connection, too, but
    not while it is prepared for Redis's maintenance notifications, as it is by default.
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
        """Whether something came unasked, most likely the end."""
        connection: Any = self
        can_read = getattr(connection, "can_read", None) or connection.can_read_destructive  # as it was before redis 8
        try:
            return bool(await can_read())
        except (RedisError, OSError):
            return True

    def after_fork(self) -> None:
        writer = getattr(self, "_writer", None)  # redis-py has no other way to its socket
        if writer is not None:
            forks.release(writer.transport)

    def pack_command(self, *args: Any) -> list[bytes]:
        """By hiredis, as those of redis do. What redis.asyncio does in Python took a sixth of the gateway's time."""
        packed: list[bytes] = HiredisRespSerializer().pack(*args)
        return packed


def require(redis: Redis, url: str) -> None:
    """Raises `Unavailable`, with words, when Redis does not answer."""
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"no Redis answers at {without_password(url)}: {error}. Start one, or name another with --redis"
        ) from None


def without_password(url: str) -> str:
    """An address as it may be shown; of one whose passwords are not percent-encoded, only what is surely none."""
    scheme, separator, rest = url.partition("://")
    place, _, query = rest.partition("?")
    return f"{scheme}{separator}{'…' if '@' in query else place.rpartition('@')[2]}"


def _client(
    url: str,
    timeout: float | None,
    kind: type[_Client],
    sentinel: type[Sentinel] | type[AsyncSentinel],
    retry: type[Retry] | type[AsyncRetry],
) -> _Client:
    """What `connect` and `connect_async` return; the three classes are those of redis or of redis.asyncio."""
    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "socket_timeout": timeout,
        "retry": retry(NoBackoff(), 0),
    }
    try:
        if not url.startswith(SENTINEL_SCHEME):
            return kind.from_url(url, **options)
        place = _parse_sentinel(url)
        ask: dict[str, Any] = {**_ASK_SENTINEL, "retry": retry(NoBackoff(), 0), **place.sentinel_options}
        sentinels = sentinel(place.sentinels, sentinel_kwargs=ask, **options)
        client: _Client = sentinels.master_for(place.service, **place.options)
        return client
    except ValueError as error:
        raise ConfigError(f"{without_password(url)!r} is no address of a Redis: {error}") from None


class _SentinelPlace(NamedTuple):
    sentinels: list[tuple[str, int]]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]


def _parse_sentinel(url: str) -> _SentinelPlace:
    """Reads `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…/SERVICE[/DB][?sentinel_password=…]`.

    User and password are those of Redis; the sentinels' own stand behind the question mark. Raises ValueError.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    sentinels = []
    for host in hosts.split(","):
        name, _, port = host.partition(":") if not host.startswith("[") else host[1:].partition("]")
        sentinels.append((name, int(port.removeprefix(":") or _SENTINEL_PORT)))
    if not all(name for name, _ in sentinels):
        raise ValueError("it names no sentinels; redis+sentinel://HOST:26379,HOST:26379/SERVICE/0 does")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("it does not name the service; redis+sentinel://HOST:26379,HOST:26379/SERVICE/0 does")
    options: dict[str, Any] = {"db": int(database or 0)}
    if credentials:
        user, _, password = credentials.partition(":")
        options |= {"username": unquote(user) or None, "password": unquote(password)}
    sentinel_options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query):
        if name not in ("sentinel_username", "sentinel_password"):
            raise ValueError(f"{name!r} is unknown behind the question mark; sentinel_password is known")
        sentinel_options[name.removeprefix("sentinel_")] = value
    return _SentinelPlace(sentinels, service, options, sentinel_options)
