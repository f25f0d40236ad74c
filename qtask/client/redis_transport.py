"""The transports directly to Redis, synchronous and for asyncio: one round trip per batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from qtask import forks
from qtask.client import protocol
from qtask.client.gathered import Gathered, submit_gathered, submit_gathered_async
from qtask.client.protocol import Accepted, Answer, TaskLike
from qtask.destinations.parsing import check_task
from qtask.model.errors import Unavailable
from qtask.model.flow import Changes
from qtask.model.flow_record import FlowRecord
from qtask.model.queue_record import QueueRecord
from qtask.model.queues import one_queue
from qtask.model.record import State, TaskRecord
from qtask.model.validation import Checked
from qtask.store import all_queues, flow_records, queues, tasks
from qtask.store.connect import connect, connect_async, read_again, read_again_async, reason_of
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Place, Submission, submit

DEFAULT_QUEUE = "qtask"
ASK_LIMIT = 32  # queries of an asyncio client at the same time; each uses one connection

_Tasks = Gathered[Checked]
_Found = TypeVar("_Found")


def _gathered() -> _Tasks:
    return Gathered(check_task, lambda checked: len(checked.body))


def _batch(gathered: _Tasks, queue: str) -> Batch:
    return Batch(queue, [Submission(checked) for checked in gathered.ready])


def _answers(gathered: _Tasks, places: Sequence[Place | None]) -> list[Answer]:
    return gathered.answers(_accepted(place) for place in places)


def _accepted(place: Place | None) -> Accepted:
    assert place is not None, "only an entry of the inbox may have been committed by another gateway"
    return Accepted(place.id, place.due, place.duplicate)


def _lost(gathered: _Tasks, error: Exception, url: str) -> Unavailable:
    """The error when Redis did not answer a batch."""
    return protocol.lost("Redis", reason_of(error, url), len(gathered.ready))


class RedisTransport:
    """The synchronous transport."""

    def __init__(self, url: str, queue: str | None, timeout: float) -> None:
        self._queue = one_queue(queue or DEFAULT_QUEUE)
        self._looked_at = queue
        self._url = url
        self._redis = connect(url, timeout)
        self._nodes = Nodes()

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def _asking(self) -> Iterator[Redis]:
        """Yields the client of Redis; its errors become `Unavailable`."""
        try:
            yield self._redis
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {reason_of(error, self._url)}") from None

    def show(self, task_id: str) -> TaskRecord:
        with self._asking() as redis:
            return read_again(lambda: tasks.show(redis, task_id, protocol.client_mask()))

    def list_tasks(self, state: State, limit: int) -> list[TaskRecord]:
        with self._asking() as redis:
            return read_again(
                lambda: all_queues.list_tasks(redis, self._looked_at, state, limit, protocol.client_mask())
            )

    def find_dead(self, type: str | None, error: str | None, link: str | None, title: str | None) -> Sequence[str]:
        wanted = tasks.Filter(type, error, link, title)
        with self._asking() as redis:
            return read_again(lambda: all_queues.find_dead(redis, self._looked_at, wanted))

    def cancel(self, task_id: str) -> State:
        with self._asking() as redis:
            return tasks.cancel(redis, task_id)

    def forget(self, task_id: str) -> State:
        with self._asking() as redis:
            return tasks.forget(redis, task_id)

    def retry(self, ids: Sequence[str]) -> Sequence[str]:
        with self._asking() as redis:
            return tasks.retry(redis, ids)

    def remove(self, ids: Sequence[str]) -> Sequence[str]:
        with self._asking() as redis:
            return tasks.remove_dead(redis, ids)

    def flows(self, limit: int) -> list[FlowRecord]:
        with self._asking() as redis:
            return read_again(lambda: flow_records.busiest_flows(redis, limit))

    def flow(self, key: str) -> FlowRecord:
        with self._asking() as redis:
            return read_again(lambda: flow_records.show_flow(redis, key))

    def set_flow(self, key: str, changes: Changes) -> FlowRecord:
        with self._asking() as redis:
            return flow_records.set_flow(redis, key, changes)

    def pause_flow(self, key: str, paused: bool) -> FlowRecord:
        with self._asking() as redis:
            return flow_records.pause_flow(redis, key, paused)

    def reset_flow(self, key: str) -> FlowRecord:
        with self._asking() as redis:
            return flow_records.reset_flow(redis, key)

    def remove_flow(self, key: str) -> None:
        with self._asking() as redis:
            flow_records.remove_flow(redis, key)

    def queues(self) -> list[QueueRecord]:
        with self._asking() as redis:
            return read_again(lambda: queues.list_queues(redis))

    def pause_queue(self, name: str, paused: bool) -> QueueRecord:
        with self._asking() as redis:
            return queues.pause_queue(redis, name, paused)

    def purge_queue(self, name: str) -> int:
        with self._asking() as redis:
            return queues.purge_queue(redis, name)

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        return submit_gathered(tasks, _gathered, self._commit)

    def _commit(self, gathered: _Tasks) -> list[Answer]:
        if not gathered.ready:
            return gathered.answers([])
        batch = _batch(gathered, self._queue)
        try:
            try:
                places = submit(self._redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids, so no task is accepted twice
                places = submit(self._redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise _lost(gathered, error, self._url) from None
        return _answers(gathered, places)


class AsyncRedisTransport:
    """The transport for asyncio."""

    def __init__(self, url: str, queue: str | None, timeout: float) -> None:
        self._url = url
        self._queue = one_queue(queue or DEFAULT_QUEUE)
        self._looked_at = queue
        self._timeout = timeout
        self._redis: AsyncRedis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking = asyncio.Semaphore(ASK_LIMIT)
        self._nodes = Nodes()
        forks.register(self)

    def after_fork(self) -> None:
        self._redis = self._loop = None

    async def close(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None and self._loop is asyncio.get_running_loop():
            await redis.aclose()

    async def show(self, task_id: str) -> TaskRecord:
        return await self._look(lambda redis: tasks.show.run_async(redis, task_id, protocol.client_mask()))

    async def list_tasks(self, state: State, limit: int) -> list[TaskRecord]:
        mask = protocol.client_mask()
        return await self._look(
            lambda redis: all_queues.list_tasks.run_async(redis, self._looked_at, state, limit, mask)
        )

    async def find_dead(
        self, type: str | None, error: str | None, link: str | None, title: str | None
    ) -> Sequence[str]:
        wanted = tasks.Filter(type, error, link, title)
        return await self._look(lambda redis: all_queues.find_dead.run_async(redis, self._looked_at, wanted))

    async def cancel(self, task_id: str) -> State:
        return await self._ask(lambda redis: tasks.cancel.run_async(redis, task_id))

    async def forget(self, task_id: str) -> State:
        return await self._ask(lambda redis: tasks.forget.run_async(redis, task_id))

    async def retry(self, ids: Sequence[str]) -> Sequence[str]:
        return await self._ask(lambda redis: tasks.retry.run_async(redis, ids))

    async def remove(self, ids: Sequence[str]) -> Sequence[str]:
        return await self._ask(lambda redis: tasks.remove_dead.run_async(redis, ids))

    async def flows(self, limit: int) -> list[FlowRecord]:
        return await self._look(lambda redis: flow_records.busiest_flows.run_async(redis, limit))

    async def flow(self, key: str) -> FlowRecord:
        return await self._look(lambda redis: flow_records.show_flow.run_async(redis, key))

    async def set_flow(self, key: str, changes: Changes) -> FlowRecord:
        return await self._ask(lambda redis: flow_records.set_flow.run_async(redis, key, changes))

    async def pause_flow(self, key: str, paused: bool) -> FlowRecord:
        return await self._ask(lambda redis: flow_records.pause_flow.run_async(redis, key, paused))

    async def reset_flow(self, key: str) -> FlowRecord:
        return await self._ask(lambda redis: flow_records.reset_flow.run_async(redis, key))

    async def remove_flow(self, key: str) -> None:
        await self._ask(lambda redis: flow_records.remove_flow.run_async(redis, key))

    async def queues(self) -> list[QueueRecord]:
        return await self._look(queues.list_queues.run_async)

    async def pause_queue(self, name: str, paused: bool) -> QueueRecord:
        return await self._ask(lambda redis: queues.pause_queue.run_async(redis, name, paused))

    async def purge_queue(self, name: str) -> int:
        return await self._ask(lambda redis: queues.purge_queue.run_async(redis, name))

    async def _look(self, query: Callable[[AsyncRedis], Awaitable[_Found]]) -> _Found:
        """Carries out a query that changes nothing; again if its connection broke."""
        return await self._ask(lambda redis: read_again_async(lambda: query(redis)))

    async def _ask(self, query: Callable[[AsyncRedis], Awaitable[_Found]]) -> _Found:
        """Carries out a query; errors of Redis become `Unavailable`."""
        redis = self._connected()
        async with self._asking:
            try:
                return await query(redis)
            except (RedisError, OSError) as error:
                raise Unavailable(f"Redis does not answer: {reason_of(error, self._url)}") from None

    def send(self, tasks: AsyncIterable[TaskLike]) -> AsyncIterator[Answer]:
        return submit_gathered_async(tasks, _gathered, self._commit)

    async def _commit(self, gathered: _Tasks) -> list[Answer]:
        if not gathered.ready:
            return gathered.answers([])
        redis, batch = self._connected(), _batch(gathered, self._queue)
        try:
            try:
                places = await submit.run_async(redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids, so no task is accepted twice
                places = await submit.run_async(redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise _lost(gathered, error, self._url) from None
        return _answers(gathered, places)

    def _connected(self) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        if self._redis is None or self._loop is not loop:  # a connection ends with its event loop
            self._redis, self._loop = connect_async(self._url, self._timeout), loop
            self._asking = asyncio.Semaphore(ASK_LIMIT)
        return self._redis
