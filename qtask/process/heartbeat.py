"""Signs of life of the processes of this host or container, for `qtask health`: one small file a process.

A process keeps its file locked while it lives. It writes into it when it gave its last sign of life, by the system's
monotonic clock, and for how long that holds. So `health` can tell a process that was killed from one that hangs without
asking Redis, and each container sees its own processes only.
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

BEAT_SECONDS = 1.0  # how often a process gives a sign of life
ALIVE_SECONDS = 10.0  # without one for so long, a process counts as hung
BLOCKING_ALIVE_SECONDS = 15.0  # the same for one that may be waiting for Redis, which it does for up to 10 s

logger = logging.getLogger("qtask.heartbeat")


class Heartbeat:
    """The signs of life of one process.

    Args:
        process: what it is: `scheduler` or `worker`.
        config: whose Redis and queue say which installation it belongs to.
        role: how `health` calls it.
        wait: seconds between two calls of `beat` after which it counts as hung.
    """

    def __init__(self, process: str, config: Config, role: str = "", wait: float = ALIVE_SECONDS) -> None:
        self._name = f"{_prefix(process, config.redis, config.queue)}{os.getpid()}"
        self._role = role or process
        self._wait = wait
        self._file = -1
        self._warned = False
        self._beat_at = 0.0

    def beat(self, trouble: str = "") -> None:
        """Says that this process is alive; writes once a second at most.

        Args:
            trouble: what is wrong all the same; `health` then repeats it.
        """
        now = time.monotonic()
        if now - self._beat_at < BEAT_SECONDS * 0.9:
            return
        self._beat_at = now
        text = f"{now:.3f} {self._wait:g}\n{self._role}\n{trouble}\n"
        try:
            if self._file < 0 or not os.fstat(self._file).st_nlink:  # a cleaner of temporary files may have removed it
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
    """How many processes of a kind live on this host (or in this container), and what is wrong with those that are ill.

    Args:
        process: `scheduler` or `worker`.
        redis_url, queue: of the installation.
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
                wrong.append(f"the {role} with process id {pid} hangs: no sign of life for {silent:.0f} s")
            elif trouble:
                wrong.append(f"the {role} with process id {pid}: {trouble}")
    return found, wrong


def _read_living(path: Path) -> str | None:
    """What a process wrote; None when it has died, and then the file is removed."""
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
    """The head of the names of all files of one kind of process; the processes of other containers have another one."""
    try:
        container = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # not Linux
        container = ""
    about = hashlib.sha256("\0".join([without_password(redis_url), queue, container]).encode()).hexdigest()[:16]
    return f"{process}-{about}-"


def _folders() -> Iterator[Path]:
    """Where files may be: in memory, else with the temporary files. Both can be written in most containers."""
    for place in dict.fromkeys(("/dev/shm", tempfile.gettempdir())):  # noqa: S108  # a private folder is made in it
        yield Path(place) / f"qtask-{os.geteuid()}"


def _private_folder() -> Path:
    """The first of these folders that is ours alone; made when it does not exist. Raises OSError."""
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
