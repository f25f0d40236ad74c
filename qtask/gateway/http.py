"""The gateway's HTTP: submit a task, look at one, cancel or retry it, fetch a graph, ask for its health."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import Any

import msgspec
import uvicorn
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from qtask.check import parse, split_batch
from qtask.config import Config
from qtask.errors import NotFound, QTaskError, Refused
from qtask.gateway.held import Held
from qtask.gateway.http_refusal import http_refusal
from qtask.gateway.intake import Answer, Intake, encode_answer
from qtask.gateway.listen import BACKLOG
from qtask.gateway.socket import ARRAY_FACTOR, MAX_IN_ARRAY, TURN
from qtask.record import State
from qtask.store import keys, tasks
from qtask.store.connect import connect, read_again, read_again_async

REPLY_SECONDS = 5.0  # within which Redis replies when a task is looked at
STOP_SECONDS = 7  # for requests that are under way when asked to stop; less than the gateway's grace

logger = logging.getLogger("qtask.gateway")

_STATUS_OF_CODE = {"too_large": 413, "unavailable": 503}


class HttpServer:
    """The HTTP of one gateway.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        held: counts the bodies that are being read or worked on.
        config: `port`, `max_bytes`, `max_connections` and `idle_seconds`.
    """

    def __init__(self, redis: Redis, intake: Intake, held: Held, config: Config) -> None:
        self._redis = redis
        self._intake = intake
        self._held = held
        self._config = config
        self._reading = connect(config.redis, REPLY_SECONDS)
        app = Starlette(
            routes=[
                Route("/tasks", self._submit, methods=["POST"]),
                Route("/tasks/{id}", self._show, methods=["GET"]),
                Route("/tasks/{id}", self._cancel, methods=["DELETE"]),
                Route("/tasks/{id}/retry", self._retry, methods=["POST"]),
                Route("/graphs/{id}", self._graph, methods=["GET"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_such_thing},
        )
        app.router.redirect_slashes = False
        protocol: Any = partial(_Connection, config)  # uvicorn calls it as it would call a class
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=math.ceil(config.idle_seconds),
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self, listeners: list[socket.socket]) -> None:
        """Begins to serve.

        The sockets come from outside because uvicorn, where it cannot listen, ends the process without our words.
        """
        self._serving = asyncio.get_running_loop().create_task(self._server._serve(listeners))
        while not self._server.started:
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers what is under way and closes."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._reading.close()

    # --- submitting ------------------------------------------------------------------------------------------

    async def _submit(self, request: Request) -> Response:
        if not _is_json(request):
            return _refusal(Refused("wrong_protocol", "", "send the dict with Content-Type: application/json"), 415)
        if self._intake.full:
            return _one(Refused("unavailable", "", "too many tasks wait for Redis already; send it again later"))
        with self._held.counting() as has_room_for:
            return await self._submit_body(request, has_room_for)

    async def _submit_body(self, request: Request, has_room_for: Callable[[int], bool]) -> Response:
        most = self._config.max_bytes * ARRAY_FACTOR
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    return _refusal(Refused("too_large", "", f"a body has at most {most} bytes"), 413)
                if not has_room_for(len(chunk)):
                    return _one(Refused("unavailable", "", "too many bodies are on their way; send it again later"))
        except ClientDisconnect:
            return Response()  # nobody is there to read it
        text = bytes(body).strip()
        if text[:1] != b"[":
            return _one((await self._commit([text]))[0])
        try:
            texts = split_batch(text, most)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            return _one(refused)
        answers = await self._commit(texts)
        if answers and all(isinstance(answer, Refused) and answer.code == "unavailable" for answer in answers):
            return _one(answers[0])
        lines = b"[" + b",".join(map(encode_answer, answers)) + b"]"
        return Response(lines, 202, media_type="application/json")

    async def _commit(self, texts: list[bytes]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        owed: list[asyncio.Future[Answer]] = []
        for position, text in enumerate(texts, 1):
            future: asyncio.Future[Answer] = loop.create_future()
            owed.append(future)
            try:
                self._intake.add(parse(text, self._config.max_bytes), partial(_settle, future))
            except Refused as refused:
                future.set_result(refused)
            if position % TURN == 0:  # others want their turn, too
                await asyncio.sleep(0)
                await self._intake.room()
        return list(await asyncio.gather(*owed))

    # --- looking ---------------------------------------------------------------------------------------------

    async def _show(self, request: Request) -> Response:
        try:
            show = partial(tasks.show, self._reading, request.path_params["id"])
            record = await run_in_threadpool(read_again, show)
        except NotFound as error:
            return _error(404, "not_found", str(error))
        except (RedisError, OSError) as error:
            return _redis_away(error)
        return Response(msgspec.json.encode(record), media_type="application/json")

    # --- deciding --------------------------------------------------------------------------------------------

    async def _cancel(self, request: Request) -> Response:
        return await self._decide(tasks.cancel, request)

    async def _retry(self, request: Request) -> Response:
        if not _is_json(request):
            return _refusal(Refused("wrong_protocol", "", "say it with Content-Type: application/json"), 415)
        return await self._decide(tasks.retry_one, request)

    async def _decide(self, step: Callable[[SyncRedis, str], State], request: Request) -> Response:
        """Takes a step with a task, and answers with the state it was in."""
        task_id = request.path_params["id"]
        try:
            state = await run_in_threadpool(step, self._reading, task_id)
        except NotFound as error:
            return _error(404, "not_found", str(error))
        except QTaskError as error:
            return _error(409, "wrong_state", str(error))
        except (RedisError, OSError) as error:
            return _redis_away(error)
        return JSONResponse({"ok": True, "id": task_id, "was": state})

    # --- graphs and health -----------------------------------------------------------------------------------

    async def _graph(self, request: Request) -> Response:
        task_id = request.path_params["id"]
        try:
            picture: Any = await read_again_async(lambda: self._redis.get(keys.graph(task_id)))
        except (RedisError, OSError) as error:
            return _redis_away(error)
        if picture is None:
            return _error(404, "not_found", f"there is no graph {task_id!r}; graphs are kept for a day")
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/svg+xml"
        return Response(picture, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    async def _health(self, request: Request) -> Response:
        try:
            await read_again_async(self._redis.ping)
        except (RedisError, OSError) as error:
            return _redis_away(error)
        return JSONResponse({"ok": True})


class _Connection(H11Protocol):
    """uvicorn's side of one connection, with a bound on how many there are and on how long one may be silent."""

    def __init__(self, limits: Config, *arguments: Any, **named: Any) -> None:  # uvicorn names its own `config`
        super().__init__(*arguments, **named)
        self._most = limits.max_connections
        self._idle_seconds = limits.idle_seconds
        self._socket_port = limits.port
        self._last_byte = monotonic()
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            message = f"{self._most} connections are served at once and all are taken; try again"
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, Refused("too_many", "", message))
        else:
            self._timer = self.loop.call_later(self._idle_seconds, self._look)

    def data_received(self, data: bytes) -> None:
        self._last_byte = monotonic()
        begins, self._begun = not self._begun, True
        if self.transport.is_closing():
            return
        if begins and data[:1] in (b"{", b"["):  # uvicorn would wait for the end of a request
            self.send_400_response("")
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called for what is no HTTP."""
        message = f"this port speaks HTTP/1.1; JSON lines are spoken on port {self._socket_port}"
        self._refuse(HTTPStatus.BAD_REQUEST, Refused("wrong_protocol", "", message))

    def _look(self) -> None:
        """Ends the connection of a client that neither goes on with its request nor takes its answer."""
        takes_nothing = self.flow.write_paused or self.transport.is_closing()
        answering = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        silent = 0.0 if answering and not takes_nothing else monotonic() - self._last_byte
        if silent < self._idle_seconds:
            self._timer = self.loop.call_later(self._idle_seconds - silent, self._look)
        elif takes_nothing:
            self.transport.abort()
        elif self.cycle is None or not self.cycle.response_started:
            message = f"nothing came for {self._idle_seconds:g} s, so the connection is closed"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, Refused("idle", "", message))
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, refused: Refused) -> None:
        self.transport.write(http_refusal(status, refused))
        self.transport.close()


def _is_json(request: Request) -> bool:
    """Whether a body is JSON by its content type, which a web page may not send to another origin without asking."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():  # its request may have been given up
        future.set_result(answer)


async def _no_such_thing(request: Request, error: Exception) -> Response:
    """Answers an unknown path or method."""
    assert isinstance(error, HTTPException)
    message = (
        f"{request.method} {request.url.path} is not known here; POST /tasks and /tasks/ID/retry, GET /tasks/ID, "
        "/graphs/ID and /health, DELETE /tasks/ID are"
    )
    response = _error(error.status_code, "not_found", message)
    response.headers.update(error.headers or {})
    return response


def _one(answer: Answer) -> Response:
    if isinstance(answer, Refused):
        return _refusal(answer, _STATUS_OF_CODE.get(answer.code, 400))
    return Response(encode_answer(answer), 202, media_type="application/json")


def _refusal(refused: Refused, status: int) -> Response:
    return _error(status, refused.code, refused.message, refused.field)


def _redis_away(error: Exception) -> Response:
    return _error(503, "unavailable", f"Redis does not answer: {error}")


def _error(status: int, code: str, message: str, field: str = "") -> Response:
    """The same form as that of a refused dict, whatever went wrong."""
    body = {"ok": False, "error": {"code": code, "field": field, "message": message}}
    return JSONResponse(body, status, headers={"Retry-After": "1"} if status == 503 else None)
