"""A real Redis for tests: a separate process on a free port, with its own data folder."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from qtask.run.server_binary import find_server

# Ports that the kernel gives to no outgoing connection (ip_local_port_range), so that nothing takes one of them between
# the probe and the start of the server that is to listen there.
_FIRST_PORT, _LAST_PORT = 10_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody listens on, and that this process was not given before."""
    while True:
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port


class RedisServer:
    """The server that QTask itself would use: start, kill, stop and continue it as real failures do.

    Args:
        folder: gets its data.
        options: of its command line.
        password: of its default user.
        environment: added to our own.
    """

    def __init__(
        self, folder: Path, *options: str, password: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._environment = environment or {}
        if password:
            self.url = f"redis://:{quote(password, safe='')}@127.0.0.1:{self.port}/0"
            self._options += ("--requirepass", password)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts (or restarts) on the same port and folder, and waits until it answers."""
        self.begin()
        client = self.client()
        for _ in range(1_500):
            try:
                client.ping()
                return
            except RedisConnectionError:
                assert self.running, f"the server on port {self.port} ended at once"
                time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def begin(self, *options: str) -> None:
        """Starts without waiting; `options` apply to this start only."""
        place = ["--port", str(self.port), "--dir", str(self.folder)]
        self._process = subprocess.Popen(
            [find_server(), *place, "--save", "", *self._options, *options],
            env={**os.environ, **self._environment},
            stdout=subprocess.DEVNULL,
        )

    def client(self) -> Redis:
        """A new client."""
        return Redis.from_url(self.url)

    @contextmanager
    def emptied(self) -> Iterator[Redis]:
        """Empties the server; yields a client, which is closed at the end."""
        with closing(self.client()) as client:
            client.flushall()
            yield client

    @property
    def running(self) -> bool:
        """Whether the process has not exited."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, such as SIGSTOP and SIGCONT."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Asks it to stop, and waits."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
