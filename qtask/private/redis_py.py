"""redis-py: sockets of connections, packing of commands, and texts of its errors."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from redis.connection import HiredisRespSerializer
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

# A sentinel's client in redis-py's errors: it has all arguments of its connection, secrets included.
_CLIENT_REPR = re.compile(r"<redis\.(?:asyncio\.)?client\.Redis\(.*?\)>\)>\)> - ")


def socket_of(connection: Any) -> socket.socket:
    """The socket of a connection (of `redis`, not `redis.asyncio`) that is connected."""
    found: socket.socket = connection._sock
    return found


def transport_of(connection: Any) -> asyncio.Transport | None:
    """The transport of a connection of `redis.asyncio`; None when it is not connected."""
    writer = connection._writer
    return None if writer is None else writer.transport


def is_closing(connection: Any) -> bool:
    """Whether the transport of a connection of `redis.asyncio` is closed or about to be, for example after a reset.

    A reset leaves no end of the stream behind, so `has_unread` does not see it.
    """
    transport = transport_of(connection)
    return transport is not None and transport.is_closing()


def set_connection_base(client: Any, name: str, base: type) -> None:
    """Makes the pool of a client create connections of a class that also inherits from `base`.

    Args:
        client: of `redis` or `redis.asyncio`; its pool has made no connection yet.
        name: name of the new class.
        base: its methods override those of redis-py. The pool calls `connect` before each use of a connection.
    """
    pool = client.connection_pool
    pool.connection_class = type(name, (base, pool.connection_class), {})


def pack_command(*arguments: Any) -> list[bytes]:
    """A command as bytes, packed by hiredis, which connections of `redis` use and those of `redis.asyncio` do not."""
    packed: list[bytes] = HiredisRespSerializer().pack(*arguments)
    return packed


async def has_unread(connection: Any) -> bool:
    """Whether a connection of `redis.asyncio` has received something, or was closed. Raises redis-py's errors."""
    return bool(await connection.can_read())


def without_client_repr(text: str) -> str:
    """The text of an error without the client in it, which would show the arguments of its connection."""
    return _CLIENT_REPR.sub("", text)


def hangs_after_connecting(error: Exception) -> bool:
    """Whether an error is a timeout of a reply. A timeout while connecting differs only in its text."""
    return isinstance(error, RedisTimeoutError | TimeoutError) and "connecting" not in str(error)


def is_no_redis(error: Exception) -> bool:
    """Whether the other side does not speak Redis's protocol."""
    return isinstance(error, InvalidResponse) or "Protocol Error" in str(error)
