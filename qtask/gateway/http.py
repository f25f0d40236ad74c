"""The gateway's HTTP: submit a task, look at one, fetch a graph, ask for its health."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import uvicorn
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qtask.config import Config
from qtask.errors import NotFound, Refused
from qtask.gateway.intake import Answer, Intake, encode_answer
from qtask.gateway.socket import ARRAY_FACTOR, MAX_IN_ARRAY
from qtask.store import keys, tasks
from qtask.store.connect import connect
from qtask.task import parse, split_batch

logger = logging.getLogger("qtask.gateway")

_STATUS_OF_CODE = {"too_large": 413, "unavailable": 503}


class HttpServer:
    """The HTTP of one gateway.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        config: `host`, `http_port`, `max_bytes`.
    """

    def __init__(self, redis: Redis, intake: Intake, config: Config) -> None:
        self._redis = redis
        self._intake = intake
        self._config = config
        self._reading = connect(config.redis)
        app = Starlette(
            routes=[
                Route("/tasks", self._submit, methods=["POST"]),
                Route("/tasks/{id}", self._show, methods=["GET"]),
                Route("/graphs/{id}", self._graph, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ]
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.http_port,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listens; returns the port. Raises OSError when the port is taken."""
        listener = self._server.config.bind_socket()
        self._serving = asyncio.get_running_loop().create_task(self._server._serve([listener]))
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Answers what is under way and closes."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._reading.close()

    async def _submit(self, request: Request) -> Response:
        # A web page may post text across origins without asking, but not this content type.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(Refused("wrong_protocol", "", "send the dict with Content-Type: application/json"), 415)
        most = self._config.max_bytes * ARRAY_FACTOR
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                return _refusal(Refused("too_large", "", f"a body has at most {most} bytes"), 413)
        body = body.strip()
        try:
            if body[:1] != b"[":
                answers = await self._commit([body])
                return _one(answers[0])
            texts = split_batch(body, most)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            return _one(refused)
        answers = await self._commit(texts)
        lines = b"[" + b",".join(map(encode_answer, answers)) + b"]"
        return Response(lines, 202, media_type="application/json")

    async def _commit(self, texts: list[bytes]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        owed: list[asyncio.Future[Answer]] = []
        for text in texts:
            future: asyncio.Future[Answer] = loop.create_future()
            owed.append(future)
            try:
                self._intake.add(parse(text, self._config.max_bytes), future.set_result)
            except Refused as refused:
                future.set_result(refused)
        return list(await asyncio.gather(*owed))

    async def _show(self, request: Request) -> Response:
        try:
            record = await run_in_threadpool(tasks.show, self._reading, request.path_params["id"])
        except NotFound as error:
            return JSONResponse({"error": str(error)}, 404)
        except (RedisError, OSError) as error:
            return JSONResponse({"error": f"Redis does not answer: {error}"}, 503)
        return Response(msgspec.json.encode(record), media_type="application/json")

    async def _graph(self, request: Request) -> Response:
        task_id = request.path_params["id"]
        try:
            picture: Any = await self._redis.get(keys.graph(task_id))
        except (RedisError, OSError) as error:
            return JSONResponse({"error": f"Redis does not answer: {error}"}, 503)
        if picture is None:
            return JSONResponse({"error": f"there is no graph {task_id!r}; graphs are kept for a day"}, 404)
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/svg+xml"
        return Response(picture, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    async def _health(self, request: Request) -> Response:
        try:
            await self._redis.ping()
        except (RedisError, OSError) as error:
            return JSONResponse({"ok": False, "error": f"Redis does not answer: {error}"}, 503)
        return JSONResponse({"ok": True})


def _one(answer: Answer) -> Response:
    if isinstance(answer, Refused):
        return _refusal(answer, _STATUS_OF_CODE.get(answer.code, 400))
    return Response(encode_answer(answer), 202, media_type="application/json")


def _refusal(refused: Refused, status: int) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return Response(encode_answer(refused), status, headers=headers, media_type="application/json")
