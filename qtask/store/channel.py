"""A connection to Redis for an event loop: it sends without waiting and passes replies to callbacks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

import hiredis
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from qtask.private import redis_py
from qtask.store.faults import reach
from qtask.store.scripts import Call, Script, Value

OnReply = Callable[[Any], None]


class _Sent(NamedTuple):
    on_reply: OnReply
    script: Script[Any, Any] | None
    rest: tuple[Value, ...]
    since: float  # by monotonic


class Channel:
    """Commands and scripts over one connection, replies in order.

    redis-py makes the connection (address, password, TLS) and hiredis parses the replies; this class adds sending
    without waiting. The owner watches `descriptor` and calls `read` when it is readable.

    Args:
        redis: a client whose pool makes the connection.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: Any = None  # redis-py has no useful types for connections
        self._waiting: deque[_Sent] = deque()
        self.descriptor = -1

    def connect(self) -> None:
        """Connects again; commands without a reply are dropped. Raises redis-py's errors."""
        self.close()
        if self._connection is None:  # made once, because a pool makes a limited number of them
            self._connection = self._redis.connection_pool.make_connection()
        self._connection.connect()
        self.descriptor = redis_py.socket_of(self._connection).fileno()

    def close(self) -> None:
        """Closes the connection."""
        self._waiting.clear()
        self.descriptor = -1
        if self._connection is not None:
            self._connection.disconnect()

    def waited(self) -> float:
        """Seconds since the oldest command without a reply was sent; 0 if there is none."""
        return monotonic() - self._waiting[0].since if self._waiting else 0.0

    def send(self, on_reply: OnReply, *command: Value) -> None:
        """Sends a command; `on_reply` gets its reply, or the `ResponseError` that Redis answered."""
        assert self.descriptor >= 0
        self._waiting.append(_Sent(on_reply, None, command, monotonic()))
        self._write(self._connection, command)

    def run(self, on_reply: OnReply, call: Call) -> None:
        """Runs a script; if Redis does not know it, its text is sent without the caller noticing."""
        assert self.descriptor >= 0
        script, keys, arguments = call
        rest: tuple[Value, ...] = (len(keys), *keys, *arguments)
        reach(script.before)
        self._waiting.append(_Sent(on_reply, script, rest, monotonic()))
        self._write(self._connection, ("EVALSHA", script.sha, *rest))

    def _write(self, connection: Any, command: tuple[Value, ...]) -> None:
        # redis-py would first check every argument in Python, which takes three times as long as packing them.
        packed = hiredis.pack_command(command)  # type: ignore[arg-type]  # its types allow one argument only
        connection.send_packed_command([packed], check_health=False)

    def read(self) -> None:
        """Reads the replies that have arrived. Call it when the descriptor is readable. Raises redis-py's errors."""
        while True:
            self._read_one(self._connection)
            if not self._waiting or not self._connection.can_read():  # the parser may hold more than the socket
                return

    def _read_one(self, connection: Any) -> None:
        reply: Any
        try:
            reply = connection.read_response(disable_decoding=True)
        except NoScriptError as error:
            reply = error
            unknown = self._waiting[0]
            if unknown.script is not None:
                self._waiting.popleft()
                self._waiting.append(unknown._replace(script=None))
                self._write(connection, ("EVAL", unknown.script.text, *unknown.rest))
                return
        except ResponseError as error:
            reply = error
        sent = self._waiting.popleft()
        if sent.script is not None:
            reach(sent.script.after)
        sent.on_reply(reply)
