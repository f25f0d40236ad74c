"""Real QTask processes for tests, started as a user would and really killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from signal import SIGTERM, Signals

from tests.support.warm import WarmProcess, can_be_forked


class Process:
    """`qtask NAME` as a separate process, configured by the environment alone.

    Args:
        name: the command, such as `worker`.
        environment: settings, such as `QTASK_REDIS_URL`.
        log: file that gets its output.
    """

    def __init__(self, name: str, environment: Mapping[str, str], log: Path, *arguments: str) -> None:
        self.name = name
        self.log = log
        whole = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | WarmProcess
        if name != "up" and can_be_forked(whole):  # `up` and its children are identified by /proc/PID/environ
            log.touch()
            self._process = WarmProcess((name, *arguments), whole, Path.cwd(), (Path(os.devnull), log, log))
            return
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qtask", name, *arguments], env=whole, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not exited yet."""
        return self._process.poll() is None

    def signal(self, number: Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self, seconds: float = 30.0, number: Signals = SIGTERM) -> int:
        """Asks it to stop by a signal, waits, and returns its exit code; kills it after `seconds`."""
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} did not stop within {seconds} s:\n{self.log.read_text()[-3000:]}"
            ) from None
