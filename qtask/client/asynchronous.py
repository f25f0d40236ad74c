"""`qtask.AsyncClient`: as `Client`, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import UNSET, UnsetType

from qtask.client import protocol
from qtask.client.async_socket_transport import AsyncSocketTransport
from qtask.client.protocol import Accepted, Answer, TaskLike
from qtask.client.shorthands import Shorthands
from qtask.client.synchronous import Client
from qtask.client.words import known_words
from qtask.model.errors import Unavailable

if TYPE_CHECKING:
    from qtask.client.http_transport import AsyncHttpTransport
    from qtask.client.redis_transport import AsyncRedisTransport
    from qtask.model.flow_record import FlowRecord
    from qtask.model.queue_record import QueueRecord
    from qtask.model.record import State, TaskRecord

Tasks = Iterable[TaskLike] | AsyncIterable[TaskLike]


class AsyncClient(Shorthands[Coroutine[Any, Any, Accepted]]):
    """`Client` for asyncio: the same arguments and methods, to be awaited.

    Any number of coroutines of one event loop may use it at once.
    """

    @known_words()
    def __init__(self, url: str | None = None, *, queue: str | None = None, timeout: float = 10.0) -> None:
        self._plain = Client(url, queue=queue, timeout=timeout)  # for rare calls over HTTP, in a thread
        self.url = self._plain.url
        self._redis: AsyncRedisTransport | None = None
        self._transport: AsyncRedisTransport | AsyncHttpTransport | AsyncSocketTransport
        match protocol.transport_of(self.url):
            case "redis":
                from qtask.client.redis_transport import AsyncRedisTransport

                self._transport = self._redis = AsyncRedisTransport(self.url, queue, timeout)
            case "http":
                from qtask.client.http_transport import AsyncHttpTransport

                self._transport = AsyncHttpTransport(self.url, timeout)
            case "socket":
                self._transport = AsyncSocketTransport(self.url, timeout)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; the next call opens another."""
        await self._transport.close()
        self._plain.close()

    @known_words()
    async def send(self, task: TaskLike) -> Accepted:
        """As `Client.send`."""
        (answer,) = [answer async for answer in self.send_iter([task])]
        return protocol.accepted(answer)

    @known_words()
    async def send_many(self, tasks: Tasks) -> list[Answer]:
        """As `Client.send_many`; the tasks may also come from an async iterable."""
        answers: list[Answer] = []
        try:
            async for answer in self.send_iter(tasks):
                answers.append(answer)  # noqa: PERF401  # those that came are kept when the next do not
        except Unavailable as error:
            error.answers = answers
            raise
        return answers

    @known_words()
    def send_iter(self, tasks: Tasks) -> AsyncIterator[Answer]:
        """As `Client.send_iter`, for `async for`; the tasks may also come from an async iterable."""
        return self._transport.send(tasks if isinstance(tasks, AsyncIterable) else _each(tasks))

    @known_words()
    async def show(self, task_id: str) -> TaskRecord:
        """As `Client.show`."""
        if self._redis is not None:
            return await self._redis.show(task_id)
        return await asyncio.to_thread(self._plain.show, task_id)

    @known_words()
    async def list(self, state: State, limit: int = 50) -> list[TaskRecord]:
        """As `Client.list`."""
        if self._redis is not None:
            return await self._redis.list_tasks(state, limit)
        return await asyncio.to_thread(self._plain.list, state, limit)

    @known_words()
    async def cancel(self, task_id: str) -> State:
        """As `Client.cancel`."""
        if self._redis is not None:
            return await self._redis.cancel(task_id)
        return await asyncio.to_thread(self._plain.cancel, task_id)

    @known_words()
    async def forget(self, task_id: str) -> State:
        """As `Client.forget`."""
        if self._redis is not None:
            return await self._redis.forget(task_id)
        return await asyncio.to_thread(self._plain.forget, task_id)

    @known_words()
    async def find_dead(
        self,
        *,
        type: str | None = None,
        error: str | int | None = None,
        link: str | None = None,
        title: str | None = None,
    ) -> Sequence[str]:
        """As `Client.find_dead`."""
        if self._redis is not None:
            return await self._redis.find_dead(type, None if error is None else str(error), link, title)
        return await asyncio.to_thread(self._plain.find_dead, type=type, error=error, link=link, title=title)

    @known_words()
    async def retry(self, ids: Sequence[str]) -> Sequence[str]:
        """As `Client.retry`."""
        if self._redis is not None:
            return await self._redis.retry(ids)
        return await asyncio.to_thread(self._plain.retry, ids)

    @known_words()
    async def remove(self, ids: Sequence[str]) -> Sequence[str]:
        """As `Client.remove`."""
        if self._redis is not None:
            return await self._redis.remove(ids)
        return await asyncio.to_thread(self._plain.remove, ids)

    @known_words()
    async def flows(self, limit: int = 50) -> Sequence[FlowRecord]:
        """As `Client.flows`."""
        if self._redis is not None:
            return await self._redis.flows(limit)
        return await asyncio.to_thread(self._plain.flows, limit)

    @known_words()
    async def flow(self, key: str) -> FlowRecord:
        """As `Client.flow`."""
        if self._redis is not None:
            return await self._redis.flow(key)
        return await asyncio.to_thread(self._plain.flow, key)

    @known_words()
    async def set_flow(
        self,
        key: str,
        *,
        parallel: int | Literal["auto"] | UnsetType | None = UNSET,
        rate: float | UnsetType | None = UNSET,
        per: float | UnsetType | None = UNSET,
        burst: int | UnsetType | None = UNSET,
        ordered: bool | UnsetType | None = UNSET,
    ) -> FlowRecord:
        """As `Client.set_flow`."""
        if self._redis is not None:
            return await self._redis.set_flow(key, protocol.changes(parallel, rate, per, burst, ordered))
        return await asyncio.to_thread(
            self._plain.set_flow, key, parallel=parallel, rate=rate, per=per, burst=burst, ordered=ordered
        )

    @known_words()
    async def pause_flow(self, key: str) -> FlowRecord:
        """As `Client.pause_flow`."""
        if self._redis is not None:
            return await self._redis.pause_flow(key, True)
        return await asyncio.to_thread(self._plain.pause_flow, key)

    @known_words()
    async def resume_flow(self, key: str) -> FlowRecord:
        """As `Client.resume_flow`."""
        if self._redis is not None:
            return await self._redis.pause_flow(key, False)
        return await asyncio.to_thread(self._plain.resume_flow, key)

    @known_words()
    async def reset_flow(self, key: str) -> FlowRecord:
        """As `Client.reset_flow`."""
        if self._redis is not None:
            return await self._redis.reset_flow(key)
        return await asyncio.to_thread(self._plain.reset_flow, key)

    @known_words()
    async def remove_flow(self, key: str) -> None:
        """As `Client.remove_flow`."""
        if self._redis is not None:
            await self._redis.remove_flow(key)
        else:
            await asyncio.to_thread(self._plain.remove_flow, key)

    @known_words()
    async def queues(self) -> Sequence[QueueRecord]:
        """As `Client.queues`."""
        if self._redis is not None:
            return await self._redis.queues()
        return await asyncio.to_thread(self._plain.queues)

    @known_words()
    async def pause_queue(self, name: str) -> QueueRecord:
        """As `Client.pause_queue`."""
        if self._redis is not None:
            return await self._redis.pause_queue(name, True)
        return await asyncio.to_thread(self._plain.pause_queue, name)

    @known_words()
    async def resume_queue(self, name: str) -> QueueRecord:
        """As `Client.resume_queue`."""
        if self._redis is not None:
            return await self._redis.pause_queue(name, False)
        return await asyncio.to_thread(self._plain.resume_queue, name)

    @known_words()
    async def purge_queue(self, name: str) -> int:
        """As `Client.purge_queue`."""
        if self._redis is not None:
            return await self._redis.purge_queue(name)
        return await asyncio.to_thread(self._plain.purge_queue, name)


async def _each(tasks: Iterable[TaskLike]) -> AsyncIterator[TaskLike]:
    for task in tasks:
        yield task
