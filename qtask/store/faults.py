"""Fault points, for tests that nothing is lost: `QTASK_FAULT=claim:after` kills a process right after its first claim.

Every script has two: `NAME:before`, when it is about to be sent, and `NAME:after`, when its reply has arrived and has
not been used. `NAME:after:2` is the second time. Without the variable they cost one comparison per batch.
"""

from __future__ import annotations

import os
import signal
from functools import cache

VARIABLE = "QTASK_FAULT"


class _Fault:
    """The fault point that the environment names, and how often it must still be reached."""

    def __init__(self, text: str) -> None:
        name, _, rest = text.partition(":")
        when, _, times = rest.partition(":")
        self.point = f"{name}:{when}"
        self.left = int(times or 1)


@cache
def _fault() -> _Fault:
    return _Fault(os.environ.get(VARIABLE, ""))


def reach(point: str) -> None:
    """Kills this process, as a crash would, if this is the fault point that the environment names."""
    fault = _fault()
    if fault.point == point:
        fault.left -= 1
        if not fault.left:
            os.kill(os.getpid(), signal.SIGKILL)
