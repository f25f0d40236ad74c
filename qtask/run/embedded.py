"""The embedded Redis, which is used if no other is given: a real Redis or Valkey server with its data in a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from redis import Redis
from redis.exceptions import BusyLoadingError, RedisError

from qtask.config import Config
from qtask.model.errors import QTaskError
from qtask.process import children
from qtask.run import data_folder
from qtask.run.server_binary import Server, find_servers

START_SECONDS = 30.0  # for a server to answer; it may still be loading its file, which may take longer
STOP_SECONDS = 20.0
LOCK_SECONDS = 2.0  # for the end of the Redis of a `qtask up` that was just killed

OPTIONS_FILE = Path(__file__).with_name("redis.conf")
ADDRESS_FILE = "redis.url"  # in the data folder: the address of its Redis

# Of cgroups, version 2 and 1.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_UNIX_PATH_LIMIT = 100  # the kernel's limit is 107 bytes, and a temporary name may be a bit longer
_PING_SECONDS = 0.5
_STOP_PAUSE_SECONDS = 0.02
_NOTE_PAUSE_SECONDS = 10.0
_LOG_LINES = 5  # from the log of a server that died, to be repeated in our own log
_LOG_LINE_LENGTH = 300
_LOG_TAIL_BYTES = 8_192
_NEARLY_NOTHING_MIB = 1

logger = logging.getLogger("qtask.embedded")


class EmbeddedRedis:
    """A Redis server that listens on a unix socket and on no port, so that only this user can connect.

    Only its supervisor ends it. Signals that ask a process to stop do not reach it, since Redis must not end before the
    workers have settled what they had in flight.

    Args:
        folder: folder of its data; created if it does not exist. Other users cannot read its content.
        memory_mib: memory limit in MiB; 0 for half of this machine's. When it is reached, no more tasks are accepted.
        pipes: a folder that may be inside `folder` and keeps its permissions.

    Attributes:
        url: its address, once started; it stays the same after a restart.
        answers: whether it has answered since it was started.
    """

    def __init__(self, folder: Path, memory_mib: int = 0, pipes: Path | None = None) -> None:
        self.url = ""
        self.answers = False
        self._folder = folder
        self._pipes = pipes or folder / "pipes"
        self._memory_mib = memory_mib
        self._child: subprocess.Popen[bytes] | None = None
        self._server: Server | None = None
        self._lock: int | None = None
        self._socket_folder: Path | None = None
        self._log = folder.resolve() / "redis.log"
        self._log_start = 0  # offset in the log where the present run begins
        self._backoff = children.Backoff()
        self._started = 0.0
        self._heard = 0.0  # when it last answered, or replied that it is loading its file
        self._start_at = 0.0
        self._noted = False
        self._note_at = 0.0

    def start(self, give_up: Callable[[], bool] = lambda: False) -> None:
        """Starts it and waits until it answers, or until `give_up` returns true.

        Raises `QTaskError` if no server on this machine can open the folder, if another QTask uses the folder, or if
        the server does not start.
        """
        try:
            self._launch()
            while not self._look_for_answer() and not give_up():
                if not self.running:
                    raise QTaskError(f"the embedded Redis did not start ({self._how_it_ended()})")
                time.sleep(0.02)
        except QTaskError:
            self.stop()
            raise

    def look(self) -> None:
        """Restarts the server, after a pause, whenever it has died. Does not wait for it."""
        now = time.monotonic()
        if self._child is not None:
            if self.running:
                if not self.answers or (not self._noted and now >= self._note_at):
                    self._look_for_answer()
                return
            pause = self._backoff.pause(now - self._started)
            logger.error("redis_died", extra={**self._last_words(), "restart_in_s": pause})
            self._child = None
            self.answers = False
            self._start_at = now + pause
        elif now >= self._start_at:
            try:
                self._launch()
            except QTaskError as error:
                pause = self._backoff.pause(0.0)
                logger.error("redis_not_started", extra={"error": str(error), "restart_in_s": pause})
                self._start_at = now + pause

    def stop(self) -> None:
        """Ends the server after it has written its file."""
        if self._child is not None:
            deadline = time.monotonic() + STOP_SECONDS
            while self._child.poll() is None and time.monotonic() < deadline:
                with suppress(RedisError, OSError):
                    Redis.from_url(self.url, socket_timeout=STOP_SECONDS).shutdown(nosave=True)
                time.sleep(_STOP_PAUSE_SECONDS)  # it refuses to end while it writes its first append-only file
            children.wait(self._child, STOP_SECONDS)
            self._child = None
        self.answers = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._child is not None and self._child.poll() is None

    def _launch(self) -> None:
        servers = find_servers()
        try:
            self._take_folder()
            opened = data_folder.make_private(self._folder, self._pipes)
            data_folder.require_readable(self._folder, [server.version for server in servers])
            data_folder.tidy(self._folder, self._log)
            self._log_start = self._log.stat().st_size if self._log.exists() else 0
        except OSError as error:
            raise QTaskError(f"the folder {self._folder} cannot be used: {error.strerror}") from None
        assert self._lock is not None
        if opened.closed:
            logger.warning("made_private", extra={"paths": len(opened.closed), "first": opened.closed[0]})
        if opened.left:
            logger.warning("others_may_read", extra={"paths": len(opened.left), "first": opened.left[0]})
        # The preferred server, unless it cannot read the data.
        self._server = next(one for one in servers if data_folder.readable(self._folder, one.version))
        path = self._socket_path()
        self.url = "unix://" + quote(path)
        options = ["--port", "0", "--unixsocket", path, "--unixsocketperm", "600"]
        options += ["--dir", str(self._folder.resolve()), "--logfile", str(self._log)]
        options += ["--maxmemory", f"{self._memory_mib or machine_memory_mib() // 2}mb"]
        # Redis inherits the lock, so that it is held until Redis has ended, even if we are killed first.
        self._child = children.start(
            [self._server.path, str(OPTIONS_FILE), *options],
            output=subprocess.DEVNULL,
            keep_open=[self._lock],
            shielded=True,
            umask=0o077,
        )
        self._started = self._heard = time.monotonic()
        self.answers = self._noted = False

    def _look_for_answer(self) -> bool:
        """Whether the server answers by now. If it has not replied for `START_SECONDS`, it is killed."""
        assert self._child is not None
        client = Redis.from_url(self.url, socket_timeout=_PING_SECONDS, socket_connect_timeout=_PING_SECONDS)
        try:
            client.ping()
        except BusyLoadingError:
            self._heard = time.monotonic()
        except (RedisError, OSError):
            if time.monotonic() - self._heard > START_SECONDS:
                self._child.kill()
        else:
            self._note()
            if not self.answers:
                self.answers = True
                logger.info(
                    "redis_started", extra={"url": self.url, "server": str(self._server and self._server.version)}
                )
        finally:
            client.close()
        return self.answers

    def _note(self) -> None:
        """Stores its address, for other commands, and its version, for later starts."""
        notes = {ADDRESS_FILE: self.url, data_folder.VERSION_FILE: str(self._server and self._server.version)}
        try:
            for name, text in notes.items():
                path = self._folder / name
                if not path.exists() or path.read_text() != text:
                    data_folder.write_private(path, text)
        except OSError as error:  # perhaps a full disk; it is retried
            logger.warning("not_noted", extra={"folder": str(self._folder), "error": str(error)})
            self._note_at = time.monotonic() + _NOTE_PAUSE_SECONDS
        else:
            self._noted = True

    def _how_it_ended(self) -> str:
        words = self._last_words()
        said = " / ".join(words["log"]) or "nothing"
        return f"{words['ended']}, {words['disk']}; the end of {self._log} says: {said}"

    def _last_words(self) -> dict[str, Any]:
        """Facts about the server that has ended: how it ended, its last log lines, and the free space on its disk."""
        assert self._child is not None
        free = shutil.disk_usage(self._folder).free // 1_048_576
        disk = "the disk is full" if free < _NEARLY_NOTHING_MIB else f"{free} MiB free on its disk"
        return {
            "ended": children.ending(self._child.wait()),
            "disk": disk,
            "log": _last_lines(self._log, self._log_start),
            "data_dir": str(self._folder),
        }

    def _take_folder(self) -> None:
        if self._lock is not None:
            return
        self._folder.mkdir(mode=data_folder.PRIVATE_FOLDER, parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, data_folder.PRIVATE_FILE)
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(lock)
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


def _last_lines(log: Path, start: int) -> list[str]:
    """The last few lines that a run has logged, truncated."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(start, size), size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    said = [line.strip()[:_LOG_LINE_LENGTH] for line in lines if line.strip()]
    return said[-_LOG_LINES:]


def reachable_url(config: Config) -> str:
    """The address of Redis for a command: as set, else of a `qtask up` on the data folder, else the default."""
    return config.redis_url or embedded_url(Path(config.data_dir)) or config.redis


def embedded_url(folder: Path) -> str:
    """The address of the Redis that a `qtask up` runs on this folder now, or an empty text.

    Raises `QTaskError` if the folder belongs to another user.
    """
    url = noted_url(folder)
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            probe.connect(unquote(url.removeprefix("unix://")))
    except OSError:  # there is no address, or a killed `qtask up` has left it
        return ""
    return url


def noted_url(folder: Path) -> str:
    """The address of the last Redis that a `qtask up` ran on this folder, or an empty text.

    Raises as `embedded_url`.
    """
    try:
        return (folder / ADDRESS_FILE).read_text()
    except PermissionError:
        raise QTaskError(
            f"the folder {folder} belongs to another user: run this command as that user, or name a Redis with --redis"
        ) from None
    except OSError:
        return ""


def machine_memory_mib() -> int:
    """Memory of this machine in MiB, or the limit of its container."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max" in it: no limit of this kind
            found.append(int(limit.read_text()))
    return min(found) // 1_048_576
