"""The Redis of a measure: a new `redis-server` on a loopback port, with QTask's settings or its defaults."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from qtask.process import children
from qtask.run.embedded import OPTIONS_FILE
from qtask.run.server_binary import find_server

START_SECONDS = 30.0
REWRITE_SECONDS = 180.0  # the longest that a rewrite of the append-only file may take


class RedisServer:
    """One `redis-server` process; a context manager.

    Args:
        shipped: whether it has the settings that QTask ships (append-only file, fsync before each answer, limits of
            small hashes and sorted sets); else Redis's defaults, without any persistence.
        persistent: False for the shipped settings without persistence.
    """

    def __init__(self, shipped: bool, persistent: bool = True) -> None:
        self.shipped = shipped
        self._persistent = persistent

    def __enter__(self) -> RedisServer:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-redis-")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder.name, "save": ""}
        if not self._persistent:
            options["appendonly"] = "no"
        arguments = [str(OPTIONS_FILE)] if self.shipped else []
        arguments += [text for name, value in options.items() for text in (f"--{name}", value)]
        log = Path(self._folder.name) / "log"
        with log.open("wb") as output:
            self._child = children.start([find_server(), *arguments], output=output)
        self.client = Redis.from_url(self.url)
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self.client.ping()
                return self
            except (RedisError, OSError):
                if time.monotonic() > until or self._child.poll() is not None:
                    raise RuntimeError(f"redis-server did not start: {log.read_text()[-500:]}") from None
                time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._child.kill()  # its data is not needed any more
        self._child.wait()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def info(self) -> dict[str, Any]:
        """The reply of INFO."""
        found: dict[str, Any] = self.client.info("everything")
        return found

    def used_memory(self) -> int:
        """Bytes that Redis uses, without the temporary buffers of connections and of the append-only file."""
        info = self.info()
        return int(info["used_memory"] - info.get("mem_clients_normal", 0) - info.get("mem_aof_buffer", 0))

    def wait_for_rewrite(self) -> None:
        """Waits until no rewrite of the append-only file is running, which would take a core away."""
        until = time.monotonic() + REWRITE_SECONDS
        while self.info().get("aof_rewrite_in_progress") or self.info().get("aof_rewrite_scheduled"):
            if time.monotonic() > until:
                raise RuntimeError(f"the append-only file was still being rewritten after {REWRITE_SECONDS:g} s")
            time.sleep(0.2)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_version() -> str:
    """Version and allocator of the `redis-server` that is used."""
    said = subprocess.run([find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    words = dict(word.split("=", 1) for word in said.split() if "=" in word)
    return f"{words.get('v', '?')} ({words.get('malloc', '?')})"
