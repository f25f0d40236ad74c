"""Fault points, for tests that nothing is lost: `QTASK_FAULT=claim:after` kills a process right after its first claim.

Every script has two: `NAME:before`, when it is about to be sent, and `NAME:after`, when its reply has come and nothing
has been done about it. Without the variable they cost a comparison a batch.
"""

from __future__ import annotations

import os
import signal
from functools import cache

VARIABLE = "QTASK_FAULT"


@cache
def _point() -> str:
    return os.environ.get(VARIABLE, "")


def reach(point: str) -> None:
    """Kills this process, as a crash would, when this is the point that the environment names."""
    if _point() == point:
        os.kill(os.getpid(), signal.SIGKILL)
