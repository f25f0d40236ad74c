"""Delivers `redis` tasks: runs each command in a thread, over a connection that is kept for the next one.

redis-py makes the connections (look-up, TLS, login, database) and implements the protocol. It blocks, so it needs the
threads. A server that hangs blocks only a few of them and never the loop, where a timer ends each task at its timeout.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from qtask.config import Config
from qtask.delivery.authorities import ca_bundle
from qtask.delivery.causes import causes_of
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import Loop
from qtask.destinations.redis import DESTINATION, Value, command_of
from qtask.model.outcome import Answer, Failure, excerpt
from qtask.store.connect import connect, reason_of

THREADS = 64  # how many commands are sent at once
CONNECTIONS = 4  # to one server
SERVERS = 64  # whose connections are kept
IDLE_SECONDS = 60.0  # how long a thread without work stays
STEP_SECONDS = 10.0  # for one step of connecting, or for sending: no thread blocks for longer

# The errors of a Redis that accepts no commands, or no writes, at the moment.
_UNAVAILABLE = (BusyLoadingError, OutOfMemoryError, ReadOnlyError, MasterDownError, ClusterDownError, TryAgainError)
_UNAVAILABLE_WORDS = ("BUSY ", "MISCONF ", "NOREPLICAS ")  # redis-py has no classes for these errors
_KEPT_CONNECTION_BROKE = "a kept connection broke before the answer came"


class RedisDeliverer:
    """Delivers to other Redis servers."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._threads = Threads(loop, config.ca_file)

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        Command(self._loop, command_of(claim.task), claim, done, self._threads.add).start()

    def close(self) -> None:
        """Closes the connections, and ends each thread after its command."""
        self._threads.close()


class Command(Exchange):
    """The delivery of one command.

    Attributes:
        url: of the server.
        place: the same without credentials, for messages.
        words: the command and its arguments.
        sent: whether it may have reached the server; a thread sets it.
    """

    def __init__(
        self, loop: Loop, words: list[Value], claim: Claim, done: Done, add: Callable[[Command], None]
    ) -> None:
        super().__init__(loop, claim, done)
        self.url = claim.task.address.link
        self.place = DESTINATION.place(self.url)
        self.words = words
        self.sent = False
        self._add = add

    def begin(self) -> None:
        """Waits for a thread."""
        self.set_timer(self.deadline, self._on_timeout)
        self._add(self)

    def release(self) -> None:
        """Nothing is held; a thread that runs the command sees at its next step that the delivery has ended."""

    def _on_timeout(self) -> None:
        what = "did not answer" if self.sent else "did not take a connection"
        self.end(Failure("timeout", f"{self.place} {what} within {self.timeout:g} s"))


class Server:
    """A server and its free connections.

    Args:
        url: of the server.
        authorities: the file or folder of the authorities to trust.
    """

    def __init__(self, url: str, authorities: Path) -> None:
        self._redis: Redis = connect(url, STEP_SECONDS)
        self._free: list[Any] = []  # redis-py has no useful types for connections
        self._needs: Path | None = None
        if url.startswith("rediss://"):
            self._needs = authorities
            option = "ssl_ca_path" if authorities.is_dir() else "ssl_ca_certs"
            self._redis.connection_pool.connection_kwargs[option] = str(authorities)

    def run(self, command: Command) -> Answer:
        """Runs a command. Raises `Failure`, or the error of redis-py or of a socket."""
        if self._needs and not self._needs.exists():
            raise Failure("tls", f"{command.place}: the certificates to trust, {self._needs}, do not exist")
        connection, kept = self._connection()
        if command.ended:
            self._free.append(connection)
            raise Failure("timeout", "its time is over")
        command.sent = True
        try:
            connection.send_command(*command.words)
            if not connection.can_read(timeout=max(0.0, command.deadline - monotonic())):
                connection.disconnect()
                raise Failure("timeout", f"{command.place} did not answer within {command.timeout:g} s")
            reply = connection.read_response(disable_decoding=True)
        except ResponseError:
            self._free.append(connection)
            raise
        except (RedisError, OSError):
            connection.disconnect()
            if kept:
                raise Failure("connect", f"{command.place}: {_KEPT_CONNECTION_BROKE}", at_once=True) from None
            raise
        self._free.append(connection)
        return _answer(command.words[0], reply)

    def close(self) -> None:
        """Closes the free connections."""
        while self._free:
            self._free.pop().disconnect()

    def _connection(self) -> tuple[Any, bool]:
        """A connection, and whether it was used before. One that the server has closed is connected again."""
        try:
            kept = self._free.pop()
        except IndexError:
            made: Any = self._redis.connection_pool.make_connection()
            made.connect()
            return made, False
        try:
            closed = kept.can_read(timeout=0)
        except (RedisError, OSError):
            closed = True
        if closed:
            kept.disconnect()
        kept.connect()
        return kept, not closed


