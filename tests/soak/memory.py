"""Memory of processes over time, and whether it grows. Pure except for the reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression, median

LIMIT_BYTES_A_TASK = 4.0  # a leak of an object for each task, however small, is above it
LEAST_GROWTH_BYTES = 1_572_864  # allocators take memory in steps; less than this does not count


@dataclass(frozen=True, slots=True)
class Reading:
    """The size of something at one instant: `at` in seconds since the start, `size` in bytes (or pieces)."""

    at: float
    size: int


@dataclass(slots=True)
class Series:
    """Readings of one thing.

    Attributes:
        name: what was read.
        readings: in order.
    """

    name: str
    readings: list[Reading] = field(default_factory=list)

    def since(self, at: float) -> Series:
        """The readings from an instant on."""
        return Series(self.name, [reading for reading in self.readings if reading.at >= at])

    @property
    def slope(self) -> float:
        """Growth in bytes a second, by linear regression."""
        return linear_regression([reading.at for reading in self.readings], [one.size for one in self.readings]).slope

    @property
    def first(self) -> float:
        """The size in the first tenth of the readings."""
        return _middle(self.readings[: max(1, len(self.readings) // 10)])

    @property
    def last(self) -> float:
        """The size in the last tenth."""
        return _middle(self.readings[-max(1, len(self.readings) // 10) :])

    def grows(self, tasks_a_second: float) -> bool:
        """Whether it grows: the slope is above the limit, and the end is higher than the beginning."""
        risen = self.slope * (self.readings[-1].at - self.readings[0].at)
        growth = min(risen, self.last - self.first)
        return self.slope > LIMIT_BYTES_A_TASK * tasks_a_second and growth > LEAST_GROWTH_BYTES

    def grows_in_pieces(self, most: float) -> bool:
        """The same for a number of pieces: whether the end exceeds the beginning by more than this."""
        return self.last - self.first > most


def resident_bytes(pid: int) -> int:
    """The memory of a process (RSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def open_files(pid: int) -> int:
    """The number of open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _middle(readings: Sequence[Reading]) -> float:
    return median(reading.size for reading in readings)
