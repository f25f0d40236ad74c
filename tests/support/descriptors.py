"""File descriptors for tests: how many are open, and none left to open."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


def open_descriptors() -> set[str]:
    """Numbers of the descriptors of this process that are open."""
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Within it, this process can open nothing: EMFILE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    highest = max(map(int, open_descriptors()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    try:
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
