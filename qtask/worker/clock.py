"""Redis's clock, as a worker reads it without asking."""

from __future__ import annotations

from time import monotonic

SET_BACK_SECONDS = 0.1  # an offset that is smaller by more than this shows that Redis's clock was set back


class RedisClock:
    """Learns the time from replies that tell it.

    Attributes:
        offset: seconds to add to `time.monotonic` for Unix seconds by Redis's clock; minus infinity at first.
    """

    def __init__(self) -> None:
        self.offset = float("-inf")

    def set(self, redis_now: float) -> None:
        """Takes the time in a reply that has just come, in Unix seconds."""
        # The reply is a little older than now, so the true offset is never less than this one; the greatest is best.
        offset = redis_now - monotonic()
        if offset > self.offset or offset < self.offset - SET_BACK_SECONDS:
            self.offset = offset
