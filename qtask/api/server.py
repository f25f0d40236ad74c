"""The HTTP server of one gateway: uvicorn with our connections and routes."""

from __future__ import annotations

import asyncio
import math
import socket
from functools import partial
from typing import Any

import uvicorn
from redis.asyncio import Redis

from qtask.api.app import Api
from qtask.api.connection import Connection
from qtask.api.hosts import Hosts
from qtask.config import Config
from qtask.intake.http_refusal import NO_SNIFFING
from qtask.intake.intake import Intake
from qtask.intake.listen import BACKLOG
from qtask.intake.memory_budget import MemoryBudget
from qtask.private.uvicorn import serve

STOP_SECONDS = 7  # for current requests after a signal to stop; less than the gateway's `GRACE_SECONDS`


class HttpServer:
    """Serves the HTTP API.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        budget: counts the bytes of bodies that are being read or processed.
        config: `host`, `allowed_hosts`, `port`, `max_bytes`, `max_connections`, `idle_seconds` and `mask_headers`.
    """

    def __init__(self, redis: Redis, intake: Intake, budget: MemoryBudget, config: Config) -> None:
        self._config = config
        self._api = Api(redis, intake, budget, config)
        protocol: Any = partial(Connection, config)  # uvicorn calls it like a class
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._api,
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
        """Starts serving.

        The sockets are opened outside, because uvicorn ends the process with its own message when it cannot listen.
        Raises `ConfigError` when `allowed_hosts` is not a list of names.
        """
        bound = [listener.getsockname()[0] for listener in listeners]
        self._api.hosts = Hosts(bound, self._config.host, self._config.allowed_hosts)
        self._serving = asyncio.get_running_loop().create_task(serve(self._server, listeners))
        while not self._server.started:
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers current requests and closes."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
