"""The gateway's HTTP: submit, show, cancel, retry, remove and forget tasks; fetch a graph; ask for its health."""

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
from urllib.parse import unquote

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
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from qtask.api.hosts import Hosts
from qtask.api.request_checks import ServerConnection, as_scope, is_json, other_codings, split_target
from qtask.config import Config
from qtask.destinations.parsing import parse
from qtask.intake.http_refusal import NO_SNIFFING, http_refusal
from qtask.intake.intake import Answer, Intake, encode_answer
from qtask.intake.limits import ARRAY_FACTOR, LINGER_SECONDS, MAX_IN_ARRAY, TURN
from qtask.intake.listen import BACKLOG
from qtask.intake.memory_budget import Held
from qtask.intake.refused import refused_log
from qtask.model.errors import NotFound, Refused, WrongState
from qtask.model.ids import stored_id
from qtask.model.mask import mask_of
from qtask.model.record import State
from qtask.model.rejection import other_form
from qtask.model.validation import bare, split_batch
from qtask.store import keys, tasks
from qtask.store.connect import connect, read_again, read_again_async, reason_of

REPLY_SECONDS = 5.0  # within which Redis replies when a task is looked at
MOST_HEAD_BYTES = 16_384  # of a request's line and headers
STOP_SECONDS = 7  # for requests that are under way when asked to stop; less than the gateway's grace

logger = logging.getLogger("qtask.gateway")

_SAFE_IN_PART = "!$&'()*+,:;=@~"  # of one part of a path (RFC 3986, section 3.3), beside letters, digits, '_', '-', '.'
_STATUS_OF_CODE = {"too_large": 413, "unavailable": 503}


