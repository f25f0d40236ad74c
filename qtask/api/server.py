"""The HTTP server of one gateway: uvicorn, with our connections and our routes."""

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

STOP_SECONDS = 7  # for requests that are under way when asked to stop; less than the gateway's grace


class HttpServer:
    """Serves the HTTP API.

    Args:
        redis: an asyncio client.
        intake: where submitted tasks go.
        budget: counts the bodies that are being read or worked on.
        config: `host`, `allowed_hosts`, `port`, `max_bytes`, `max_connections`, `idle_seconds` and `mask_headers`.
    """

    def __init__(self, redis: Redis, intake: Intake, budget: MemoryBudget, config: Config) -> None:
        self._config = config
        self._api = Api(redis, intake, budget, config)
        protocol: Any = partial(Connection, config)  # uvicorn calls it as it would call a class
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
        """Begins to serve.

        The sockets come from outside because uvicorn, where it cannot listen, ends the process without our words.
        Raises `ConfigError` for an `allowed_hosts` that is no list of names.
        """
        bound = [listener.getsockname()[0] for listener in listeners]
        self._api.hosts = Hosts(bound, self._config.host, self._config.allowed_hosts)
        self._serving = asyncio.get_running_loop().create_task(serve(self._server, listeners))
        while not self._server.started:
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        """Answers what is under way and closes."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
