"""The routes of flows: showing them, and setting, pausing, resuming, resetting and removing their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qtask.api.responses import failed, redis_away, refusal, unsupported
from qtask.model.errors import NotFound, Refused
from qtask.model.flow import Limits
from qtask.model.rejection import refusal_of_limits, refusal_of_text
from qtask.store import flow_records
from qtask.store.connect import read_again_async

MAX_BODY_BYTES = 4_096

_DECODER = msgspec.json.Decoder(Limits)


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
            Route("/flows/{key}", self._set, methods=["PUT"]),
            Route("/flows/{key}", self._remove, methods=["DELETE"]),
            Route("/flows/{key}/pause", self._pause, methods=["POST"]),
            Route("/flows/{key}/resume", self._resume, methods=["POST"]),
            Route("/flows/{key}/reset", self._reset, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        cursor = request.query_params.get("cursor", "")
        return await self._answer(
            lambda: read_again_async(lambda: flow_records.list_flows.run_async(self._redis, cursor))
        )

    async def _show(self, request: Request) -> Response:
        key = _key_in(request)
        return await self._answer(lambda: read_again_async(lambda: flow_records.show_flow.run_async(self._redis, key)))

    async def _set(self, request: Request) -> Response:
        if (response := unsupported(request)) is not None:
            return response
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return refusal(Refused("too_large", "", f"limits have at most {MAX_BODY_BYTES} bytes"), 413)
            limits = _DECODER.decode(body)
        except ClientDisconnect:
            return Response()  # the client is gone
        except msgspec.ValidationError as error:
            return refusal(refusal_of_limits(error), 400)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return refusal(refusal_of_text(error, bytes(body), wanted="object of limits"), 400)
        key = _key_in(request)
        return await self._answer(lambda: flow_records.replace_flow.run_async(self._redis, key, limits))

    async def _remove(self, request: Request) -> Response:
        key = _key_in(request)

        async def remove() -> dict[str, object]:
            await flow_records.remove_flow.run_async(self._redis, key)
            return {"ok": True, "key": key}

        return await self._answer(remove)

    async def _pause(self, request: Request) -> Response:
        return await self._decide(request, lambda key: flow_records.pause_flow.run_async(self._redis, key))

    async def _resume(self, request: Request) -> Response:
        return await self._decide(request, lambda key: flow_records.pause_flow.run_async(self._redis, key, False))

    async def _reset(self, request: Request) -> Response:
        return await self._decide(request, lambda key: flow_records.reset_flow.run_async(self._redis, key))

    async def _decide(self, request: Request, step: Callable[[str], Awaitable[object]]) -> Response:
        if (response := unsupported(request)) is not None:
            return response
        key = _key_in(request)
        return await self._answer(lambda: step(key))

    async def _answer(self, step: Callable[[], Awaitable[object]]) -> Response:
        try:
            async with self._asking:
                found = await step()
        except NotFound as error:
            return failed(404, "not_found", str(error))
        except Refused as refused:
            return refusal(refused, 400)
        except (RedisError, OSError) as error:
            return redis_away(error)
        if isinstance(found, dict):
            return JSONResponse(found)
        return Response(msgspec.json.encode(found), media_type="application/json")


def _key_in(request: Request) -> str:
    """The key in the path of a request."""
    return unquote(request.path_params["key"])
