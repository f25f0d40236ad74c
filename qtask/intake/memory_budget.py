"""The memory of one gateway for all its clients: unfinished texts and bodies, and answers not read. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class MemoryBudget:
    """Counts bytes in use against a limit.

    Args:
        limit: bytes that may be in use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._total = 0

    @property
    def exceeded(self) -> bool:
        """Whether more bytes are in use than the limit allows."""
        return self._total > self.limit

    def change(self, by: int) -> None:
        """Counts `by` more bytes as in use; fewer when it is negative."""
        self._total += by

    @contextmanager
    def counting(self) -> Iterator[Callable[[int], bool]]:
        """Yields a function that counts more bytes as in use, and returns whether the limit still holds.

        When the block ends, everything that was counted in it is released.
        """
        counted = 0

        def count(size: int) -> bool:
            nonlocal counted
            counted += size
            self.change(size)
            return not self.exceeded

        try:
            yield count
        finally:
            self.change(-counted)
