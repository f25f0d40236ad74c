"""Straight into Redis, a round trip a batch: the plain way and the one for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from qtask import forks
from qtask.check import Checked, check_task
from qtask.client import requests
from qtask.client.requests import Accepted, Answer, TaskLike
from qtask.errors import Refused, Unavailable
from qtask.store.connect import connect, connect_async
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Place, Submission, submit, submit_async

BATCH = 500  # tasks a round trip
BATCH_BYTES = 1_048_576
GATHER_SECONDS = 0.005  # a task waits no longer for others that come slowly


class _Gathered:
    """Tasks that gather to go to Redis together, and their answers in order."""

    def __init__(self) -> None:
        self._begun = monotonic()
        self._size = 0
        self._found: list[Checked | Refused] = []

    @property
    def sound(self) -> int:
        """How many tasks in it may be sent."""
        return sum(isinstance(found, Checked) for found in self._found)

    @property
    def full(self) -> bool:
        """Whether it is time to send it."""
        return len(self._found) >= BATCH or self._size >= BATCH_BYTES or monotonic() - self._begun > GATHER_SECONDS

    def add(self, task: TaskLike) -> None:
        try:
            checked = check_task(task)
        except Refused as refused:
            self._found.append(refused)
        else:
            self._found.append(checked)
            self._size += len(checked.body)

    def batch(self, queue: str) -> Batch:
        return Batch(queue, [Submission(found) for found in self._found if isinstance(found, Checked)])

    def answers(self, places: Sequence[Place | None]) -> list[Answer]:
        sent = iter(places)
        return [found if isinstance(found, Refused) else _accepted(next(sent)) for found in self._found]

    def lost(self, error: Exception) -> Unavailable:
        """What is said when Redis was not heard of again."""
        return requests.lost("Redis", str(error), self.sound)


def _accepted(place: Place | None) -> Accepted:
    assert place is not None, "only a task from the inbox may have been taken by another"
    return Accepted(place.id, place.due, place.duplicate)


class RedisWay:
    """The plain way. `asking` gives the client for whatever else there is to ask."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        self.queue = queue
        self._redis = connect(url, timeout)
        self._nodes = Nodes()

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def asking(self) -> Iterator[Redis]:
        """Lends the client; what Redis does not answer becomes `Unavailable`."""
        try:
            yield self._redis
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {error}") from None

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        gathered = _Gathered()
        for task in tasks:
            gathered.add(task)
            if gathered.full:
                yield from self._commit(gathered)
                gathered = _Gathered()
        yield from self._commit(gathered)

    def _commit(self, gathered: _Gathered) -> list[Answer]:
        if not gathered.sound:
            return gathered.answers([])
        batch = gathered.batch(self.queue)
        try:
            try:
                places = submit(self._redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids: what was accepted is not accepted twice
                places = submit(self._redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise gathered.lost(error) from None
        return gathered.answers(places)


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
        gathered = _Gathered()
        async for task in tasks:
            gathered.add(task)
            if gathered.full:
                for answer in await self._commit(gathered):
                    yield answer
                gathered = _Gathered()
        for answer in await self._commit(gathered):
            yield answer

    async def _commit(self, gathered: _Gathered) -> list[Answer]:
        if not gathered.sound:
            return gathered.answers([])
        redis, batch = self._connected(), gathered.batch(self._queue)
        try:
            try:
                places = await submit_async(redis, self._nodes, batch)
            except RedisConnectionError:  # the batch keeps its ids: what was accepted is not accepted twice
                places = await submit_async(redis, self._nodes, batch)
        except (RedisError, OSError, Unavailable) as error:
            raise gathered.lost(error) from None
        return gathered.answers(places)

    def _connected(self) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        if self._redis is None or self._loop is not loop:  # a connection ends with its event loop
            self._redis, self._loop = connect_async(self._url, self._timeout), loop
        return self._redis
