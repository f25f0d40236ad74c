"""The socket: JSON texts in, one answer line for each text, in order.

A connection (`connection.py`) passes its bytes to `texts.py` and writes answers through `answers.py`.
"""

from __future__ import annotations

import asyncio
import socket

from qtask.config import Config
from qtask.gateway.connection import Connection
from qtask.intake.intake import Intake
from qtask.intake.listen import BACKLOG
from qtask.intake.memory_budget import MemoryBudget
from qtask.intake.refused import refused_log


class SocketServer:
    """All connections of the socket.

    Args:
        config: `http_port`, `max_bytes`, `max_connections` and `idle_seconds`.
        intake: where submitted tasks go.
        budget: counts the bytes that all connections hold.
    """

    def __init__(self, config: Config, intake: Intake, budget: MemoryBudget) -> None:
        self._config = config
        self._intake = intake
        self._budget = budget
        self.connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listeners: list[socket.socket]) -> None:
        """Starts serving."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(await loop.create_server(self._connect, sock=listener, backlog=BACKLOG))
        self._sweep()

    async def stop(self) -> None:
        """Stops accepting connections and texts; returns when all answers are written."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.finish()
        while self.connections:
            await asyncio.sleep(0.01)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _connect(self) -> Connection:
        return Connection(self._config, self._intake, self.connections, self._count)

    def _count(self, by: int) -> None:
        """Counts a change in the bytes held; while the budget is exceeded, ends the connection that holds the most."""
        self._budget.change(by)
        while by > 0 and self._budget.exceeded:
            greatest = max(self.connections, key=lambda connection: connection.droppable, default=None)
            if greatest is None or not greatest.droppable:
                return  # all of these bytes are on their way to Redis
            greatest.end_as_largest(self._budget.limit)

    def _sweep(self) -> None:
        """Ends connections that have been silent for too long."""
        idle = self._config.idle_seconds
        self._sweeper = asyncio.get_running_loop().call_later(min(5.0, idle / 2), self._sweep)
        refused_log.flush()
        for connection in list(self.connections):
            connection.end_if_silent(idle)
