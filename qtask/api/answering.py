"""How the routes of flows and queues ask Redis, and what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

import msgspec
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from qtask.api.responses import failed, redis_away, refusal, unsupported
from qtask.model.errors import NotFound, Refused


def named_in(request: Request, parameter: str) -> str:
    """The decoded value of a parameter in the path of a request."""
    return unquote(request.path_params[parameter])


async def answer(asking: asyncio.Semaphore, step: Callable[[], Awaitable[object]]) -> Response:
    """The answer with the result of a step as JSON, or with its error.

    Args:
        asking: bounds the requests that use Redis at the same time.
        step: asks Redis.
    """
    try:
        async with asking:
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


async def decide(
    request: Request, parameter: str, asking: asyncio.Semaphore, step: Callable[[str], Awaitable[object]]
) -> Response:
    """As `answer`, for a request that changes what a parameter in its path names."""
    if (response := unsupported(request)) is not None:
        return response
    name = named_in(request, parameter)
    return await answer(asking, lambda: step(name))