class Threads:
    """The threads that run the commands, and their shared state. A server gets at most a few of them."""

    def __init__(self, loop: Loop, ca_file: str) -> None:
        self._loop = loop
        self._authorities = ca_bundle(ca_file)
        self._changed = threading.Condition()  # protects everything below
        self._waiting: OrderedDict[str, deque[Command]] = OrderedDict()  # by server; the first server is next
        self._servers: OrderedDict[str, Server] = OrderedDict()  # the last used is at the end
        self._busy: Counter[str] = Counter()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def add(self, command: Command) -> None:
        """Queues a command for a thread. Raises `RuntimeError` if there is no thread and none can be started."""
        with self._changed:
            queue = self._waiting.setdefault(command.url, deque())
            queue.append(command)
            if len(queue) + self._busy[command.url] > CONNECTIONS:
                return  # the threads that already serve this server will run it
            if self._idle:
                self._idle -= 1
                self._changed.notify()
                return
            if self._threads == THREADS:
                return
            try:
                threading.Thread(target=self._serve, name="redis", daemon=True).start()
            except RuntimeError:
                if not self._threads:
                    del self._waiting[command.url]
                    raise
            else:
                self._threads += 1

    def close(self) -> None:
        """Drops waiting commands, and ends the threads."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            if not self._threads:
                self._close_servers()

    def _serve(self) -> None:
        while (found := self._take()) is not None:
            command, server = found
            result: Answer | Failure
            try:
                result = server.run(command)
            except Failure as failure:
                result = failure
            except (RedisError, OSError) as error:
                result = failure_of(error, command)
            except Exception as error:
                self._loop.call_from_thread(partial(command.on_error, error), command.on_error)
                continue
            finally:
                with self._changed:
                    self._busy[command.url] -= 1
            self._loop.call_from_thread(partial(command.end, result), command.on_error)

    def _take(self) -> tuple[Command, Server] | None:
        """The next command and its server; None if this thread must end."""
        with self._changed:
            waited = False
            while (command := self._next()) is None:
                if self._closed or waited:
                    self._threads -= 1
                    if not self._threads:
                        self._close_servers()
                    return None
                self._idle += 1
                if not self._changed.wait(IDLE_SECONDS):
                    waited = True
                    self._idle = max(0, self._idle - 1)  # a notification reduces it too, so it may be 0 already
            self._busy[command.url] += 1
            return command, self._server(command.url)

    def _next(self) -> Command | None:
        for url in list(self._waiting):
            queue = self._waiting[url]
            while queue and queue[0].ended:
                queue.popleft()
            if queue and self._busy[url] >= CONNECTIONS:
                continue
            del self._waiting[url]
            if queue:
                command = queue.popleft()
                if queue:
                    self._waiting[url] = queue  # after the other servers
                return command
        return None

    def _server(self, url: str) -> Server:
        server = self._servers.pop(url, None) or Server(url, self._authorities)
        self._servers[url] = server
        while len(self._servers) > SERVERS:
            oldest = next(one for one in self._servers if not self._busy[one])  # there are fewer threads than servers
            self._servers.pop(oldest).close()
            del self._busy[oldest]
        return server

    def _close_servers(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()


def failure_of(error: Exception, command: Command) -> Failure:
    """The failure for an error of redis-py or of a socket; its message contains no secrets of the address."""
    said = reason_of(error, command.url)
    words = f"{command.place}: {said}"
    causes = causes_of(error)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Failure("dns", words)
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return Failure("tls", words)
    if isinstance(error, _UNAVAILABLE) or said.startswith(_UNAVAILABLE_WORDS):
        return Failure("unavailable", words)
    if isinstance(error, ResponseError | AuthenticationError | NoPermissionError):
        return Failure("rejected", words)
    if isinstance(error, InvalidResponse) or "Protocol Error" in said:
        return Failure("protocol", words)
    if isinstance(error, RedisTimeoutError | TimeoutError):
        return Failure("timeout", words)
    return Failure("connect", words)


def _answer(name: Value, reply: Any) -> Answer:
    """For PUBLISH the number of subscribers, for XADD the id of the entry, for RPUSH the length of the list."""
    text = excerpt(reply) if isinstance(reply, bytes) else str(reply)
    return Answer(text=text, note="nobody subscribes to the channel" if name == "PUBLISH" and reply == 0 else "")
