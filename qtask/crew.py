"""Processes of QTask that are kept running together: what dies is started again, what is asked to end ends as one."""

from __future__ import annotations

import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from qtask import children

STOP_SECONDS = 12.0  # longer than the grace that gateway and worker give themselves
STOP_AT_ONCE_SECONDS = 3.0  # for a worker that is asked a second time: it puts back what is in flight
RESTART_PAUSE_SECONDS = (0.2, 10.0)  # first and longest pause before a process that died is started again
STEADY_SECONDS = 30.0  # a process that has run so long starts with the first pause again
LOOK_SECONDS = 0.1

logger = logging.getLogger("qtask.crew")


class Member:
    """One process, `qtask NAME`.

    Args:
        name: the command.
        environment: its settings.
    """

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self.name = name
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self._pause = RESTART_PAUSE_SECONDS[0]
        self._started = 0.0
        self._start_at = 0.0

    def start(self) -> None:
        """Starts it."""
        self._child = children.start([sys.executable, "-m", "qtask", self.name], self._environment)
        self._started = time.monotonic()

    def look(self) -> None:
        """Starts it again, after a pause, when it has died."""
        now = time.monotonic()
        if self._child is not None and self._child.poll() is not None:
            if now - self._started > STEADY_SECONDS:
                self._pause = RESTART_PAUSE_SECONDS[0]
            logger.error(
                "process_died",
                extra={"child": self.name, "exit_code": self._child.returncode, "restart_in_s": self._pause},
            )
            self._child = None
            self._start_at = now + self._pause
            self._pause = min(self._pause * 2, RESTART_PAUSE_SECONDS[1])
        elif self._child is None and now >= self._start_at:
            self.start()

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def ask_to_end(self) -> None:
        """Sends it SIGTERM."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def end(self) -> None:
        """Makes sure that it has ended."""
        if self._child is not None:
            if self._child.poll() is None:
                logger.warning("process_killed", extra={"child": self.name})
                self._child.kill()
            self._child.wait()
            self._child = None


class Crew:
    """Several processes.

    Attributes:
        members: the processes.
        signals: how often it was asked to end.
    """

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self.members = list(members)
        self.signals = 0

    def listen(self) -> None:
        """Takes SIGTERM and SIGINT as the wish to end; a second one does not wait."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def start(self) -> None:
        """Starts all of them."""
        for member in self.members:
            member.start()

    def keep(self, look_too: Callable[[], None] = lambda: None) -> None:
        """Keeps them running until asked to end; calls `look_too` each time before it looks at them."""
        while not self.signals:
            time.sleep(LOOK_SECONDS)
            look_too()
            for member in self.members:
                member.look()

    def stop(self) -> None:
        """Asks all to end at the same time, and waits; a second signal is passed on. What does not end is killed."""
        self._ask_to_end(STOP_SECONDS, most_signals=1)
        if self.signals > 1:
            self._ask_to_end(STOP_AT_ONCE_SECONDS)
        for member in self.members:
            member.end()
        self.members = []

    def _ask_to_end(self, seconds: float, most_signals: float = math.inf) -> None:
        for member in self.members:
            member.ask_to_end()
        deadline = time.monotonic() + seconds
        while any(member.running for member in self.members) and time.monotonic() < deadline:
            if self.signals > most_signals:
                return
            time.sleep(0.02)

    def _on_signal(self, number: int, frame: object) -> None:
        self.signals += 1
