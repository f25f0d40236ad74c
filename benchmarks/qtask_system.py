"""QTask itself: its real processes, started as a user starts them."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
import time
from typing import Any

import pycurl

from benchmarks import processes, qtask_submit
from benchmarks.plan import Plan, Submitted
from benchmarks.redis_server import free_port
from benchmarks.system import Place, System, variables
from qtask.model.validation import encode
from qtask.version import VERSION

START_SECONDS = 20.0


class QTask(System):
    """QTask with a number of workers.

    Args:
        name: name on the command line.
        workers: worker processes.
        concurrency: deliveries in flight in each, for a fast and for a slow receiver.
        shipped: whether Redis has the settings that QTask ships, or its defaults without persistence, as for peers.
        burst: tasks of a burst.
    """

    def __init__(
        self, name: str, workers: int = 2, concurrency: int = 1000, shipped: bool = True, burst: int = 120_000
    ) -> None:
        super().__init__()
        self.name = name
        self.burst = burst
        self.submit_rate = 12_000.0
        self.in_flight = (workers * concurrency, workers * concurrency)
        self.shipped_redis = shipped
        self.title = f"QTask {VERSION}, {workers} worker{'s' if workers > 1 else ''}, " + (
            "as shipped (append-only file)" if shipped else "Redis without persistence"
        )
        now = time.time()
        self.payload_bytes = float(
            len(encode(qtask_submit.dictionary(now, "http://127.0.0.1:12345", f"/{now:.6f}/12345")))
        )
        self._workers = workers
        self._concurrency = concurrency
        self._gateway: list[Any] = []
        self.port = 0

    def prepare(self) -> None:
        """Does nothing: QTask runs in this environment."""

    def versions(self) -> dict[str, str]:
        """Versions of the packages that matter for its speed."""
        packages = ("redis", "hiredis", "rq", "rq-scheduler", "msgspec", "pycurl", "uvloop", "requests")
        found = {package: importlib.metadata.version(package) for package in packages}
        return {"qtask": VERSION, **found, "libcurl": pycurl.version_info()[1]}

    def start_accepting(self, place: Place) -> None:
        """Starts a gateway and waits until it listens."""
        self.port = free_port()
        environment = self._environment(place)
        self._gateway = [processes.start([sys.executable, "-m", "qtask", "gateway"], environment, self.log())]
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            except OSError:
                if time.monotonic() > until or self._gateway[0].poll() is not None:
                    raise RuntimeError(f"the gateway did not start:\n{self.log_end()}") from None
                time.sleep(0.05)

    def start_delivering(self, place: Place, slow: bool) -> None:
        """Starts a scheduler and the workers."""
        environment = self._environment(place)
        for name in ["scheduler"] + ["worker"] * self._workers:
            self._running.append(processes.start([sys.executable, "-m", "qtask", name], environment, self.log()))

    def submit(self, place: Place, plan: Plan) -> Submitted:
        """Submits with `qtask.Client` over one connection to the gateway's socket."""
        return self.submit_by(place, plan, f"socket://127.0.0.1:{self.port}")

    def submit_by(self, place: Place, plan: Plan, url: str, module: str = "benchmarks.qtask_submit") -> Submitted:
        """As `submit`, but to another address or with the client of another module."""
        command = [sys.executable, "-m", "benchmarks.submit", module]
        return self._run_submission(command, {**variables(place, 0), "QTASK_URL": url}, plan)

    def accepting(self) -> list[int]:
        """Process id of the gateway."""
        return [process.pid for process in self._gateway]

    def stop(self) -> None:
        """Ends everything, the gateway last."""
        super().stop()
        processes.stop(self._gateway)
        self._gateway = []

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each process: `gateway`, `scheduler`, `worker 1`, …"""
        names = ["scheduler", *(f"worker {number + 1}" for number in range(self._workers))]
        named = dict(zip(names, self.delivering(), strict=False))
        return {**dict(zip(["gateway"], self.accepting(), strict=False)), **named}

    def _environment(self, place: Place) -> dict[str, str]:
        return {
            "QTASK_REDIS_URL": place.redis,
            "QTASK_PORT": str(self.port),
            "QTASK_HTTP_PORT": "0",
            "QTASK_CONCURRENCY": str(self._concurrency),
        }
