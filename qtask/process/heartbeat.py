"""Heartbeat files of the processes of this host or container, for `qtask health`: one small file per process.

A process keeps its file locked while it lives. The file holds the time of the last heartbeat, by the system's monotonic
clock, and for how long it is valid. So `health` can tell a process that was killed from one that hangs without asking
Redis, and each container sees only its own processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qtask.config import Config
from qtask.model.redis_address import without_password

BEAT_SECONDS = 1.0  # between two heartbeats
ALIVE_SECONDS = 10.0  # without a heartbeat after which a process counts as hung
BLOCKING_ALIVE_SECONDS = 15.0  # the same for a process that may wait for Redis, for up to 10 s

logger = logging.getLogger("qtask.heartbeat")


class Heartbeat:
    """The heartbeat of one process.

    Args:
        process: `scheduler` or `worker`.
        config: its Redis and queue identify the installation.
        role: name of the process in the output of `health`.
        wait: seconds without a call of `beat` after which it counts as hung.
    """

    def __init__(self, process: str, config: Config, role: str = "", wait: float = ALIVE_SECONDS) -> None:
        self._name = f"{_prefix(process, config.redis, config.queue)}{os.getpid()}"
        self._role = role or process
        self._wait = wait
        self._file = -1
        self._warned = False
        self._beat_at = 0.0

    def beat(self, trouble: str = "") -> None:
        """Records that this process is alive; writes at most once a second.

        Args:
            trouble: a problem of the process, which `health` reports.
        """
        now = time.monotonic()
        if now - self._beat_at < BEAT_SECONDS * 0.9:
            return
        self._beat_at = now
        text = f"{now:.3f} {self._wait:g}\n{self._role}\n{trouble}\n"
        try:
            if self._file < 0 or not os.fstat(self._file).st_nlink:  # a clean-up of temporary files may have removed it
                self._open()
            os.pwrite(self._file, text.encode(), 0)
            os.ftruncate(self._file, len(text.encode()))
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("no_heartbeat_file", extra={"error": str(error)})

    def close(self) -> None:
        """Removes the file, for a process that ends."""
        if self._file >= 0:
            with suppress(OSError):
                (_private_folder() / self._name).unlink()
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        file = os.open(_private_folder() / self._name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise
        self._file = file


def troubles(process: str, redis_url: str, queue: str) -> tuple[int, list[str]]:
    """How many processes of a kind live on this host (or in this container), and the problems that they have.

    Args:
        process: `scheduler` or `worker`.
        redis_url, queue: these identify the installation.
    """
    found = 0
    wrong = []
    for folder in filter(_is_private, _folders()):
        for path in sorted(folder.glob(f"{_prefix(process, redis_url, queue)}*")):
            text = _read_living(path)
            if text is None:
                continue
            found += 1
            instants, role, trouble, *_ = [*text.split("\n"), "", "", ""]
            beat_at, _, wait = instants.partition(" ")
            pid = path.name.rpartition("-")[2]
            silent = time.monotonic() - float(beat_at or 0)
            if silent > float(wait or 0):
                wrong.append(f"the {role} with process id {pid} hangs: no heartbeat for {silent:.0f} s")
            elif trouble:
                wrong.append(f"the {role} with process id {pid}: {trouble}")
    return found, wrong


def _read_living(path: Path) -> str | None:
    """The content of a heartbeat file; None if its process has died, and then the file is removed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return os.read(file, 4_096).decode(errors="replace")
    else:
        with suppress(OSError):
            path.unlink()
        return None
    finally:
        os.close(file)


def _prefix(process: str, redis_url: str, queue: str) -> str:
    """The prefix of the file names of one kind of process. Other containers have other prefixes."""
    try:
        container = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        container = ""
    about = hashlib.sha256("\0".join([without_password(redis_url), queue, container]).encode()).hexdigest()[:16]
    return f"{process}-{about}-"


def _folders() -> Iterator[Path]:
    """The possible folders: in memory, or among the temporary files. Most containers can write to both."""
    for place in dict.fromkeys(("/dev/shm", tempfile.gettempdir())):  # noqa: S108  # a private folder is made in it
        yield Path(place) / f"qtask-{os.geteuid()}"


def _private_folder() -> Path:
    """The first of these folders that is private to this user; created if it does not exist. Raises OSError."""
    failed = OSError("there is no folder for temporary files")
    for folder in _folders():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            failed = error
            continue
        if _is_private(folder):
            return folder
        failed = PermissionError(f"{folder} does not belong to this user alone")
    raise failed


def _is_private(folder: Path) -> bool:
    try:
        state = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.geteuid() and not state.st_mode & 0o077
