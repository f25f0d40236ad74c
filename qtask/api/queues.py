"""The routes of queues: listing, pausing, resuming and purging them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qtask.api.responses import redis_away, refusal, unsupported
from qtask.model.errors import Refused
from qtask.store import queues
from qtask.store.connect import read_again_async


class Queues:
    """Answers requests that concern queues.

    Args:
        redis: an asyncio client.
        asking: bounds the requests that use Redis at the same time.
    """

    def __init__(self, redis: Redis, asking: asyncio.Semaphore) -> None:
        self._redis = redis
        self._asking = asking
        self.routes = [
            Route("/queues", self._list, methods=["GET"]),
            Route("/queues/{name}/pause", self._pause, methods=["POST"]),
            Route("/queues/{name}/resume", self._resume, methods=["POST"]),
            Route("/queues/{name}/purge", self._purge, methods=["POST"]),
        ]

    async def _list(self, _: Request) -> Response:
        return await self._answer(lambda: read_again_async(lambda: queues.list_queues.run_async(self._redis)))

    async def _pause(self, request: Request) -> Response:
        return await self._decide(request, lambda name: queues.pause_queue.run_async(self._redis, name))

    async def _resume(self, request: Request) -> Response:
        return await self._decide(request, lambda name: queues.pause_queue.run_async(self._redis, name, False))

    async def _purge(self, request: Request) -> Response:
        async def purge(name: str) -> dict[str, object]:
            cancelled = await queues.purge_queue.run_async(self._redis, name)
            return {"ok": True, "name": name, "cancelled": cancelled}

        return await self._decide(request, purge)

    async def _decide(self, request: Request, step: Callable[[str], Awaitable[object]]) -> Response:
        if (response := unsupported(request)) is not None:
            return response
        name = unquote(request.path_params["name"])
        return await self._answer(lambda: step(name))

    async def _answer(self, step: Callable[[], Awaitable[object]]) -> Response:
        try:
            async with self._asking:
                found = await step()
        except Refused as refused:
            return refusal(refused, 400)
        except (RedisError, OSError) as error:
            return redis_away(error)
        if isinstance(found, dict):
            return JSONResponse(found)
        return Response(msgspec.json.encode(found), media_type="application/json")
