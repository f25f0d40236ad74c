"""Queries for sync and asyncio from one source.

A query is written once, as a generator that yields what is to be asked of Redis (`Commands`, or a script's `Call`) and
is sent the replies. It does no I/O of its own. Two runners of a few lines carry it out, one for each kind of client:

    @query
    def length(queue: str) -> Steps[int]:
        (count,) = yield commands(("LLEN", keys.queue(queue)))
        return count

    length(redis, "qtask")                       # with redis.Redis
    await length.run_async(redis, "qtask")       # with redis.asyncio.Redis

A query that needs another one says `yield from other.steps(…)`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from qtask.store.scripts import Call, Value

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Commands(NamedTuple):
    """Commands that go to Redis in one round trip; the reply is the list of their replies.

    They are not a transaction: Redis refuses one when it has no memory left, which is when people look.
    """

    commands: list[tuple[Value, ...]]

    def run(self, redis: Redis) -> list[Any]:
        """Sends them, and returns their replies. Raises redis-py's errors."""
        with redis.pipeline(transaction=False) as pipeline:
            for command in self.commands:
                pipeline.execute_command(*command)
            return pipeline.execute()

    async def run_async(self, redis: AsyncRedis) -> list[Any]:
        """As `run`, for redis.asyncio."""
        async with redis.pipeline(transaction=False) as pipeline:
            for command in self.commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()


Steps = Generator[Commands | Call, Any, Found]
"""What a query asks, one step after the other, and what it returns in the end."""


def commands(*each: tuple[Value, ...]) -> Commands:
    """A step of some commands, each with its arguments."""
    return Commands(list(each))


def run(redis: Redis, steps: Steps[Found]) -> Found:
    """Carries out a query, and returns what it found. Raises redis-py's errors."""
    reply: Any = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as end:
            found: Found = end.value
            return found
        reply = step.run(redis)


async def run_async(redis: AsyncRedis, steps: Steps[Found]) -> Found:
    """As `run`, for redis.asyncio."""
    reply: Any = None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as end:
            found: Found = end.value
            return found
        reply = await step.run_async(redis)


class Query(Generic[Given, Found]):
    """A query that runs with a client of either kind.

    Attributes:
        steps: the generator function itself, without a client.
    """

    def __init__(self, steps: Callable[Given, Steps[Found]]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, redis: Redis, /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Carries it out with a client of redis-py. Raises redis-py's errors."""
        return run(redis, self.steps(*args, **kwargs))

    async def run_async(self, redis: AsyncRedis, /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Carries it out with a client of redis.asyncio. Raises redis-py's errors."""
        return await run_async(redis, self.steps(*args, **kwargs))


def query(steps: Callable[Given, Steps[Found]]) -> Query[Given, Found]:
    """Makes a query of a generator function. What it raises, the query raises."""
    return Query(steps)
