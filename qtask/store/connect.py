"""How QTask reaches Redis; the one place that makes clients."""

from __future__ import annotations

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from qtask.errors import ConfigError, Unavailable

CONNECT_TIMEOUT_SECONDS = 5.0


def connect(url: str, timeout: float | None = None) -> Redis:
    """A client of the Redis at `redis://…`, `rediss://…` or `unix://…`; nothing is sent yet.

    Args:
        url: the address.
        timeout: seconds to wait for a reply; None waits for as long as it takes.

    It never repeats a command by itself: a script whose reply was lost may have run, and only the caller knows
    whether running it again is harmless. Raises `ConfigError` for an address of another form.
    """
    try:
        return Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            socket_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError(f"{_without_password(url)!r} is no address of a Redis: {error}") from None


def connect_async(url: str, timeout: float | None = None) -> AsyncRedis:
    """As `connect`, for redis.asyncio."""
    try:
        return AsyncRedis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            socket_timeout=timeout,
            retry=AsyncRetry(NoBackoff(), 0),
        )
    except ValueError as error:
        raise ConfigError(f"{_without_password(url)!r} is no address of a Redis: {error}") from None


def require(redis: Redis, url: str) -> None:
    """Raises `Unavailable`, with words, when Redis does not answer."""
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"no Redis answers at {_without_password(url)}: {error}. Start one, or name another with --redis"
        ) from None


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2] if separator else url
