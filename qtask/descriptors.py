"""Room for open files: a shell allows a process 1,024, a connection is one, and thousands are meant."""

from __future__ import annotations

import resource
import sys


def allow_all() -> int:
    """Raises the number of descriptors to what the system allows this process without asking, and returns it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return sys.maxsize if most == resource.RLIM_INFINITY else most
