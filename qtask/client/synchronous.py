"""`qtask.Client`."""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from qtask.client import requests
from qtask.client.requests import Accepted, Answer, TaskArguments, TaskLike
from qtask.client.shorthands import Shorthands
from qtask.errors import QTaskError, Refused, Unavailable

if TYPE_CHECKING:
    from redis import Redis

    from qtask.ids import IdSource
    from qtask.store.tasks import State, TaskRecord

_Reply = TypeVar("_Reply")


class Client(Shorthands[Accepted]):
    """Submits tasks.

    Args:
        url: `socket://HOST:PORT` of a gateway, or `redis://…` for going straight into Redis; by default what
            `QTASK_URL` says, else the gateway on this host.
        queue: name of the RQ queue, for a `redis://` address.
        timeout: seconds to wait for a connection or an answer.
    """

    def __init__(self, url: str | None = None, *, queue: str = "qtask", timeout: float = 10.0) -> None:
        self.url = requests.choose_url(url)
        self._redis: _RedisWay | None = None
        self._socket: _SocketWay | None = None
        if requests.is_redis(self.url):
            self._redis = _RedisWay(self.url, queue, timeout)
        else:
            self._socket = _SocketWay(self.url, timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
        if self._redis is not None:
            self._redis.close()

    def send(self, task: TaskLike) -> Accepted:
        """Submits one task, and returns when Redis holds it. Raises `Refused` or `Unavailable`."""
        (answer,) = self.send_iter([task])
        return requests.only(answer)

    def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        return list(self.send_iter(tasks))

    def send_iter(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        """As `send_many`, but takes tasks and yields answers as they come, for more than fits into memory."""
        if self._redis is not None:
            return self._redis.send(tasks)
        assert self._socket is not None
        return self._socket.send(tasks)

    def _submit(self, kind: str, link: str, data: Any, arguments: TaskArguments) -> Accepted:
        return self.send(requests.build(kind, link, data, **arguments))

    def show(self, task_id: str) -> TaskRecord:
        """The task with this id (`redis://` only). Raises `NotFound`."""
        from qtask.store import tasks

        return self._need_redis().ask(lambda redis: tasks.show(redis, task_id))

    def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """Tasks in one state (`redis://` only)."""
        from qtask.store import tasks

        way = self._need_redis()
        return way.ask(lambda redis: tasks.list_tasks(redis, way.queue, state, limit))

    def cancel(self, task_id: str) -> State:
        """Removes a task that is not being delivered (`redis://` only). Raises `NotFound`."""
        from qtask.store import tasks

        return self._need_redis().ask(lambda redis: tasks.cancel(redis, task_id))

    def _need_redis(self) -> _RedisWay:
        if self._redis is None:
            raise QTaskError(
                f"the gateway at {self.url} only accepts tasks; give the client a redis:// address for this"
            )
        return self._redis


class _RedisWay:
    """Straight into Redis, a round trip a batch."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        from qtask.store.connect import connect

        self.queue = queue
        self.redis = connect(url, timeout)
        self._url = url
        self._ids: IdSource | None = None

    def close(self) -> None:
        self.redis.close()

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        for batch in requests.batches(tasks, requests.BATCH):
            yield from self._send_batch(batch)

    def ask(self, question: Callable[[Redis], _Reply]) -> _Reply:
        """Returns what Redis answers to a question. Raises `Unavailable`."""
        from redis.exceptions import RedisError

        try:
            return question(self.redis)
        except (RedisError, OSError) as error:
            raise requests.no_redis(self._url, error) from None

    def _send_batch(self, batch: list[TaskLike]) -> list[Answer]:
        from redis.exceptions import RedisError

        from qtask.store.submit import id_source, submit

        if self._ids is None:
            self._ids = self.ask(id_source)
        submissions, known = requests.submissions(batch, self._ids)
        try:
            places = submit(self.redis, self.queue, submissions) if submissions else []
        except (RedisError, OSError) as error:
            raise requests.lost_redis(self._url, error, len(submissions)) from None
        accepted = requests.accepted((one.id for one in submissions), places)
        return [refused or next(accepted) for refused in known]


class _SocketWay:
    """Over the gateway's socket, on a connection that rests between two exchanges.

    An exchange that is not over, such as a `send_iter` of which nobody has taken all answers, has a connection of its
    own: its answers are never taken for those of another.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.host, self.port = requests.host_and_port(url)
        self.timeout = timeout
        self._resting: socket.socket | None = None

    def close(self) -> None:
        if self._resting is not None:
            self._resting.close()
            self._resting = None

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        exchange = _Exchange(self, self._take_resting() or self.connect())
        whole = False
        try:
            yield from exchange.run(iter(tasks))
            whole = True
        finally:
            if whole and self._resting is None:
                self._resting = exchange.connection
            else:
                exchange.connection.close()

    def _take_resting(self) -> socket.socket | None:
        connection, self._resting = self._resting, None
        if connection is None or _is_quiet(connection):
            return connection
        connection.close()
        return None

    def connect(self) -> socket.socket:
        """A new connection, which does not block. Raises `Unavailable`."""
        try:
            connection = socket.create_connection((self.host, self.port), self.timeout)
        except OSError as error:
            raise requests.no_gateway(self.host, self.port, error) from None
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        return connection


def _is_quiet(connection: socket.socket) -> bool:
    """Whether nothing came while nobody asked; else the gateway has ended the connection, as it does after silence."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


class _Exchange:
    """Many tasks on their way out over one connection while answers come in."""

    def __init__(self, way: _SocketWay, connection: socket.socket) -> None:
        self.connection = connection
        self._way = way
        self._owed: deque[Refused | bytes] = deque()  # what each next answer is: already known, or that to a line
        self._owed_bytes = 0
        self._out = bytearray()
        self._received = bytearray()

    def run(self, tasks: Iterator[TaskLike]) -> Iterator[Answer]:
        """Yields an answer for each task, in order. Raises `Unavailable`."""
        more = True
        waited = 0.0  # seconds since the last answer, without those that the caller took
        while more or self._owed:
            if more:
                more = self._gather(tasks)
            yield from self._known()
            if not self._owed:
                continue
            if self.connection.fileno() < 0:
                self.connection = self._way.connect()
            self._write()
            waited += self._wait(self._way.timeout - waited)
            for answer in self._read():
                waited = 0.0
                yield answer
            if waited >= self._way.timeout:
                raise self._lost(f"no answer within {self._way.timeout:g} s")

    def _gather(self, tasks: Iterator[TaskLike]) -> bool:
        """Takes tasks for as long as there is room, and not for long; returns whether there may be more."""
        begun = monotonic()
        while len(self._owed) < requests.WINDOW and self._owed_bytes < requests.WINDOW_BYTES:
            try:
                task = next(tasks)
            except StopIteration:
                return False
            try:
                line = requests.line_of(task)
                self._out += line
                self._owed.append(line)
                self._owed_bytes += len(line)
            except Refused as refused:
                self._owed.append(refused)
            if len(self._out) > 262_144 or monotonic() - begun > requests.GATHER_SECONDS:
                break
        return True

    def _known(self) -> Iterator[Refused]:
        while self._owed and isinstance(known := self._owed[0], Refused):
            self._owed.popleft()
            yield known

    def _write(self) -> None:
        if self._out:
            with suppress(OSError):  # reading tells what is wrong, after the answers that have come until then
                del self._out[: self.connection.send(self._out)]

    def _wait(self, seconds: float) -> float:
        """Waits for an answer, or for room to write; returns the seconds that it took."""
        begun = monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0))
            selector.select(max(0.0, seconds))
        return monotonic() - begun

    def _read(self) -> Iterator[Answer]:
        try:
            chunk = self.connection.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(str(error)) from None
        if not chunk:
            raise self._lost("the gateway closed it")
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            yield from self._known()
            try:
                answer = requests.read_answer(bytes(line))
            except requests.Ended:
                self._begin_again()
                return
            if not self._owed:
                raise self._lost(f"an answer came that nobody asked for: {bytes(line[:80])!r}")
            self._owed_bytes -= len(cast(bytes, self._owed.popleft()))
            yield answer

    def _begin_again(self) -> None:
        """Hangs up; what has no answer goes out over a new connection, when there is something."""
        self.connection.close()
        self._received = bytearray()
        self._out = bytearray().join(line for line in self._owed if isinstance(line, bytes))

    def _lost(self, why: str) -> Unavailable:
        unanswered = sum(isinstance(owed, bytes) for owed in self._owed)
        return requests.lost(self._way.host, self._way.port, why, unanswered)
