"""The routes of queues: listing, pausing, resuming and purging them."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qtask.api.answering import answer, decide
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
        return await answer(self._asking, lambda: read_again_async(lambda: queues.list_queues.run_async(self._redis)))

    async def _pause(self, request: Request) -> Response:
        return await decide(request, "name", self._asking, lambda name: queues.pause_queue.run_async(self._redis, name))

    async def _resume(self, request: Request) -> Response:
        return await decide(
            request, "name", self._asking, lambda name: queues.pause_queue.run_async(self._redis, name, False)
        )

    async def _purge(self, request: Request) -> Response:
        async def purge(name: str) -> dict[str, object]:
            cancelled = await queues.purge_queue.run_async(self._redis, name)
            return {"ok": True, "name": name, "cancelled": cancelled}

        return await decide(request, "name", self._asking, purge)