class HttpServer:
    """The HTTP of one gateway.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        held: counts the bodies that are being read or worked on.
        config: `host`, `allowed_hosts`, `port`, `max_bytes`, `max_connections`, `idle_seconds` and `mask_headers`.
    """

    def __init__(self, redis: Redis, intake: Intake, held: Held, config: Config) -> None:
        self._redis = redis
        self._intake = intake
        self._held = held
        self._config = config
        self._reading = connect(config.redis, REPLY_SECONDS)
        self._mask = mask_of(config.mask_headers)
        self._routes = [
            Route("/tasks", self._submit, methods=["POST"]),
            Route("/tasks/{id}", self._show, methods=["GET"]),
            Route("/tasks/{id}", self._cancel, methods=["DELETE"]),
            Route("/tasks/{id}/retry", self._retry, methods=["POST"]),
            Route("/tasks/{id}/remove", self._remove, methods=["POST"]),
            Route("/tasks/{id}/forget", self._forget, methods=["POST"]),
            Route("/graphs/{id}", self._graph, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
        ]
        app = Starlette(routes=self._routes, exception_handlers={HTTPException: self._no_such_thing})
        app.router.redirect_slashes = False
        self._front = _Front(app)
        protocol: Any = partial(_Connection, config)  # uvicorn calls it as it would call a class
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._front,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                headers=[NO_SNIFFING],
                backlog=BACKLOG,
                timeout_keep_alive=math.ceil(config.idle_seconds),
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self, listeners: list[socket.socket]) -> None:
        """Begins to serve.

        The sockets come from outside because uvicorn, where it cannot listen, ends the process without our words.
        Raises `ConfigError` for an `allowed_hosts` that is no list of names.
        """
        bound = [listener.getsockname()[0] for listener in listeners]
        self._front.hosts = Hosts(bound, self._config.host, self._config.allowed_hosts)
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
        if (unsupported := _unsupported(request)) is not None:
            return unsupported
        if self._intake.full:
            return _one(Refused("unavailable", "", "too many tasks wait for Redis already; send it again later"))
        with self._held.counting() as has_room_for:
            return await self._submit_body(request, has_room_for)

    async def _submit_body(self, request: Request, has_room_for: Callable[[int], bool]) -> Response:
        most = self._config.max_bytes * ARRAY_FACTOR
        too_large = Refused("too_large", "", f"a body has at most {most} bytes")
        if int(request.headers.get("content-length", "0")) > most:  # before its client sends it (Expect: 100-continue)
            return _rejected(too_large, 413)
        body = bytearray()
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    return _rejected(too_large, 413)
                if not has_room_for(len(chunk)):
                    return _one(Refused("unavailable", "", "too many bodies are on their way; send it again later"))
        except ClientDisconnect:
            return Response()  # nobody is there to read it
        text = bare(bytes(body))
        if text[:1] != b"[":
            return _one((await self._commit([text]))[0])
        try:
            texts = split_batch(text, most)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            refused_log.write("http", b"", refused)
            return _one(refused)
        answers = await self._commit(texts)
        codes = {answer.code if isinstance(answer, Refused) else "" for answer in answers}
        if codes == {"unavailable"}:
            return _one(answers[0])
        lines = b"[" + b",".join(map(encode_answer, answers)) + b"]"
        status = 202 if "" in codes or not answers else 503 if "unavailable" in codes else 400
        return Response(lines, status, _retry_after(status), media_type="application/json")

    async def _commit(self, texts: list[bytes]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        owed: list[asyncio.Future[Answer]] = []
        for position, text in enumerate(texts, 1):
            future: asyncio.Future[Answer] = loop.create_future()
            owed.append(future)
            try:
                self._intake.add(parse(text, self._config.max_bytes), partial(_settle, future))
            except Refused as refused:
                refused_log.write("http", text, refused)
                future.set_result(refused)
            if position % TURN == 0:  # others want their turn, too
                await asyncio.sleep(0)
                await self._intake.room()
        return list(await asyncio.gather(*owed))

    # --- looking ---------------------------------------------------------------------------------------------

    async def _show(self, request: Request) -> Response:
        try:
            show = partial(tasks.show, self._reading, _id_in(request), self._mask)
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
        return await self._decide_on_post(tasks.retry_one, request)

    async def _remove(self, request: Request) -> Response:
        return await self._decide_on_post(tasks.remove_one, request)

    async def _forget(self, request: Request) -> Response:
        return await self._decide_on_post(tasks.forget, request)

    async def _decide_on_post(self, step: Callable[[SyncRedis, str], State], request: Request) -> Response:
        if (unsupported := _unsupported(request)) is not None:
            return unsupported
        return await self._decide(step, request)

    async def _decide(self, step: Callable[[SyncRedis, str], State], request: Request) -> Response:
        """Takes a step with a task, and answers with the state it was in."""
        task_id = _id_in(request)
        try:
            state = await run_in_threadpool(step, self._reading, task_id)
        except NotFound as error:
            return _error(404, "not_found", str(error))
        except WrongState as error:
            return _error(409, "wrong_state", str(error), state=error.state)
        except (RedisError, OSError) as error:
            return _redis_away(error)
        return JSONResponse({"ok": True, "id": task_id, "was": state})

    # --- graphs and health -----------------------------------------------------------------------------------

    async def _graph(self, request: Request) -> Response:
        task_id = _id_in(request)
        try:
            picture: Any = await read_again_async(lambda: self._redis.get(keys.graph(stored_id(task_id))))
        except (RedisError, OSError) as error:
            return _redis_away(error)
        if picture is None:
            return _error(404, "not_found", f"there is no graph {task_id!r}; graphs are kept for a day")
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/svg+xml"
        return Response(picture, media_type=kind)

    async def _health(self, request: Request) -> Response:
        try:
            await read_again_async(self._redis.ping)
        except (RedisError, OSError) as error:
            return _redis_away(error)
        return JSONResponse({"ok": True})

    # --- what is no request of ours --------------------------------------------------------------------------

    async def _no_such_thing(self, request: Request, error: Exception) -> Response:
        """Answers an unknown path or method; OPTIONS with the methods of a path, or with all of them for `*`."""
        assert isinstance(error, HTTPException)
        path = str(request.scope["path"])
        routes = [route for route in self._routes if path == "*" or route.matches(request.scope)[0] is not Match.NONE]
        allow = {"Allow": ", ".join(sorted({method for route in routes for method in route.methods or ()}))}
        if request.method == "OPTIONS" and routes:
            return Response(status_code=204, headers=allow)
        message = (
            f"{request.method} {unquote(path)[:200]} is not known here; POST /tasks, /tasks/ID/retry, "
            "/tasks/ID/remove and /tasks/ID/forget, GET /tasks/ID, /graphs/ID and /health, DELETE /tasks/ID are"
        )
        return _error(error.status_code, "not_found", message, headers=allow if routes else None)


class _Front:
    """Stands before the routes: checks for which host a request is meant, and brings its path into one form."""

    def __init__(self, app: ASGIApp) -> None:
        self.hosts: Hosts | None = None  # known when the gateway listens
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        assert self.hosts is not None
        authority, path = split_target(scope["raw_path"], scope["headers"])
        try:
            self.hosts.check(authority)
        except Refused as refused:
            await _refusal(refused, 421 if refused.code == "wrong_host" else 400)(scope, receive, send)
        else:
            await self._app(as_scope(dict(scope), path), receive, send)


class _Connection(H11Protocol):
    """uvicorn's side of one connection, with a bound on how many there are and on how long one may be silent."""

    def __init__(self, limits: Config, *arguments: Any, **named: Any) -> None:  # uvicorn names its own `config`
        super().__init__(*arguments, **named)
        self.conn: ServerConnection = ServerConnection(MOST_HEAD_BYTES)
        self._most = limits.max_connections
        self._idle_seconds = limits.idle_seconds
        self._socket_port = limits.port
        self._last_byte = monotonic()
        self._begun = False
        self._refused = False
        self._half_closed = False
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
        if self.transport.is_closing() or self._refused:
            return
        if begins and (bare(data)[:1] in (b"{", b"[") or other_form(data)):  # h11 would wait for the end of a line
            self.send_400_response(other_form(data))
        else:
            super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps our side open for the answers that are owed: the client closed its side, but may still read."""
        self._half_closed = not self._refused and self._owes_an_answer()
        return self._half_closed

    def on_response_complete(self) -> None:
        """Called when an answer was sent; the next request, if it is here already, is begun before this returns."""
        super().on_response_complete()
        if self._half_closed and not self._owes_an_answer():
            self.transport.close()

    def _owes_an_answer(self) -> bool:
        """Whether a whole request is here and its answer is not yet sent."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no valid request, and by us, with what it is instead, for what is no HTTP."""
        fault = self.conn.fault
        words = str(fault).partition(": bytearray")[0] if fault is not None else ""
        if fault is not None and "request line" not in words:
            message = f"this is not a valid HTTP/1.1 request: {words}"
            self._refuse(HTTPStatus(fault.error_status_hint), Refused("wrong_protocol", "", message))
            return
        what = f"plain HTTP/1.1, not {msg}" if msg == "TLS" else "HTTP/1.1"
        message = f"this port speaks {what}; JSON lines are spoken on port {self._socket_port}"
        self._refuse(HTTPStatus.BAD_REQUEST, Refused("wrong_protocol", "", message))

    def _unsupported_upgrade_warning(self) -> None:
        """An Upgrade that is not known is ignored (RFC 9110, section 7.8); uvicorn would log how to install it."""

    def _look(self) -> None:
        """Ends the connection of a client that neither goes on with its request nor takes its answer."""
        takes_nothing = self.flow.write_paused or self.transport.is_closing()
        silent = 0.0 if self._owes_an_answer() and not takes_nothing else monotonic() - self._last_byte
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
        """Answers and closes in steps (RFC 9112, section 9.6): at once would throw away an answer under way."""
        self.transport.write(http_refusal(status, refused))
        self.transport.write_eof()
        self.connections.discard(self)  # it takes no place from others any more
        self._refused = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)


