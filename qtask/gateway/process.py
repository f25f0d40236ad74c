"""The gateway: the process that accepts tasks, through a socket, the inbox and HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import uvloop
from redis.exceptions import RedisError

from qtask.api.server import HttpServer
from qtask.config import Config
from qtask.gateway.inbox import Inbox
from qtask.gateway.socket import SocketServer
from qtask.intake.intake import Intake
from qtask.intake.limits import ARRAY_FACTOR
from qtask.intake.listen import listen, port_of
from qtask.intake.memory_budget import MemoryBudget
from qtask.intake.refused import refused_log
from qtask.model.errors import ConfigError
from qtask.model.queues import one_queue
from qtask.process import descriptors
from qtask.process.stopping import StopSignals, signals_to_take
from qtask.store import rights
from qtask.store.connect import connect, connect_async
from qtask.store.flow_rules import set_rules

GRACE_SECONDS = 8.0  # for the remaining answers after a signal to stop; less than the 10 s that Docker gives
REPLY_SECONDS = 5.0  # within which Redis replies to a short command
BLOCK_REPLY_SECONDS = 8.0  # the same for a read that waits
CHECK_SECONDS = 1.0  # to wait for the check of the rights in Redis before listening without its result

logger = logging.getLogger("qtask.gateway")


def run(config: Config) -> None:
    """Runs a gateway until it is asked to stop by a signal; a second signal does not wait.

    Raises `QTaskError` when a port is taken, when Redis runs in cluster mode or lacks a right, and when `queue` is not
    one name.
    """
    one_queue(config.queue)
    config = descriptors.fit(config, "max_connections")
    uvloop.run(_serve(config))


def _check_redis(config: Config) -> asyncio.Future[None]:
    """A future that is done when the gateway has all its rights in Redis; it raises `ConfigError` when one is missing.

    It also writes the flow rules of the configuration to Redis, for others that submit tasks. It runs in a daemon
    thread: a Redis that hangs must hold up neither the start nor the end of the gateway.
    """
    loop = asyncio.get_running_loop()
    checked: asyncio.Future[None] = loop.create_future()

    def answer(error: ConfigError | None) -> None:
        if checked.done():
            return
        if error is None:
            checked.set_result(None)
        else:
            checked.set_exception(error)

    def check() -> None:
        while not checked.done():
            error: ConfigError | None = None
            try:
                with connect(config.redis, REPLY_SECONDS) as redis:
                    rights.check(redis, "gateway")
                    set_rules(config.flow_rules).run(redis)
            except ConfigError as found:
                error = found
            except (RedisError, OSError):
                time.sleep(CHECK_SECONDS)
                continue
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(answer, error)
            return

    threading.Thread(target=check, daemon=True).start()
    return checked


async def _serve(config: Config) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    signals = StopSignals()

    def on_signal(number: int) -> None:
        signals.note(number)
        if signals.insisted:
            os._exit(1)
        stopping.set()

    for number in signals_to_take():
        loop.add_signal_handler(number, on_signal, number)
    checked = _check_redis(config)
    await asyncio.wait({checked}, timeout=CHECK_SECONDS)
    if checked.done():
        checked.result()
    lines, requests = listen(config.host, config.port), listen(config.host, config.http_port)
    config = replace(config, port=port_of(lines), http_port=port_of(requests))
    redis, waiting = connect_async(config.redis, REPLY_SECONDS), connect_async(config.redis, BLOCK_REPLY_SECONDS)
    intake = Intake(redis, config)
    budget = MemoryBudget(max(config.max_held_bytes, 2 * config.max_bytes * ARRAY_FACTOR))
    sockets = SocketServer(config, intake, budget)
    http = HttpServer(redis, intake, budget, config)
    inbox = Inbox(redis, waiting, intake, config)
    await sockets.start(lines)
    await http.start(requests)
    reading = inbox.start()
    logger.info("listening", extra={"host": config.host, "port": config.port, "http_port": config.http_port})
    asked = loop.create_task(stopping.wait())
    ends: set[asyncio.Future[Any]] = {asked, reading, checked}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if checked.done():
        checked.result()  # Redis was away at the start and has answered now: a right may be missing
        await asyncio.wait({asked, reading}, return_when=asyncio.FIRST_COMPLETED)
    checked.cancel()
    if reading.done():
        reading.result()  # it ended by a bug: the gateway must not go on without reading the inbox
    logger.info("stopping", extra={"connections": len(sockets.connections)})
    intake.stop_holding()
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            await asyncio.gather(sockets.stop(), http.stop(), inbox.stop())
    except TimeoutError:
        logger.warning(
            "stopped_early", extra={"connections": len(sockets.connections), "unanswered": intake.unanswered}
        )
    refused_log.flush(everything=True)
    await redis.aclose()
    await waiting.aclose()
    logger.info("stopped")
