"""A TCP proxy that cuts connections in the middle of a reply.

As a program: `python -m tests.chaos.proxy NAME=PORT …` prints the proxy's port for each server; it reads lines
`NAME SKIP SHARE` from standard input (after SKIP more replies of NAME, pass only this SHARE of one and cut), and
exits at its end.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import uvloop


class _Cuts:
    """The ordered cuts of one server, each a number of replies to pass and a share.

    Attributes:
        made: the number of cuts made.
    """

    def __init__(self) -> None:
        self._ordered: deque[tuple[int, float]] = deque()
        self.made = 0

    def order(self, skip: int, share: float) -> None:
        self._ordered.append((skip, share))

    def next(self) -> float | None:
        """Called for each reply: the share of it to pass, or None for all of it."""
        if not self._ordered:
            return None
        skip, share = self._ordered[0]
        if skip:
            self._ordered[0] = (skip - 1, share)
            return None
        self._ordered.popleft()
        self.made += 1
        return share


class _ToServer(asyncio.Protocol):
    """The proxy's connection to the server, which replies."""

    def __init__(self, client: _ToClient, cuts: _Cuts) -> None:
        self._client = client
        self._cuts = cuts
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        share = self._cuts.next()
        if share is None:
            self._client.transport.write(data)
            return
        self._client.transport.write(data[: int(len(data) * share)])
        self._client.transport.close()
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._client.transport.close()

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._client.transport.is_closing():
            self._client.transport.resume_reading()


class _ToClient(asyncio.Protocol):
    """A client's connection to the proxy."""

    def __init__(self, port: int, cuts: _Cuts) -> None:
        self._port = port
        self._cuts = cuts
        self._early: list[bytes] = []
        self._ended = False
        self._server: Any = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            server, _ = await loop.create_connection(lambda: _ToServer(self, self._cuts), "127.0.0.1", self._port)
        except OSError:
            self.transport.close()
            return
        self._server = server
        if self.transport.is_closing():
            server.abort()
            return
        server.writelines(self._early)
        if self._ended:
            server.write_eof()

    def data_received(self, data: bytes) -> None:
        if self._server is None:
            self._early.append(data)
        else:
            self._server.write(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self._server is not None and not self._server.is_closing():
            self._server.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        if self._server is not None:
            self._server.close()

    def pause_writing(self) -> None:
        self._server.pause_reading()

    def resume_writing(self) -> None:
        if not self._server.is_closing():
            self._server.resume_reading()


async def _serve(ports: Mapping[str, int]) -> None:
    loop = asyncio.get_running_loop()
    cuts = {name: _Cuts() for name in ports}
    chosen = {}
    for name, port in ports.items():
        server = await loop.create_server(partial(_ToClient, port, cuts[name]), "127.0.0.1", 0, backlog=1024)
        chosen[name] = server.sockets[0].getsockname()[1]
    print(json.dumps(chosen), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        name, skip, share = line.split()
        cuts[name].order(int(skip), float(share))
        print("ordered", flush=True)
    print(json.dumps({name: one.made for name, one in cuts.items()}), flush=True)


class Proxy:
    """The program, as used by tests.

    Args:
        ports: of the servers.

    Attributes:
        ports: of the proxy, one for each server.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        command = [sys.executable, "-m", "tests.chaos.proxy", *(f"{name}={port}" for name, port in ports.items())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._said = self._process.stdin, self._process.stdout
        self.ports = cast("dict[str, int]", json.loads(self._said.readline()))

    def cut(self, name: str, skip: int, share: float) -> None:
        """Cuts a connection in the middle of a reply of this server; returns when the proxy knows."""
        print(name, skip, share, file=self._orders, flush=True)
        self._said.readline()

    def close(self) -> dict[str, int]:
        """Ends the program; returns how many connections it has cut, for each server."""
        output, _ = self._process.communicate()
        return cast("dict[str, int]", json.loads(output))


if __name__ == "__main__":
    uvloop.run(_serve({name: int(port) for name, _, port in (one.partition("=") for one in sys.argv[1:])}))
