"""The routes of the HTTP API: submitting tasks, showing and changing them, graphs, and health."""

from __future__ import annotations

import asyncio
from urllib.parse import unquote

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from qtask.api.flows import Flows
from qtask.api.hosts import Hosts
from qtask.api.queues import Queues
from qtask.api.request_checks import as_scope, split_target
from qtask.api.responses import failed, redis_away, refusal, unsupported
from qtask.api.submission import Submission
from qtask.config import Config
from qtask.intake.intake import Intake
from qtask.intake.memory_budget import MemoryBudget
from qtask.model.errors import NotFound, Refused, WrongState
from qtask.model.mask import mask_of
from qtask.model.record import State
from qtask.store import graphs, tasks
from qtask.store.connect import read_again_async
from qtask.store.queries import Query

ASK_LIMIT = 32  # requests that show or change tasks at the same time; each uses one connection to Redis


class Api:
    """The ASGI application.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        budget: counts the bytes of bodies that are being read or processed.
        config: `max_bytes` and `mask_headers`.

    Attributes:
        hosts: checks the host of each request; must be set before the first request.
    """

    def __init__(self, redis: Redis, intake: Intake, budget: MemoryBudget, config: Config) -> None:
        self._redis = redis
        self._asking = asyncio.Semaphore(ASK_LIMIT)
        self._mask = mask_of(config.mask_headers)
        self._routes = [
            Route("/tasks", Submission(intake, budget, config.max_bytes).respond, methods=["POST"]),
            Route("/tasks/{id}", self._show, methods=["GET"]),
            Route("/tasks/{id}", self._cancel, methods=["DELETE"]),
            Route("/tasks/{id}/retry", self._retry, methods=["POST"]),
            Route("/tasks/{id}/remove", self._remove, methods=["POST"]),
            Route("/tasks/{id}/forget", self._forget, methods=["POST"]),
            *Flows(redis, self._asking).routes,
            *Queues(redis, self._asking).routes,
            Route("/graphs/{id}", self._graph, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]
        self._app = Starlette(routes=self._routes, exception_handlers={HTTPException: self._no_such_thing})
        self._app.router.redirect_slashes = False
        self.hosts: Hosts | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, after its host was checked and its path normalized."""
        assert self.hosts is not None
        authority, path = split_target(scope["raw_path"], scope["headers"])
        try:
            self.hosts.check(authority)
        except Refused as refused:
            await refusal(refused, 421 if refused.code == "wrong_host" else 400)(scope, receive, send)
        else:
            await self._app(as_scope(dict(scope), path), receive, send)

    # --- showing ---------------------------------------------------------------------------------------------

    async def _show(self, request: Request) -> Response:
        task_id = _id_in(request)
        try:
            async with self._asking:
                record = await read_again_async(lambda: tasks.show.run_async(self._redis, task_id, self._mask))
        except NotFound as error:
            return failed(404, "not_found", str(error))
        except (RedisError, OSError) as error:
            return redis_away(error)
        return Response(msgspec.json.encode(record), media_type="application/json")

    # --- changing --------------------------------------------------------------------------------------------

    async def _cancel(self, request: Request) -> Response:
        return await self._decide(tasks.cancel, request)

    async def _retry(self, request: Request) -> Response:
        return await self._decide_on_post(tasks.retry_one, request)

    async def _remove(self, request: Request) -> Response:
        return await self._decide_on_post(tasks.remove_one, request)

    async def _forget(self, request: Request) -> Response:
        return await self._decide_on_post(tasks.forget, request)

    async def _decide_on_post(self, step: Query[[str], State], request: Request) -> Response:
        if (response := unsupported(request)) is not None:
            return response
        return await self._decide(step, request)

    async def _decide(self, step: Query[[str], State], request: Request) -> Response:
        """Applies `step` to a task; the answer holds the state before."""
        task_id = _id_in(request)
        try:
            async with self._asking:
                state = await step.run_async(self._redis, task_id)
        except NotFound as error:
            return failed(404, "not_found", str(error))
        except WrongState as error:
            return failed(409, "wrong_state", str(error), state=error.state)
        except (RedisError, OSError) as error:
            return redis_away(error)
        return JSONResponse({"ok": True, "id": task_id, "was": state})

    # --- graphs and health -----------------------------------------------------------------------------------

    async def _graph(self, request: Request) -> Response:
        task_id = _id_in(request)
        try:
            picture = await read_again_async(lambda: graphs.read.run_async(self._redis, task_id))
        except (RedisError, OSError) as error:
            return redis_away(error)
        if picture is None:
            return failed(404, "not_found", f"there is no graph {task_id!r}; graphs are kept for a day")
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/svg+xml"
        return Response(picture, media_type=kind)

    async def _health(self, request: Request) -> Response:
        try:
            await read_again_async(self._redis.ping)
        except (RedisError, OSError) as error:
            return redis_away(error)
        return JSONResponse({"ok": True})

    # --- unknown requests ------------------------------------------------------------------------------------

    async def _no_such_thing(self, request: Request, error: Exception) -> Response:
        """Answers an unknown path or method. OPTIONS gets the methods of the path, or all methods for `*`."""
        assert isinstance(error, HTTPException)
        path = str(request.scope["path"])
        routes = [route for route in self._routes if path == "*" or route.matches(request.scope)[0] is not Match.NONE]
        allow = {"Allow": ", ".join(sorted({method for route in routes for method in route.methods or ()}))}
        if request.method == "OPTIONS" and routes:
            return Response(status_code=204, headers=allow)
        message = (
            f"{request.method} {unquote(path)[:200]} does not exist; there are POST /tasks, "
            "/tasks/ID/retry, remove and forget, /flows/KEY/pause, resume and reset, and /queues/NAME/pause, resume "
            "and purge, GET /tasks/ID, /flows, /flows/KEY, /queues, /graphs/ID and /health, PUT and PATCH /flows/KEY, "
            "and DELETE /tasks/ID and /flows/KEY"
        )
        return failed(error.status_code, "not_found", message, headers=allow if routes else None)


def _id_in(request: Request) -> str:
    """The id in the path of a request."""
    return unquote(request.path_params["id"])
