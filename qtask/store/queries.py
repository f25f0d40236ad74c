"""Queries for sync and asyncio from one source.

A query is written once, as a generator that yields its requests to Redis (`Commands`, or a script's `Call`) and is sent
the replies. It does no I/O. Two short functions run it, one for each kind of client:

    @query
    def length(queue: str) -> Steps[int]:
        (count,) = yield commands(("LLEN", keys.queue(queue)))
        return count

    length(redis, "qtask")                       # with redis.Redis
    await length.run_async(redis, "qtask")       # with redis.asyncio.Redis

A query uses another one by `yield from other.steps(…)`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from qtask.store.scripts import Call, Value

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Commands(NamedTuple):
    """Commands sent to Redis in one round trip; the reply is the list of their replies.

    They are not a transaction: Redis refuses transactions when it is out of memory, which is when people run queries.
    """

    commands: list[tuple[Value, ...]]

    def run(self, redis: Redis) -> list[Any]:
        """Sends the commands and returns their replies. Raises redis-py's errors."""
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
"""The steps of a query, and the type of its result."""


def commands(*each: tuple[Value, ...]) -> Commands:
    """A step that sends these commands, each given as its name and arguments."""
    return Commands(list(each))


@dataclass(frozen=True, slots=True)
class _End(Generic[Found]):
    """The end of a query, in place of another step."""

    found: Found


def _advance(steps: Steps[Found], reply: Any = None) -> Commands | Call | _End[Found]:
    """Sends a query the reply to its last step; returns the next step, or the end."""
    try:
        return steps.send(reply)
    except StopIteration as end:
        return _End(end.value)


def run(redis: Redis, steps: Steps[Found]) -> Found:
    """Runs a query and returns its result. Raises redis-py's errors."""
    step = _advance(steps)
    while not isinstance(step, _End):
        step = _advance(steps, step.run(redis))
    return step.found


async def run_async(redis: AsyncRedis, steps: Steps[Found]) -> Found:
    """As `run`, for redis.asyncio."""
    step = _advance(steps)
    while not isinstance(step, _End):
        step = _advance(steps, await step.run_async(redis))
    return step.found


class Query(Generic[Given, Found]):
    """A query that runs with either kind of client.

    Attributes:
        steps: the generator function.
    """

    def __init__(self, steps: Callable[Given, Steps[Found]]) -> None:
        self.steps = steps
        update_wrapper(self, steps)

    def __call__(self, redis: Redis, /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Runs the query with a client of redis-py. Raises redis-py's errors."""
        return run(redis, self.steps(*args, **kwargs))

    async def run_async(self, redis: AsyncRedis, /, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        """Runs the query with a client of redis.asyncio. Raises redis-py's errors."""
        return await run_async(redis, self.steps(*args, **kwargs))


def query(steps: Callable[Given, Steps[Found]]) -> Query[Given, Found]:
    """Decorator: makes a query of a generator function. The query raises what the function raises."""
    return Query(steps)
