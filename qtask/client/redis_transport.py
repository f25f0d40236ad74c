"""Straight into Redis, a round trip a batch: the plain way and the one for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from qtask import forks
from qtask.client import protocol as requests
from qtask.client.gathered import Gathered
from qtask.client.protocol import Accepted, Answer, TaskLike
from qtask.destinations.parsing import check_task
from qtask.model.errors import Unavailable
from qtask.model.record import State, TaskRecord
from qtask.model.validation import Checked
from qtask.store import tasks
from qtask.store.connect import connect, connect_async, read_again, reason_of
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Place, Submission, submit, submit_async

_Tasks = Gathered[Checked]


def _gathered() -> _Tasks:
    return Gathered(check_task, lambda checked: len(checked.body))


def _batch(gathered: _Tasks, queue: str) -> Batch:
    return Batch(queue, [Submission(checked) for checked in gathered.ready])


def _answers(gathered: _Tasks, places: Sequence[Place | None]) -> list[Answer]:
    return gathered.answers(_accepted(place) for place in places)


def _accepted(place: Place | None) -> Accepted:
    assert place is not None, "only a task from the inbox may have been taken by another"
    return Accepted(place.id, place.due, place.duplicate)


def _lost(gathered: _Tasks, error: Exception, url: str) -> Unavailable:
    """What is said when Redis was not heard of again."""
    return requests.lost("Redis", reason_of(error, url), len(gathered.ready))


class RedisWay:
    """The plain way."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        self._queue = queue
        self._url = url
        self._redis = connect(url, timeout)
        self._nodes = Nodes()

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def _asking(self) -> Iterator[Redis]:
        """Lends the client; what Redis does not answer becomes `Unavailable`."""
        try:
            yield self._redis
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {reason_of(error, self._url)}") from None

    def show(self, task_id: str) -> TaskRecord:
        with self._asking() as redis:
            return read_again(lambda: tasks.show(redis, task_id, requests.client_mask()))

    def list_tasks(self, state: State, limit: int) -> list[TaskRecord]:
        with self._asking() as redis:
            return read_again(lambda: tasks.list_tasks(redis, self._queue, state, limit, requests.client_mask()))

    def find_dead(self, kind: str | None, error: str | None, link: str | None, title: str | None) -> Sequence[str]:
        wanted = tasks.Filter(kind, error, link, title)
        with self._asking() as redis:
            return read_again(lambda: list(chain.from_iterable(tasks.find_dead(redis, self._queue, wanted))))

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

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        gathered = _gathered()
        for task in tasks:
            gathered.add(task)
            if gathered.full:
                yield from self._commit(gathered)
                gathered = _gathered()
        yield from self._commit(gathered)

    def _commit(self, gathered: _Tasks) -> list[Answer]:
        if not gathered.ready:
            return gathered.answers([])
        batch = _batch(gathered, self._queue)
        try:
            try:
                places = submit(self._redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids: what was accepted is not accepted twice
                places = submit(self._redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise _lost(gathered, error, self._url) from None
        return _answers(gathered, places)


class AsyncRedisWay:
    """The way for asyncio."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        self._url = url
        self._queue = queue
        self._timeout = timeout
        self._redis: AsyncRedis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._nodes = Nodes()
        forks.register(self)

    def after_fork(self) -> None:
        self._redis = self._loop = None

    async def close(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None and self._loop is asyncio.get_running_loop():
            await redis.aclose()

    async def send(self, tasks: AsyncIterable[TaskLike]) -> AsyncIterator[Answer]:
        gathered = _gathered()
        async for task in tasks:
            gathered.add(task)
            if gathered.full:
                for answer in await self._commit(gathered):
                    yield answer
                gathered = _gathered()
        for answer in await self._commit(gathered):
            yield answer

    async def _commit(self, gathered: _Tasks) -> list[Answer]:
        if not gathered.ready:
            return gathered.answers([])
        redis, batch = self._connected(), _batch(gathered, self._queue)
        try:
            try:
                places = await submit_async(redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids: what was accepted is not accepted twice
                places = await submit_async(redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise _lost(gathered, error, self._url) from None
        return _answers(gathered, places)

    def _connected(self) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        if self._redis is None or self._loop is not loop:  # a connection ends with its event loop
            self._redis, self._loop = connect_async(self._url, self._timeout), loop
        return self._redis
