"""A whole QTask for tests: `qtask up` as a user starts it, with its own folder and ports."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis import Redis

from qtask.run.embedded import embedded_url
from tests.support.processes import Process
from tests.support.waiting import until


class Installation:
    """`qtask up`; a context manager.

    Args:
        folder: gets its data and its log; may be used by several, one after the other.
        flags: of the command.
        environment: settings, such as `QTASK_QUEUE`.

    Attributes:
        port, http_port: chosen by the system.
    """

    def __init__(self, folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.log = folder / "up.log"
        self._seen = len(self.events())
        arguments = ["--data-dir", str(self.data_dir), "--port", "0", "--http-port", "0", *flags]
        self.process = Process("up", environment or {}, self.log, *arguments)
        ready = self.wait_for("ready")
        self.port = int(ready["socket"].rpartition(":")[2])
        self.http_port = int(ready["http"].rpartition(":")[2])

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.stop(60)

    @property
    def url(self) -> str:
        """Address of its socket."""
        return f"socket://127.0.0.1:{self.port}"

    @property
    def redis(self) -> Redis:
        """A client of its embedded Redis."""
        return Redis.from_url(embedded_url(self.data_dir))

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which other commands find it."""
        return {
            "QTASK_PORT": str(self.port),
            "QTASK_HTTP_PORT": str(self.http_port),
            "QTASK_DATA_DIR": str(self.data_dir),
            "QTASK_URL": self.url,
        }

    def events(self) -> list[dict[str, Any]]:
        """Every event that its processes have logged."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, event: str) -> dict[str, Any]:
        """Waits for an event that `qtask up` itself has logged since its start."""

        def found() -> dict[str, Any] | None:
            own = (one for one in self.events()[self._seen :] if one["process"] == "up" and one["event"] == event)
            return next(own, None)

        def ended() -> bool:
            return not self.process.running

        until(lambda: found() or ended(), 30, event)
        result = found()
        assert result is not None, self.log.read_text()
        return result

    def children(self) -> dict[int, str]:
        """Process ids of its children, with their names: `gateway`, `scheduler`, `worker` or `redis`."""
        return {pid: _name(command) for pid, (parent, command) in processes().items() if parent == self.process.pid}

    def child(self, name: str) -> int:
        """Process id of its child of this name, once it runs."""
        return until(lambda: next((pid for pid, found in self.children().items() if found == name), 0), what=name)


def processes() -> dict[int, tuple[int, str]]:
    """Every live process of this machine: its parent and its command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            if state != "Z":
                found[int(entry.name)] = (int(parent), command.strip())
    return found


def processes_of(folder: Path) -> set[int]:
    """Live processes that use a folder: it is in their command or environment, or their working directory is in it."""
    name = str(folder).encode()
    found = set()
    for pid, (_, command) in processes().items():
        place = Path(f"/proc/{pid}")
        try:
            told = [command.encode(), (place / "environ").read_bytes(), os.fsencode((place / "cwd").readlink())]
        except OSError:
            continue  # it has just ended, or is not ours
        if any(name in one for one in told):
            found.add(pid)
    return found - {os.getpid()}


def kill(pid: int) -> None:
    """Ends a process at once, as a crash would."""
    os.kill(pid, signal.SIGKILL)


def _name(command: str) -> str:
    if "redis-server" in command or "valkey-server" in command:
        return "redis"
    return command.rpartition(" ")[2]
