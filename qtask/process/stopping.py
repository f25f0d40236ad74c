"""The signals that ask a process to stop; every process of QTask takes them in the same way."""

from __future__ import annotations

import signal
from collections.abc import Callable

# A second one of these does not wait for what is in flight.
INSISTING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# These ask to stop as well and never hurry, however often they come: a terminal that closes sends SIGHUP twice (the
# kernel does, and the shell), and systemd sends SIGTERM followed by SIGHUP. The default of SIGUSR1 and SIGUSR2 is to
# kill a process, so an orderly stop is the better answer to one that came by mistake.
ASKING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# By these a supervisor stops its children. When the children got a signal of their own at the same time, as from
# systemd, which signals every process of a service, the supervisor's must not count as the second one.
FROM_SUPERVISOR = signal.SIGUSR1
FROM_SUPERVISOR_AT_ONCE = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """What a process was asked to do by signals.

    Attributes:
        asked: whether it was asked to stop.
        insisted: whether it was asked to stop at once.
    """

    def __init__(self) -> None:
        self.asked = False
        self.insisted = False
        self._insisting = 0

    def listen(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Takes the signals from now on; `on_change` runs in the signal handler when `asked` or `insisted` changed."""

        def on_signal(number: int, frame: object) -> None:
            if self.note(number):
                on_change()

        for number in signals_to_take():
            signal.signal(number, on_signal)

    def note(self, number: int) -> bool:
        """Counts a signal; returns whether that changed `asked` or `insisted`."""
        before = (self.asked, self.insisted)
        self._insisting += number in INSISTING
        self.asked = True
        self.insisted = self._insisting > 1
        return (self.asked, self.insisted) != before


def signals_to_take() -> list[signal.Signals]:
    """The signals above, without SIGHUP when this process was started to ignore it, as by `nohup`."""
    taken = (*INSISTING, *ASKING)
    return [one for one in taken if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]
