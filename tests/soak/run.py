"""The soak: a gateway, a scheduler and two workers on a real Redis at a steady load; their memory must not grow.

`python -m tests.soak.run --seconds 600 --rate 2000` prints a table, and exits with 1 when something grew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from qtask import Client
from qtask.config import Config
from qtask.observe.tables import print_audit
from qtask.store import keys, tasks
from qtask.store.audit import Audit, audit
from tests.soak.load import SLOT_SECONDS, Load
from tests.soak.memory import LIMIT_BYTES_A_TASK, Reading, Series, open_files, resident_bytes
from tests.support.gateway_process import Gateway
from tests.support.live import Live
from tests.support.waiting import until

SAMPLE_SECONDS = 2.0
WORKERS = 2
CONCURRENCY = Config().concurrency
CLAIMED_AHEAD = CONCURRENCY // 8  # tasks that a worker claims beyond its concurrency
CONNECT_SECONDS = 20.0
PIPE = "soak"
MOST_MORE_FILES = 50  # connections come and go
DRAIN_SECONDS = 60.0
# Small, so that every history and table is full soon after the start.
KEEPING: dict[str, Any] = {
    "retention_count": 2_000,
    "stats_retention_count": 2_000,
    "dead_retention_count": 300,
    "idempotency_seconds": 15,
}


class Soak:
    """One run; a context manager.

    Args:
        folder: for data and logs.
        rate: tasks a second.

    Attributes:
        memory: readings of the memory of each process, and of Redis by its own account.
        files: readings of the open files of each process.
    """

    def __init__(self, folder: Path, rate: float) -> None:
        self._rate = rate
        self._stack = ExitStack()
        self._live = self._stack.enter_context(Live(folder, "--appendonly", "yes", "--appendfsync", "everysec"))
        os.mkfifo(self._live.pipes / PIPE)
        ports = self._stack.enter_context(_receiver(self._live.pipes / PIPE))
        scheduler = self._live.start("scheduler")
        workers = [self._live.start("worker", concurrency=CONCURRENCY, **KEEPING) for _ in range(WORKERS)]
        gateway = self._stack.enter_context(Gateway(self._live.server.url, folder))
        client = self._stack.enter_context(Client(gateway.url, timeout=30))
        self.load = Load(rate, client, f"http://127.0.0.1:{gateway.http_port}", self._live.redis, ports, PIPE)
        self._workers = [worker.pid for worker in workers]
        self._pids = {
            "gateway": gateway.process.pid,
            "scheduler": scheduler.pid,
            **{f"worker {number}": worker.pid for number, worker in enumerate(workers, 1)},
            "redis-server": self._live.server.pid,
        }
        self.memory = {name: Series(name) for name in (*self._pids, "used_memory")}
        self.files = {name: Series(name) for name in self._pids}

    def __enter__(self) -> Soak:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open_all_connections(self) -> None:
        """Makes every worker deliver as much at once as it ever will, so that it takes the memory for that now.

        A worker opens another connection whenever more deliveries than ever before coincide. At a steady load that
        continues, ever more rarely, for minutes after the warm-up, and looks like a leak. libcurl closes connections
        that are idle for two minutes, but the memory stays with the process, for the next connections.
        """
        # Enough to fill each worker, whichever claims them; the receiver answers only when all have arrived.
        self.load.submit_slow(WORKERS * (CONCURRENCY + CLAIMED_AHEAD))
        until(
            lambda: all(open_files(pid) >= CONCURRENCY for pid in self._workers),
            CONNECT_SECONDS,
            "every worker to have all its connections",
        )
        until(self._all_ended, DRAIN_SECONDS, "the slow tasks to end", every=0.1)

    def run(self, seconds: float) -> None:
        """Submits at the rate for this time, and records the readings."""
        began = next_slot = next_sample = time.monotonic()
        self.load.fill_the_refused()
        while (now := time.monotonic()) < began + seconds:
            if now >= next_sample:
                self._read(now - began)
                next_sample = max(next_sample + SAMPLE_SECONDS, now)
            self.load.run_slot()
            next_slot += SLOT_SECONDS
            time.sleep(max(0.0, next_slot - time.monotonic()))

    def drain(self) -> dict[str, dict[str, int]]:
        """Waits until every task has ended, and returns the number of deliveries of each type by outcome."""
        until(self._all_ended, DRAIN_SECONDS, "every task to end", every=0.1)
        totals: dict[str, dict[str, int]] = {}
        counters: dict[bytes, bytes] = self._live.redis.hgetall(keys.COUNTERS)  # type: ignore[assignment]
        for name, count in sorted(counters.items()):
            kind, _, status = name.decode().partition(":")
            totals.setdefault(kind, {})[status] = int(count)
        return totals

    def audit(self) -> Audit:
        """The audit, once every task has ended."""
        return audit(self._live.redis)

    def _all_ended(self) -> bool:
        counts = tasks.count_tasks(self._live.redis, "qtask")
        return not (counts["scheduled"] or counts["queued"] or counts["started"])

    def _read(self, at: float) -> None:
        for name, pid in self._pids.items():
            self.memory[name].readings.append(Reading(at, resident_bytes(pid)))
            self.files[name].readings.append(Reading(at, open_files(pid)))
        used = int(self._live.redis.info("memory")["used_memory"])
        self.memory["used_memory"].readings.append(Reading(at, used))


@contextmanager
def _receiver(pipe: Path) -> Iterator[tuple[int, int, int]]:
    command = [sys.executable, "-m", "tests.soak.receiver", str(pipe)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        http, sockets, udp = json.loads(process.stdout.readline())
        yield http, sockets, udp
        process.stdin.close()


def report(soak: Soak, warm_up: float, rate: float) -> list[str]:
    """Prints the table; returns what grew."""
    grown = []
    print(
        f"{'':14} {'MiB after warm-up':>18} {'at the end':>11} {'KiB a minute':>13} {'bytes a task':>13} {'files':>11}"
    )
    for name, series in soak.memory.items():
        steady = series.since(warm_up)
        grows = steady.grows(rate)
        columns = f"{steady.first / 2**20:18.1f} {steady.last / 2**20:11.1f} {steady.slope * 60 / 1024:13.1f}"
        columns += f" {steady.slope / rate:13.2f}"
        if name in soak.files:
            files = soak.files[name]  # from the start, when a worker has all the connections that it may have
            columns += f" {files.first:5.0f} {files.last:5.0f}"
            if files.grows_in_pieces(MOST_MORE_FILES):
                grown.append(f"{name}: open files")
        if grows:
            grown.append(f"{name}: memory")
        print(f"{name:14} {columns}{'  GROWS' if grows else ''}")
    return grown


def main() -> int:
    """Runs everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long  [default: 600]")
    parser.add_argument("--rate", type=float, default=2_000.0, help="tasks a second  [default: 2000]")
    arguments = parser.parse_args()
    warm_up = min(120.0, arguments.seconds * 0.4)
    with tempfile.TemporaryDirectory(prefix="qtask-soak-") as folder, Soak(Path(folder), arguments.rate) as soak:
        print(f"{arguments.seconds:g} s at {arguments.rate:g} tasks/s, of which {warm_up:g} s to warm up", flush=True)
        soak.open_all_connections()
        began, before = time.monotonic(), soak.load.submitted
        soak.run(arguments.seconds)
        submitted = soak.load.submitted
        rate = (submitted - before) / (time.monotonic() - began)
        totals = soak.drain()
        grown = report(soak, warm_up, rate)
        audited = soak.audit()
    print(f"{submitted} tasks accepted, {rate:.0f}/s; {soak.load.refused} dicts refused; outcomes:")
    for kind, outcomes in totals.items():
        print(f"  {kind}: {', '.join(f'{status} {number}' for status, number in outcomes.items())}")
    if grown:
        print(f"grows by more than {LIMIT_BYTES_A_TASK:g} bytes a task: {', '.join(grown)}")
    print_audit(audited)
    return 1 if grown or not audited.balances else 0


if __name__ == "__main__":
    sys.exit(main())
