"""Starts and ends the processes of a measure, and reads their resource usage from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qtask.process import children

STOP_SECONDS = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


def start(command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts a process in its own group; its output is appended to `log`."""
    with log.open("ab") as output:
        return children.start(command, environment, output)


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Asks processes to end and waits; then kills the rest of their groups."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + STOP_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, until - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # each was started as the leader of its own group
        process.wait()


def tree(roots: Iterable[int]) -> list[int]:
    """The given processes and all their living descendants."""
    offspring: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = _stat(int(folder.name))
            if fields:
                offspring.setdefault(int(fields[1]), []).append(int(folder.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += offspring.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time of processes and their descendants until now, including those that ended and were waited for."""
    ticks = 0
    for pid in tree(roots):
        fields = _stat(pid)
        if fields:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def machine_seconds() -> tuple[float, float]:
    """CPU time of the whole machine until now: busy, and in total."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / _TICKS, sum(fields) / _TICKS


def memory_bytes(pid: int) -> int:
    """The most resident memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def has_loaded(pid: int, package: str) -> bool:
    """Whether a process has loaded compiled parts of a package."""
    return f"/{package}/" in Path(f"/proc/{pid}/maps").read_text()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
