"""Room for open files: a shell allows a process 1,024, a connection is one, and thousands are meant."""

from __future__ import annotations

import resource


def allow_all() -> None:
    """Raises the number of descriptors to what the system allows this process without asking."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
