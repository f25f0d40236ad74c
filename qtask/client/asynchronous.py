"""`qtask.AsyncClient`: as `Client`, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, MutableSequence, Sequence
from typing import TYPE_CHECKING, Any

from qtask.client import requests
from qtask.client.requests import Accepted, Answer, TaskArguments, TaskLike
from qtask.client.shorthands import Shorthands
from qtask.client.synchronous import Client

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from qtask.ids import IdSource
    from qtask.store.tasks import State, TaskRecord

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncClient(Shorthands[Coroutine[Any, Any, Accepted]]):
    """Submits tasks from asyncio; arguments and meaning as those of `Client`.

    Any number of coroutines of one event loop may use it at once; they take turns, a batch each.
    """

    def __init__(self, url: str | None = None, *, queue: str = "qtask", timeout: float = 10.0) -> None:
        self.url = requests.choose_url(url)
        self._queue = queue
        self._timeout = timeout
        self._over_redis = requests.is_redis(self.url)
        self._redis: Redis | None = None
        self._ids: IdSource | None = None
        self._streams: _Streams | None = None
        self._turn = asyncio.Lock()  # answers come in the order of the lines, so one exchange at a time
        # People look at tasks now and then, one at a time: a thread does for that, and connects only then.
        self._looking = Client(self.url, queue=queue, timeout=timeout)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; the next call opens another."""
        self._hang_up()
        self._looking.close()
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    async def send(self, task: TaskLike) -> Accepted:
        """Submits one task, and returns when Redis holds it. Raises `Refused` or `Unavailable`."""
        (answer,) = await self.send_many([task])
        return requests.only(answer)

    async def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        return [answer async for answer in self.send_iter(tasks)]

    async def send_iter(self, tasks: Iterable[TaskLike]) -> AsyncIterator[Answer]:
        """As `send_many`, but takes tasks and yields answers as they come."""
        for batch in requests.batches(tasks, requests.BATCH):
            async with self._turn:  # not while the caller has the answers: it may want to send, too
                answers = await (self._send_redis(batch) if self._over_redis else self._send_socket(batch))
            for answer in answers:
                yield answer

    async def _submit(self, kind: str, link: str, data: Any, arguments: TaskArguments) -> Accepted:
        return await self.send(requests.build(kind, link, data, **arguments))

    async def show(self, task_id: str) -> TaskRecord:
        """As `Client.show`."""
        return await asyncio.to_thread(self._looking.show, task_id)

    async def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """As `Client.list`."""
        return await asyncio.to_thread(self._looking.list, state, limit)

    async def cancel(self, task_id: str) -> State:
        """As `Client.cancel`."""
        return await asyncio.to_thread(self._looking.cancel, task_id)

    async def _send_redis(self, batch: Sequence[TaskLike]) -> Sequence[Answer]:
        from redis.exceptions import RedisError

        from qtask.store.connect import connect_async
        from qtask.store.submit import id_source_async, submit_async

        if self._redis is None:
            self._redis = connect_async(self.url, self._timeout)
        if self._ids is None:
            try:
                self._ids = await id_source_async(self._redis)
            except (RedisError, OSError) as error:
                raise requests.no_redis(self.url, error) from None
        submissions, known = requests.submissions(batch, self._ids)
        try:
            places = await submit_async(self._redis, self._queue, submissions) if submissions else []
        except (RedisError, OSError) as error:
            raise requests.lost_redis(self.url, error, len(submissions)) from None
        accepted = requests.accepted((one.id for one in submissions), places)
        return [refused or next(accepted) for refused in known]

    async def _send_socket(self, batch: Sequence[TaskLike]) -> Sequence[Answer]:
        lines, known = requests.prepare(batch, requests.line_of)
        answers: list[Answer] = []
        while len(answers) < len(lines):  # once, unless the gateway ends the connection and takes no more
            await self._exchange(lines, answers)
        read = iter(answers)
        return [refused or next(read) for refused in known]

    async def _exchange(self, lines: Sequence[bytes], answers: MutableSequence[Answer]) -> None:
        """Sends the lines that have no answer yet, and adds their answers."""
        host, port = requests.host_and_port(self.url)
        reader, writer = await self._take_resting() or await self._connect(host, port)
        try:
            async with asyncio.timeout(self._timeout):
                # A batch of lines is at most what the gateway takes without its answers being read.
                writer.write(b"".join(lines[len(answers) :]))
                await writer.drain()
                while len(answers) < len(lines):
                    answers.append(requests.read_answer(await reader.readuntil(b"\n")))
        except requests.Ended:
            writer.transport.abort()
        except BaseException as error:
            writer.transport.abort()  # answers of an abandoned exchange must not be taken for those of the next
            if not isinstance(error, OSError | EOFError | asyncio.LimitOverrunError):
                raise
            raise requests.lost(host, port, self._why(error), len(lines)) from None
        else:
            self._streams = reader, writer

    def _why(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        return "the gateway closed it" if isinstance(error, EOFError) else str(error)

    async def _connect(self, host: str, port: int) -> _Streams:
        try:
            async with asyncio.timeout(self._timeout):
                return await asyncio.open_connection(host, port, limit=2**20)
        except OSError as error:
            raise requests.no_gateway(host, port, error) from None

    async def _take_resting(self) -> _Streams | None:
        """The connection of the last exchange, unless the gateway has ended it."""
        streams, self._streams = self._streams, None
        if streams is None or await _is_quiet(streams[0]):
            return streams
        streams[1].transport.abort()
        return None

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _is_quiet(reader: asyncio.StreamReader) -> bool:
    """Whether nothing came while nobody asked; else the gateway has ended the connection, as it does after silence."""
    try:
        async with asyncio.timeout(0):
            await reader.read(1)
    except OSError as error:
        return isinstance(error, TimeoutError)
    return False
