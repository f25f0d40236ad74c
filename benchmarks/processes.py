"""What processes used, read from /proc, and starting and ending the processes of a measure."""

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
    """Starts a process in a group of its own; what it prints goes to the end of `log`."""
    with log.open("ab") as output:
        return children.start(command, environment, output)


def stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Asks processes to end and waits; what is left of their groups after that is killed."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + STOP_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, until - time.monotonic()))
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # each was started as the leader of a group of its own
        process.wait()


def tree(roots: Iterable[int]) -> list[int]:
    """The processes given and all their descendants that live now."""
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
    """Processor time of processes and their descendants until now, those that ended and were waited for included."""
    ticks = 0
    for pid in tree(roots):
        fields = _stat(pid)
        if fields:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def machine_seconds() -> tuple[float, float]:
    """Processor time of the whole machine until now: busy, and in all."""
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
    """The fields of /proc/PID/stat from the third on; none when the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
