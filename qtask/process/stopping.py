"""The signals that ask a process to stop. All processes of QTask handle them in the same way."""

from __future__ import annotations

import signal
from collections.abc import Callable

# With a second one of these, the process does not wait for what is in flight.
INSISTING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# These ask a process to stop as well, but never at once, however often they are sent: a closing terminal sends SIGHUP
# twice (from the kernel and from the shell), and systemd sends SIGTERM followed by SIGHUP. By default, SIGUSR1 and
# SIGUSR2 kill a process, so it is better to stop in good order if one is sent by mistake.
ASKING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# With these a supervisor stops its children. If they get a signal of their own at the same time (systemd signals every
# process of a service), the supervisor's must not count as the second one.
FROM_SUPERVISOR = signal.SIGUSR1
FROM_SUPERVISOR_AT_ONCE = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """What signals have asked a process to do.

    Attributes:
        asked: whether it was asked to stop.
        insisted: whether it was asked to stop at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.insisted = False
        self._insisting = 0

    def listen(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Installs the handlers; `on_change` is called in the signal handler when `asked` or `insisted` changes."""

        def on_signal(number: int, frame: object) -> None:
            if self.note(number):
                on_change()

        for number in signals_to_take():
            signal.signal(number, on_signal)

    def note(self, number: int) -> bool:
        """Counts a signal; returns whether `asked` or `insisted` changed."""
        before = (self.asked, self.insisted)
        self._insisting += number in INSISTING
        self.asked = True
        self.insisted = self._insisting > 1
        return (self.asked, self.insisted) != before


def signals_to_take() -> list[signal.Signals]:
    """The signals above, without SIGHUP if this process was started with SIGHUP ignored, as `nohup` does."""
    taken = (*INSISTING, *ASKING)
    return [one for one in taken if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]
