"""`qtask.Client`."""

from __future__ import annotations

import selectors
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from qtask.client import requests
from qtask.client.requests import Accepted, Answer, Delay, Instant, TaskLike
from qtask.errors import QTaskError, Refused, Unavailable

if TYPE_CHECKING:
    from qtask.store.tasks import State, TaskRecord


class Client:
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
        if isinstance(answer, Refused):
            raise answer
        return answer

    def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        return list(self.send_iter(tasks))

    def send_iter(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        """As `send_many`, but takes tasks and yields answers as they come, for more than fits into memory."""
        if self._redis is not None:
            return self._redis.send(tasks)
        assert self._socket is not None
        return self._socket.send(tasks)

    def http(
        self,
        url: str,
        *,
        delay: Delay | None = None,
        at: Instant | None = None,
        method: str = "GET",
        headers: Mapping[str, str] | str | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: str | Mapping[str, Any] | None = None,
        title: str = "",
        timeout: float | None = None,
    ) -> Accepted:
        """Submits an HTTP request, in the words of requests, for after `delay` seconds or for the instant `at`."""
        body = requests.http_data(method, {"headers": headers, "params": params, "json": json, "data": data})
        return self.send(requests.build("http", url, body, delay, at, title, timeout))

    def socket(
        self, address: str, data: Any, *, delay: Delay | None = None, at: Instant | None = None, title: str = ""
    ) -> Accepted:
        """Submits `data` (any JSON) for a socket: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""
        return self.send(requests.build("socket", address, data, delay, at, title, None))

    def pipe(
        self, name: str, data: Any, *, delay: Delay | None = None, at: Instant | None = None, title: str = ""
    ) -> Accepted:
        """Submits `data` (any JSON) for a named pipe."""
        return self.send(requests.build("pipe", name, {"data": data}, delay, at, title, None))

    def graph(self, *, title: str = "graph") -> Accepted:
        """Asks for a graph of how punctual deliveries were; its id fetches the picture."""
        return self.send(requests.build("__graph__", "", None, None, None, title, None))

    def show(self, task_id: str) -> TaskRecord:
        """The task with this id (`redis://` only). Raises `NotFound`."""
        from qtask.store import tasks

        return tasks.show(self._need_redis().redis, task_id)

    def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """Tasks in one state (`redis://` only)."""
        from qtask.store import tasks

        way = self._need_redis()
        return tasks.list_tasks(way.redis, way.queue, state, limit)

    def cancel(self, task_id: str) -> State:
        """Removes a task that is not being delivered (`redis://` only). Raises `NotFound`."""
        from qtask.store import tasks

        return tasks.cancel(self._need_redis().redis, task_id)

    def _need_redis(self) -> _RedisWay:
        if self._redis is None:
            raise QTaskError(
                f"the gateway at {self.url} only accepts tasks; give the client a redis:// address for this"
            )
        return self._redis


class _RedisWay:
    """Straight into Redis, a round trip a batch."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        from qtask.ids import IdSource
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

    def _send_batch(self, batch: list[TaskLike]) -> list[Answer]:
        from redis.exceptions import RedisError

        from qtask.store.submit import Submission, id_of, id_source, submit
        from qtask.task import check_task

        answers: list[Answer | None] = []
        submissions: list[Submission] = []
        try:
            if self._ids is None:
                self._ids = id_source(self.redis)
            for task in batch:
                try:
                    checked = check_task(task)
                    submissions.append(Submission(id_of(checked, self._ids), checked))
                    answers.append(None)
                except Refused as refused:
                    answers.append(refused)
            places = submit(self.redis, self.queue, submissions) if submissions else []
        except (RedisError, OSError) as error:
            raise Unavailable(
                f"Redis does not answer: {error}; whether the {len(batch)} tasks of this batch were accepted "
                "is not known"
            ) from None
        accepted = requests.accepted((submission.id for submission in submissions), places)
        return [answer or next(accepted) for answer in answers]


class _SocketWay:
    """Over the gateway's socket: many lines on their way out while answers come in."""

    def __init__(self, url: str, timeout: float) -> None:
        self._host, self._port = requests.host_and_port(url)
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._received = bytearray()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._received.clear()

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        connection = self._connect()
        whole = False
        try:
            yield from self._pump(connection, iter(tasks))
            whole = True
        finally:
            if not whole:  # answers of an abandoned exchange must not be taken for those of the next
                self.close()

    def _connect(self) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = socket.create_connection((self._host, self._port), self._timeout)
            except OSError as error:
                raise Unavailable(
                    f"no gateway answers on {self._host}:{self._port}: {error}. Start one with `qtask up`, "
                    f"or name another with {requests.URL_VARIABLE}"
                ) from None
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
        return self._socket

    def _pump(self, connection: socket.socket, tasks: Iterator[TaskLike]) -> Iterator[Answer]:
        owed: deque[Refused | None] = deque()  # what each next answer is: already known, or to be read
        out = bytearray()
        more = True
        with selectors.DefaultSelector() as selector:
            selector.register(connection, selectors.EVENT_READ)
            last = monotonic()
            while more or owed:
                while more and len(owed) < requests.WINDOW and len(out) < 262_144:
                    task = next(tasks, None)
                    if task is None:
                        more = False
                        break
                    try:
                        out += requests.line_of(task)
                        owed.append(None)
                    except Refused as refused:
                        owed.append(refused)
                while owed and owed[0] is not None:
                    yield owed.popleft()  # type: ignore[misc]
                if not owed:
                    continue
                if out:
                    self._write(connection, out, owed)
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if out else 0)
                selector.modify(connection, events)
                if not selector.select(self._timeout):
                    raise self._lost(owed, f"no answer within {self._timeout:g} s")
                for answer in self._read(connection, owed):
                    last = monotonic()
                    yield answer
                if monotonic() - last > self._timeout:
                    raise self._lost(owed, f"no answer within {self._timeout:g} s")

    def _write(self, connection: socket.socket, out: bytearray, owed: deque[Refused | None]) -> None:
        try:
            del out[: connection.send(out)]
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(owed, str(error)) from None

    def _read(self, connection: socket.socket, owed: deque[Refused | None]) -> Iterator[Answer]:
        try:
            chunk = connection.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(owed, str(error)) from None
        if not chunk:
            raise self._lost(owed, "the gateway closed the connection")
        self._received += chunk
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        for line in lines:
            while owed and (known := owed[0]) is not None:
                owed.popleft()
                yield known
            if not owed:
                raise self._lost(owed, bytes(line[:200]).decode("utf-8", "replace"))
            owed.popleft()
            yield requests.read_answer(bytes(line))

    def _lost(self, owed: deque[Refused | None], why: str) -> Unavailable:
        unknown = sum(1 for known in owed if known is None)
        return Unavailable(
            f"the connection to the gateway at {self._host}:{self._port} is lost: {why}; whether the {unknown} tasks "
            "without an answer were accepted is not known, and they were not sent again"
        )
