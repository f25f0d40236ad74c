"""The receiver of all deliveries: builds and runs `receiver.c`, and reads what has arrived."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qtask.process import children

_SOURCE = Path(__file__).with_name("receiver.c")
_BINARY = Path(__file__).parent / ".build" / "receiver"
_LOOK_SECONDS = 0.05
_ARRIVAL = np.dtype([("due", "f8"), ("arrival", "f8"), ("number", "u8")])


@dataclass(frozen=True)
class Arrivals:
    """The arrivals since the reset, in order.

    Attributes:
        due, arrival: Unix seconds.
        number: number of the task.
    """

    due: npt.NDArray[np.float64]
    arrival: npt.NDArray[np.float64]
    number: npt.NDArray[np.uint64]

    @property
    def lateness(self) -> npt.NDArray[np.float64]:
        """Arrival minus due, in seconds; below zero is early."""
        return self.arrival - self.due

    def of(self, first: int, count: int) -> Arrivals:
        """The arrivals of `count` tasks from number `first` on."""
        ours = (self.number >= first) & (self.number < first + count)
        return Arrivals(self.due[ours], self.arrival[ours], self.number[ours])

    @property
    def distinct(self) -> int:
        """How many different tasks arrived."""
        return len(np.unique(self.number))

    @property
    def rate(self) -> float:
        """Deliveries per second, from the first arrival to the last."""
        if len(self.arrival) < 2:
            return 0.0
        return float((len(self.arrival) - 1) / max(1e-9, self.arrival[-1] - self.arrival[0]))

    def steady_rate(self, warm: float, period: float) -> float:
        """Deliveries per second without beginning and end, over whole periods, since a slow receiver causes waves.

        Args:
            warm: seconds to leave out at both ends.
            period: the receiver's delay in seconds.
        """
        begin = self.arrival[0] + warm
        periods = int((self.arrival[-1] - warm - begin) / period)
        if periods < 1:
            return float(len(self.arrival) / (self.arrival[-1] - self.arrival[0] + period))
        end = begin + periods * period
        return float(np.count_nonzero((self.arrival >= begin) & (self.arrival < end)) / (end - begin))


class Receiver:
    """The receiver as a separate process; a context manager.

    Attributes:
        url: its address, without a slash at the end.
    """

    def __enter__(self) -> Receiver:
        self._child = children.start([str(build())], output=subprocess.PIPE)
        assert self._child.stdout is not None
        self.port = int(self._child.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        children.stop(self._child, 5.0)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    def reset(self, delay: float = 0.0) -> None:
        """Forgets all arrivals; from now on each answer is sent `delay` seconds after its request."""
        self._get(f"/_reset?delay={delay * 1000:g}")

    def stats(self) -> dict[str, Any]:
        """Counts: `count` arrivals, `bad` requests, `opened` connections, `most_waiting` answers at once."""
        found: dict[str, Any] = json.loads(self._get("/_stats"))
        return found

    def arrivals(self) -> Arrivals:
        """Everything that arrived since the reset."""
        rows = np.frombuffer(self._get("/_arrivals"), dtype=_ARRIVAL)
        return Arrivals(rows["due"], rows["arrival"], rows["number"])

    def wait(self, count: int, until: float) -> bool:
        """Waits until `count` tasks have arrived; returns False if they have not by `until` (Unix seconds)."""
        while self.stats()["count"] < count:
            if time.time() > until:
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def _get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        finally:
            connection.close()


def build() -> Path:
    """Compiles the receiver if its source is newer than the program; returns the path of the program."""
    if not _BINARY.exists() or _BINARY.stat().st_mtime < _SOURCE.stat().st_mtime:
        _BINARY.parent.mkdir(exist_ok=True)
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(_BINARY), str(_SOURCE)], check=True)
    return _BINARY
