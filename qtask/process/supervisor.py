"""Supervises processes of QTask: restarts those that die, with backoff, and stops all of them together."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from qtask.process import children
from qtask.process.stopping import FROM_SUPERVISOR, FROM_SUPERVISOR_AT_ONCE, StopSignals

STOP_SECONDS = 12.0  # longer than the time in which gateway and worker finish their work
STOP_AT_ONCE_SECONDS = 3.0  # for a worker that is asked a second time, to give back what is in flight
LOOK_SECONDS = 0.1

logger = logging.getLogger("qtask.supervisor")


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
        self._backoff = children.Backoff()
        self._started = 0.0
        self._start_at = 0.0

    def start(self) -> None:
        """Starts the process."""
        self._child = children.start([sys.executable, "-m", "qtask", self.name], self._environment)
        self._started = time.monotonic()

    def look(self) -> None:
        """Starts the process again, after a pause, if it has died."""
        now = time.monotonic()
        if self._child is not None and self._child.poll() is not None:
            pause = self._backoff.pause(now - self._started)
            code = self._child.returncode
            logger.error(
                "process_died",
                extra={"child": self.name, "exit_code": code, "ended": children.ending(code), "restart_in_s": pause},
            )
            self._child = None
            self._start_at = now + pause
        elif self._child is None and now >= self._start_at:
            self.start()

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def ask_to_end(self, at_once: bool = False) -> None:
        """Asks the process to end; with `at_once` it does not wait for what it has in flight."""
        if self._child is not None and self._child.poll() is None:
            for number in FROM_SUPERVISOR_AT_ONCE if at_once else (FROM_SUPERVISOR,):
                self._child.send_signal(number)

    def end(self) -> None:
        """Kills the process if it still runs."""
        if self._child is not None:
            if self._child.poll() is None:
                logger.warning("process_killed", extra={"child": self.name})
                self._child.kill()
            self._child.wait()
            self._child = None


class Supervisor:
    """Keeps several processes running.

    Attributes:
        members: the processes.
        signals: whether this process was asked to end.
    """

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self.members = list(members)
        self.signals = StopSignals()

    def listen(self) -> None:
        """Installs handlers of the signals that ask a process to stop."""
        self.signals.listen()

    def start(self) -> None:
        """Starts all processes."""
        for member in self.members:
            member.start()

    def keep(self, look_too: Callable[[], None] = lambda: None) -> None:
        """Keeps the processes running until asked to stop; calls `look_too` before each check."""
        while not self.signals.asked:
            time.sleep(LOOK_SECONDS)
            look_too()
            for member in self.members:
                member.look()

    def stop(self) -> None:
        """Asks all processes to end at once, waits (for less time after a second signal), and kills the rest."""
        self._ask_to_end(STOP_SECONDS, at_once=False)
        if self.signals.insisted:
            self._ask_to_end(STOP_AT_ONCE_SECONDS, at_once=True)
        for member in self.members:
            member.end()
        self.members = []

    def _ask_to_end(self, seconds: float, at_once: bool) -> None:
        for member in self.members:
            member.ask_to_end(at_once)
        deadline = time.monotonic() + seconds
        while any(member.running for member in self.members) and time.monotonic() < deadline:
            if self.signals.insisted and not at_once:
                return
            time.sleep(0.02)
