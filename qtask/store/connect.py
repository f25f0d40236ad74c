"""How QTask reaches Redis; the one place that makes clients."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from qtask.errors import ConfigError, Unavailable
from qtask.store import address
from qtask.store.address import not_an_address, secrets_of, without_password, without_secrets

CONNECT_TIMEOUT_SECONDS = 5.0
REPLY_TIMEOUT_SECONDS = 10.0  # for a process that would otherwise wait for ever for a Redis that hangs
# One that does not answer at once is passed over: the next one knows as much.
_ASK_SENTINEL = {"socket_connect_timeout": 1.0, "socket_timeout": 1.0}

# How a sentinel's client looks in redis-py's errors, with all arguments of its connection.
_CLIENT_REPR = re.compile(r"<redis\.(?:asyncio\.)?client\.Redis\(.*?\)>\)>\)> - ")
_OPTION = re.compile(r"'(\w{1,40})'")

_Client = TypeVar("_Client", Redis, AsyncRedis)


def connect(url: str, timeout: float | None = None) -> Redis:
    """A client of the Redis at `redis://…`, `rediss://…`, `unix://…` or `redis+sentinel://…`; nothing is sent yet.

    Args:
        url: the address; see `qtask.store.address` for its forms.
        timeout: seconds to wait for a reply; None waits for as long as it takes.

    It never repeats a command by itself: a script whose reply was lost may have run, and only the caller knows
    whether running it again is harmless. Raises `ConfigError` for an address of another form.
    """
    return _client(url, timeout, Redis, Sentinel, Retry)


def connect_async(url: str, timeout: float | None = None) -> AsyncRedis:
    """As `connect`, for redis.asyncio."""
    redis = _client(url, timeout, AsyncRedis, AsyncSentinel, AsyncRetry)
    pool = redis.connection_pool
    pool.connection_class = type("Packed", (_Packed, pool.connection_class), {})
    return redis


class _Packed:
    """For a connection of redis.asyncio: packs commands by hiredis, as those of redis do by themselves.

    What redis.asyncio does in Python took a sixth of the gateway's time.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = HiredisRespSerializer().pack(*args)
        return packed


def require(redis: Redis, url: str) -> None:
    """Raises `Unavailable`, with words, when Redis does not answer."""
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        raise Unavailable(
            f"no Redis answers at {without_password(url)}: {reason_of(error, url)}. Start one, or name another with "
            "--redis"
        ) from None


def reason_of(error: Exception, url: str = "") -> str:
    """What an error of redis-py says, without secrets.

    Args:
        error: it.
        url: the address at which Redis was to answer, whose secrets are left out wherever they stand in the text.
    """
    return without_secrets(_CLIENT_REPR.sub("", str(error)), secrets_of(url))


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
        pool.connection_class(**pool.connection_kwargs)  # an unknown option would be found when it first connects
    except ConfigError:
        raise
    except (TypeError, ValueError, RedisError) as error:
        given = {name for name, _ in place.query}
        named_by_error = [name for name in _OPTION.findall(str(error)) if name in given]
        names = ", ".join(named_by_error or sorted(given)) or "?"
        raise not_an_address(url, f"its options are unknown, or have a value that is not possible: {names}") from None
    return client
