"""The interface of all measured systems: a task system accepts tasks and delivers them with its own processes."""

from __future__ import annotations

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.plan import Plan, Submitted

ROOT = Path(__file__).parent.parent
LOGS = Path(__file__).parent / ".results" / "logs"
SUBMIT_SECONDS = 240.0  # the longest that a submission may take


@dataclass(frozen=True)
class Place:
    """Where a system works: its Redis and the receiver, as addresses."""

    redis: str
    receiver: str


class System(ABC):
    """One task system in one configuration.

    Attributes:
        name: short name, for the command line.
        title: name, version and configuration, for the table.
        burst: tasks that it delivers in 5 to 20 seconds on two cores.
        submit_rate: tasks per second that its client submits at least; replaced by the measured rate.
        in_flight: deliveries at once in all its workers together, and the same for a slow receiver.
        remark: remark for readers of its figures.
        payload_bytes: bytes of a waiting task that are not overhead of the system; for QTask the JSON of the dict.
        shipped_redis: whether Redis has the settings that QTask ships, or its defaults without persistence.
    """

    name: str
    title: str
    burst: int
    submit_rate: float
    in_flight: tuple[int, int]
    remark: str = ""
    payload_bytes: float = 0.0
    shipped_redis: bool = False

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def prepare(self) -> None:
        """Creates its environment, unless it exists."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of its packages."""

    @abstractmethod
    def start_accepting(self, place: Place) -> None:
        """Starts the processes that accept tasks; none if clients write to Redis themselves."""

    @abstractmethod
    def start_delivering(self, place: Place, slow: bool) -> None:
        """Starts schedulers and workers.

        Args:
            place: its Redis and receiver.
            slow: whether the receiver is slow, so that more deliveries at once are needed.
        """

    @abstractmethod
    def submit(self, place: Place, plan: Plan) -> Submitted:
        """Submits tasks from a separate process."""

    def delivering(self) -> list[int]:
        """Process ids of schedulers and workers, without their children."""
        return [process.pid for process in self._running]

    def accepting(self) -> list[int]:
        """Process ids of the processes that accept tasks."""
        return []

    def stop_delivering(self) -> None:
        """Ends schedulers and workers."""
        processes.stop(self._running)
        self._running = []

    def stop(self) -> None:
        """Ends everything."""
        self.stop_delivering()

    def log(self) -> Path:
        """The file with the output of its processes."""
        LOGS.mkdir(parents=True, exist_ok=True)
        return LOGS / f"{self.name}.log"

    def log_end(self) -> str:
        """The last lines of the log, for an error message."""
        return "\n".join(self.log().read_text(errors="replace").splitlines()[-15:]) if self.log().exists() else ""

    def _run_submission(self, command: list[str], environment: Mapping[str, str], plan: Plan) -> Submitted:
        done = subprocess.run(
            [*command, json.dumps(asdict(plan))],
            env={**os.environ, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SUBMIT_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: the submission failed:\n{done.stderr[-2000:]}")
        return Submitted(**json.loads(done.stdout.strip().splitlines()[-1]))


def variables(place: Place, concurrency: int) -> dict[str, str]:
    """The environment that a system's processes read, see `plan.py`."""
    return {
        "BENCH_REDIS": place.redis,
        "BENCH_RECEIVER": place.receiver,
        "BENCH_CONCURRENCY": str(concurrency),
        "PYTHONPATH": str(ROOT),
    }
