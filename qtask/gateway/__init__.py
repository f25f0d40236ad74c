"""The gateway: the process that accepts dicts, through a socket, the inbox and HTTP."""

from __future__ import annotations

import asyncio
import logging
import signal
from time import monotonic

import uvloop

from qtask.config import Config
from qtask.errors import QTaskError
from qtask.gateway.http import HttpServer
from qtask.gateway.inbox import Inbox
from qtask.gateway.intake import Intake
from qtask.gateway.socket import SocketServer
from qtask.store.connect import REPLY_TIMEOUT_SECONDS, connect_async

GRACE_SECONDS = 8.0  # for answers that are owed when asked to stop; below the 10 s that Docker gives

logger = logging.getLogger("qtask.gateway")


def run(config: Config) -> None:
    """Runs a gateway until SIGTERM or SIGINT. Raises `QTaskError` when a port is taken."""
    uvloop.run(_serve(config))


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    redis, waiting = (connect_async(config.redis, REPLY_TIMEOUT_SECONDS) for _ in range(2))
    intake = Intake(redis, config)
    sockets = SocketServer(config, intake)
    http = HttpServer(redis, intake, config)
    inbox = Inbox(redis, waiting, intake, config)
    try:
        port = await sockets.start()
        http_port = await http.start()
    except OSError as error:
        raise QTaskError(
            f"the gateway cannot listen on {config.host} port {config.port} and {config.http_port}: "
            f"{error.strerror or error}; is another one running? choose others with --port and --http-port"
        ) from None
    inbox.start()
    logger.info("listening", extra={"host": config.host, "port": port, "http_port": http_port})
    await stopping.wait()
    logger.info("stopping", extra={"connections": len(sockets.connections)})
    deadline = monotonic() + GRACE_SECONDS
    sockets.stop()
    while (sockets.connections or not intake.idle) and monotonic() < deadline:
        await asyncio.sleep(0.01)
    await asyncio.gather(http.stop(), inbox.stop())
    await redis.aclose()
    await waiting.aclose()
    logger.info("stopped")
