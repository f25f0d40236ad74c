"""What one gateway holds for all its clients together: unfinished texts, and answers that are not taken. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Held:
    """Counts bytes against a bound.

    Args:
        most: the bound.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._total = 0

    @property
    def too_much(self) -> bool:
        """Whether the bound is passed, so that something must go."""
        return self._total > self.most

    def change(self, by: int) -> None:
        """Counts what has come, or (negative) gone."""
        self._total += by

    @contextmanager
    def counting(self) -> Iterator[Callable[[int], bool]]:
        """Counts what comes until the block ends, by a function that says whether there was room for it."""
        mine = 0

        def count(size: int) -> bool:
            nonlocal mine
            mine += size
            self.change(size)
            return not self.too_much

        try:
            yield count
        finally:
            self.change(-mine)
