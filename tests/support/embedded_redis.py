"""A running embedded Redis for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtask.run.embedded import EmbeddedRedis


@contextmanager
def running(folder: Path) -> Iterator[EmbeddedRedis]:
    """An embedded Redis on a folder, stopped at the end."""
    embedded = EmbeddedRedis(folder)
    embedded.start()
    try:
        yield embedded
    finally:
        embedded.stop()
