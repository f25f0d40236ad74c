"""One connection to Redis for a loop that never waits: commands go out now, replies are called back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from qtask.store.scripts import Script, Value

OnReply = Callable[[Any], None]


class Channel:
    """Commands and scripts over one connection, replies in order.

    redis-py makes the connection (address, password, TLS) and hiredis reads the replies; what this adds is not
    to wait. The owner watches `descriptor` and calls `read` when it is readable.

    Args:
        redis: a client, whose pool the connection is made by.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._connection: Any = None  # redis-py's connections have no types worth the name
        self._waiting: deque[tuple[OnReply, Script | None, tuple[Value, ...]]] = deque()
        self.descriptor = -1

    def connect(self) -> None:
        """Connects anew; commands that were under way are forgotten. Raises redis-py's errors."""
        self.close()
        connection: Any = self._redis.connection_pool.make_connection()
        connection.connect()
        self._connection = connection
        self.descriptor = connection._sock.fileno()  # redis-py has no other way to its socket

    def close(self) -> None:
        """Closes the connection."""
        self._waiting.clear()
        self.descriptor = -1
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None

    @property
    def pending(self) -> int:
        """How many replies are owed."""
        return len(self._waiting)

    def send(self, on_reply: OnReply, *command: Value) -> None:
        """Sends a command; `on_reply` gets its reply, or the `ResponseError` that Redis answered."""
        assert self._connection is not None
        self._waiting.append((on_reply, None, command))
        self._connection.send_command(*command, check_health=False)

    def run(self, on_reply: OnReply, script: Script, keys: list[str], arguments: list[Value]) -> None:
        """Runs a script; where Redis has forgotten it, its text is sent without the caller noticing."""
        assert self._connection is not None
        rest: tuple[Value, ...] = (len(keys), *keys, *arguments)
        self._waiting.append((on_reply, script, rest))
        self._connection.send_command("EVALSHA", script.sha, *rest, check_health=False)

    def read(self) -> None:
        """Reads the replies that have come, to be called when the descriptor is readable. Raises when it broke."""
        connection = self._connection
        while connection is not None and connection is self._connection:
            self._read_one(connection)
            if not self._waiting or not connection.can_read():  # the parser may hold more than the socket shows
                return

    def _read_one(self, connection: Any) -> None:
        reply: Any
        try:
            reply = connection.read_response(disable_decoding=True)
        except NoScriptError as error:
            reply = error
            on_reply, script, rest = self._waiting[0]
            if script is not None:
                self._waiting.popleft()
                self._waiting.append((on_reply, None, rest))
                connection.send_command("EVAL", script.text, *rest, check_health=False)
                return
        except ResponseError as error:
            reply = error
        self._waiting.popleft()[0](reply)
