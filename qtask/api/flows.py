"""The routes of flows: showing them, and setting, pausing, resuming, resetting and removing their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from qtask.api.answering import answer, decide, named_in
from qtask.api.responses import refusal, unsupported
from qtask.model.errors import Refused
from qtask.model.flow_changes import read_changes, read_limits
from qtask.store import flow_records
from qtask.store.connect import read_again_async
from qtask.store.pages import Page

MAX_BODY_BYTES = 4_096
LIMIT, MAX_LIMIT = 50, 1_000  # flows in one answer

_Read = TypeVar("_Read")


class Flows:
    """Answers requests that concern flows.

    Args:
        redis: an asyncio client.
        asking: bounds the requests that use Redis at the same time.
    """

    def __init__(self, redis: Redis, asking: asyncio.Semaphore) -> None:
        self._redis = redis
        self._asking = asking
        self.routes = [
            Route("/flows", self._list, methods=["GET"]),
            Route("/flows/{key}", self._show, methods=["GET"]),
            Route("/flows/{key}", self._replace, methods=["PUT"]),
            Route("/flows/{key}", self._change, methods=["PATCH"]),
            Route("/flows/{key}", self._remove, methods=["DELETE"]),
            Route("/flows/{key}/pause", self._pause, methods=["POST"]),
            Route("/flows/{key}/resume", self._resume, methods=["POST"]),
            Route("/flows/{key}/reset", self._reset, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        """The flows with the most waiting tasks or, with a cursor, a page of all flows."""
        cursor = request.query_params.get("cursor", "")

        async def read() -> object:
            limit = _limit_in(request)
            if cursor:
                return await flow_records.list_flows.run_async(self._redis, cursor, limit)
            return Page(await flow_records.busiest_flows.run_async(self._redis, limit))

        return await answer(self._asking, lambda: read_again_async(read))

    async def _show(self, request: Request) -> Response:
        key = named_in(request, "key")
        return await answer(
            self._asking, lambda: read_again_async(lambda: flow_records.show_flow.run_async(self._redis, key))
        )

    async def _replace(self, request: Request) -> Response:
        key = named_in(request, "key")
        return await self._with_body(
            request, read_limits, lambda limits: flow_records.replace_flow.run_async(self._redis, key, limits)
        )

    async def _change(self, request: Request) -> Response:
        key = named_in(request, "key")
        return await self._with_body(
            request, read_changes, lambda changes: flow_records.set_flow.run_async(self._redis, key, changes)
        )

    async def _with_body(
        self, request: Request, read: Callable[[bytes], _Read], step: Callable[[_Read], Awaitable[object]]
    ) -> Response:
        """Applies `step` to what `read` finds in the body of a request."""
        if (response := unsupported(request)) is not None:
            return response
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return refusal(Refused("too_large", "", f"limits have at most {MAX_BODY_BYTES} bytes"), 413)
            given = read(bytes(body))
        except ClientDisconnect:
            return Response()  # the client is gone
        except Refused as refused:
            return refusal(refused, 400)
        return await answer(self._asking, lambda: step(given))

    async def _remove(self, request: Request) -> Response:
        key = named_in(request, "key")

        async def remove() -> dict[str, object]:
            await flow_records.remove_flow.run_async(self._redis, key)
            return {"ok": True, "key": key}

        return await answer(self._asking, remove)

    async def _pause(self, request: Request) -> Response:
        return await decide(
            request, "key", self._asking, lambda key: flow_records.pause_flow.run_async(self._redis, key)
        )

    async def _resume(self, request: Request) -> Response:
        return await decide(
            request, "key", self._asking, lambda key: flow_records.pause_flow.run_async(self._redis, key, False)
        )

    async def _reset(self, request: Request) -> Response:
        return await decide(
            request, "key", self._asking, lambda key: flow_records.reset_flow.run_async(self._redis, key)
        )


def _limit_in(request: Request) -> int:
    """The query parameter `limit`. Raises `Refused`."""
    given = request.query_params.get("limit", str(LIMIT))
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= MAX_LIMIT):
        message = f"a whole number from 1 to {MAX_LIMIT} is needed, got {given[:40]!r}"
        raise Refused("invalid_value", "limit", message)
    return int(given)
