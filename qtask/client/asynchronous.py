"""`qtask.AsyncClient`: as `Client`, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qtask.client import requests
from qtask.client.requests import Accepted, Answer, Delay, Instant, TaskLike
from qtask.errors import Refused, Unavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from qtask.ids import IdSource


class AsyncClient:
    """Submits tasks from asyncio; arguments and meaning as those of `Client`."""

    def __init__(self, url: str | None = None, *, queue: str = "qtask", timeout: float = 10.0) -> None:
        self.url = requests.choose_url(url)
        self._queue = queue
        self._timeout = timeout
        self._over_redis = requests.is_redis(self.url)
        self._redis: Redis | None = None
        self._ids: IdSource | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()  # answers come in the order of the lines, so one exchange at a time

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None

    async def send(self, task: TaskLike) -> Accepted:
        """Submits one task, and returns when Redis holds it. Raises `Refused` or `Unavailable`."""
        (answer,) = await self.send_many([task])
        if isinstance(answer, Refused):
            raise answer
        return answer

    async def send_many(self, tasks: Iterable[TaskLike]) -> list[Answer]:
        """Submits many; one answer a task, in order: `Accepted` or `Refused`. Raises `Unavailable`."""
        return [answer async for answer in self.send_iter(tasks)]

    async def send_iter(self, tasks: Iterable[TaskLike]) -> AsyncIterator[Answer]:
        """As `send_many`, but takes tasks and yields answers as they come."""
        async with self._turn:
            for batch in requests.batches(tasks, requests.BATCH):
                answers = await (self._send_redis(batch) if self._over_redis else self._send_socket(batch))
                for answer in answers:
                    yield answer

    async def http(
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
        """As `Client.http`."""
        body = requests.http_data(method, {"headers": headers, "params": params, "json": json, "data": data})
        return await self.send(requests.build("http", url, body, delay, at, title, timeout))

    async def socket(
        self, address: str, data: Any, *, delay: Delay | None = None, at: Instant | None = None, title: str = ""
    ) -> Accepted:
        """As `Client.socket`."""
        return await self.send(requests.build("socket", address, data, delay, at, title, None))

    async def pipe(
        self, name: str, data: Any, *, delay: Delay | None = None, at: Instant | None = None, title: str = ""
    ) -> Accepted:
        """As `Client.pipe`."""
        return await self.send(requests.build("pipe", name, {"data": data}, delay, at, title, None))

    async def graph(self, *, title: str = "graph") -> Accepted:
        """As `Client.graph`."""
        return await self.send(requests.build("__graph__", "", None, None, None, title, None))

    async def _send_redis(self, batch: list[TaskLike]) -> list[Answer]:
        from redis.exceptions import RedisError

        from qtask.store.connect import connect_async
        from qtask.store.submit import Submission, id_of, id_source_async, submit_async
        from qtask.task import check_task

        answers: list[Answer | None] = []
        submissions: list[Submission] = []
        try:
            if self._redis is None:
                self._redis = connect_async(self.url, self._timeout)
            if self._ids is None:
                self._ids = await id_source_async(self._redis)
            for task in batch:
                try:
                    checked = check_task(task)
                    submissions.append(Submission(id_of(checked, self._ids), checked))
                    answers.append(None)
                except Refused as refused:
                    answers.append(refused)
            places = await submit_async(self._redis, self._queue, submissions) if submissions else []
        except (RedisError, OSError) as error:
            raise Unavailable(
                f"Redis does not answer: {error}; whether the {len(batch)} tasks of this batch were accepted "
                "is not known"
            ) from None
        accepted = requests.accepted((submission.id for submission in submissions), places)
        return [answer or next(accepted) for answer in answers]

    async def _send_socket(self, batch: list[TaskLike]) -> list[Answer]:
        answers: list[Answer | None] = []
        lines = []
        for task in batch:
            try:
                lines.append(requests.line_of(task))
                answers.append(None)
            except Refused as refused:
                answers.append(refused)
        if not lines:
            return [answer for answer in answers if answer is not None]
        host, port = requests.host_and_port(self.url)
        try:
            async with asyncio.timeout(self._timeout):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(host, port, limit=2**20)
                reader, writer = self._streams
                # A batch of lines is at most what the gateway takes without its answers being read.
                writer.write(b"".join(lines))
                await writer.drain()
                received = [await reader.readuntil(b"\n") for _ in lines]
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            await self.close()
            raise Unavailable(
                f"no answer from the gateway at {host}:{port}: {error or type(error).__name__}; whether the "
                f"{len(lines)} tasks of this batch were accepted is not known, and they were not sent again"
            ) from None
        except asyncio.CancelledError:
            await self.close()  # answers of an abandoned exchange must not be taken for those of the next
            raise
        read = iter(received)
        return [answer or requests.read_answer(next(read)) for answer in answers]
