"""The clock of Redis, as a worker knows it from replies that it gets anyway."""

from __future__ import annotations

from time import monotonic

SET_BACK_SECONDS = 0.1  # an offset that is smaller by more than this shows that the clock of Redis was set back


class RedisClock:
    """Learns the time from replies that hold it.

    Attributes:
        offset: seconds to add to `time.monotonic` to get Unix seconds by the clock of Redis; at first minus infinity.
    """

    def __init__(self) -> None:
        self.offset = float("-inf")

    def set(self, redis_now: float) -> None:
        """Takes the time, in Unix seconds, from a reply that has just arrived."""
        # The reply is a little older than now, so the true offset is at least this one, and the largest is the best.
        offset = redis_now - monotonic()
        if offset > self.offset or offset < self.offset - SET_BACK_SECONDS:
            self.offset = offset
