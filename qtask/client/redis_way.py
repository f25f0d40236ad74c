"""Straight into Redis, a round trip a batch: the plain way and the one for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from qtask.check import Checked, check_task
from qtask.client import requests
from qtask.client.requests import Accepted, Answer, TaskLike
from qtask.errors import Refused, Unavailable
from qtask.ids import IdSource
from qtask.store.connect import connect, connect_async, reason_of
from qtask.store.submit import Place, Submission, id_of, id_source, id_source_async, submit, submit_async

BATCH = 500  # tasks a round trip
BATCH_BYTES = 1_048_576
GATHER_SECONDS = 0.005  # a task waits no longer for others that come slowly


class _Batch:
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

    def submissions(self, ids: IdSource) -> list[Submission]:
        return [Submission(id_of(found, ids), found) for found in self._found if isinstance(found, Checked)]

    def answers(self, submissions: list[Submission], places: list[Place | None]) -> list[Answer]:
        sent = iter(zip(submissions, places, strict=True))
        return [found if isinstance(found, Refused) else _accepted(*next(sent)) for found in self._found]

    def lost(self, error: Exception, url: str) -> Unavailable:
        """What is said when Redis was not heard of again."""
        return requests.lost("Redis", reason_of(error, url), self.sound)


def _accepted(submission: Submission, place: Place | None) -> Accepted:
    assert place is not None, "only a task from the inbox may have been taken by another"
    return Accepted(submission.id, place.due, place.duplicate)


class RedisWay:
    """The plain way. `asking` gives the client for whatever else there is to ask."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        self.queue = queue
        self._url = url
        self._redis = connect(url, timeout)
        self._ids: IdSource | None = None

    def close(self) -> None:
        self._redis.close()

    @contextmanager
    def asking(self) -> Iterator[Redis]:
        """Lends the client; what Redis does not answer becomes `Unavailable`."""
        try:
            yield self._redis
        except (RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {reason_of(error, self._url)}") from None

    def send(self, tasks: Iterable[TaskLike]) -> Iterator[Answer]:
        batch = _Batch()
        for task in tasks:
            batch.add(task)
            if batch.full:
                yield from self._commit(batch)
                batch = _Batch()
        yield from self._commit(batch)

    def _commit(self, batch: _Batch) -> list[Answer]:
        if not batch.sound:
            return batch.answers([], [])
        try:
            if self._ids is None:
                self._ids = id_source(self._redis)
            submissions = batch.submissions(self._ids)
            places = submit(self._redis, self.queue, submissions)
        except (RedisError, OSError) as error:
            self._ids = None  # a Redis that lost its data gives numbers anew
            raise batch.lost(error, self._url) from None
        return batch.answers(submissions, places)


class AsyncRedisWay:
    """The way for asyncio."""

    def __init__(self, url: str, queue: str, timeout: float) -> None:
        self._url = url
        self._queue = queue
        self._timeout = timeout
        self._redis: AsyncRedis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ids: IdSource | None = None

    async def close(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None and self._loop is asyncio.get_running_loop():
            await redis.aclose()

    async def send(self, tasks: AsyncIterable[TaskLike]) -> AsyncIterator[Answer]:
        batch = _Batch()
        async for task in tasks:
            batch.add(task)
            if batch.full:
                for answer in await self._commit(batch):
                    yield answer
                batch = _Batch()
        for answer in await self._commit(batch):
            yield answer

    async def _commit(self, batch: _Batch) -> list[Answer]:
        if not batch.sound:
            return batch.answers([], [])
        redis = self._connected()
        try:
            if self._ids is None:
                self._ids = await id_source_async(redis)
            submissions = batch.submissions(self._ids)
            places = await submit_async(redis, self._queue, submissions)
        except (RedisError, OSError) as error:
            self._ids = None  # a Redis that lost its data gives numbers anew
            raise batch.lost(error, self._url) from None
        return batch.answers(submissions, places)

    def _connected(self) -> AsyncRedis:
        loop = asyncio.get_running_loop()
        if self._redis is None or self._loop is not loop:  # a connection ends with its event loop
            self._redis, self._loop = connect_async(self._url, self._timeout), loop
        return self._redis