def _unsupported(request: Request) -> Response | None:
    """The answer to a body in a form that is not read; it says which forms are (RFC 9110, section 15.5.16).

    Compressed bodies are refused rather than unpacked: all clients share one process, and 16 kB of gzip can take as
    much of its time and memory as 16 MB of tasks.
    """
    if not is_json(request.headers.getlist("content-type")):
        message = "a request with a task or a decision needs Content-Type: application/json"
        return _rejected(Refused("wrong_protocol", "Content-Type", message), 415, {"Accept": "application/json"})
    if codings := other_codings(request.headers.getlist("content-encoding")):
        message = f"a body with Content-Encoding: {', '.join(codings)[:100]} is not read; send it uncompressed"
        refused = Refused("wrong_protocol", "Content-Encoding", message)
        return _rejected(refused, 415, {"Accept-Encoding": "identity"})
    return None


def _id_in(request: Request) -> str:
    """The id in the path of a request."""
    return unquote(request.path_params["id"])


def _settle(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():  # its request may have been given up
        future.set_result(answer)


def _one(answer: Answer) -> Response:
    if isinstance(answer, Refused):
        return _refusal(answer, _STATUS_OF_CODE.get(answer.code, 400))
    return Response(encode_answer(answer), 202, media_type="application/json")


def _refusal(refused: Refused, status: int) -> Response:
    return _error(status, refused.code, refused.message, refused.field)


def _rejected(refused: Refused, status: int, headers: dict[str, str] | None = None) -> Response:
    """Answers a request that was rejected before its tasks were read, and logs it."""
    refused_log.write("http", b"", refused)
    return _error(status, refused.code, refused.message, refused.field, headers)


def _redis_away(error: Exception) -> Response:
    return _error(503, "unavailable", f"Redis does not answer: {reason_of(error)}")


def _retry_after(status: int) -> dict[str, str] | None:
    return {"Retry-After": "1"} if status == 503 else None


def _error(
    status: int, code: str, message: str, field: str = "", headers: dict[str, str] | None = None, **more: str
) -> Response:
    """The same form as that of a rejected task, whatever went wrong; with `more` beside the message."""
    body = {"ok": False, "error": {"code": code, "field": field, "message": message, **more}}
    return JSONResponse(body, status, headers=headers or _retry_after(status))
