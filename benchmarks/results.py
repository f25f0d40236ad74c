"""The results of a run. They are written to a file after each measure, so that an interrupted run can continue."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measures import Values

FOLDER = Path(__file__).parent / ".results"


@dataclass
class Results:
    """The results of one run.

    Attributes:
        form: `full`, `quick` or `check`.
        path: file of the results.
        machine: the machine it ran on.
        versions: packages and their versions, by system.
        titles, remarks: titles and remarks of the systems, by name.
        rows: the measures: system, measure, repetition, values, and the instant in Unix seconds.
        errors: why something could not be measured, by system and measure.
    """

    form: str
    path: Path
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, system: str, measure: str, repetition: int, values: Values) -> None:
        """Stores the values of one measure, replacing earlier ones."""
        self.rows = [row for row in self.rows if not self._is(row, system, measure, repetition)]
        self.rows.append(
            {"system": system, "measure": measure, "repetition": repetition, "values": values, "at": time.time()}
        )
        self.save()

    def has(self, system: str, measure: str, repetition: int) -> bool:
        """Whether it was measured."""
        return any(self._is(row, system, measure, repetition) for row in self.rows)

    def all(self, system: str, measure: str, value: str) -> list[float]:
        """A value from every repetition."""
        found = (row["values"] for row in self.rows if row["system"] == system and row["measure"] == measure)
        return [values[value] for values in found if value in values]

    def median(self, system: str, measure: str, value: str) -> float | None:
        """The median of all repetitions; None if it was not measured."""
        found = self.all(system, measure, value)
        return statistics.median(found) if found else None

    def save(self) -> None:
        """Writes the file, atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: value for key, value in asdict(self).items() if key != "path"}, indent=1)
        unfinished = self.path.with_suffix(".tmp")
        unfinished.write_text(text)
        unfinished.replace(self.path)

    @staticmethod
    def _is(row: dict[str, Any], system: str, measure: str, repetition: int) -> bool:
        return (row["system"], row["measure"], row["repetition"]) == (system, measure, repetition)


def load(form: str) -> Results:
    """The results of the last run of this form; empty if there was none."""
    path = FOLDER / f"{form}.json"
    if not path.exists():
        return Results(form, path)
    return Results(path=path, **json.loads(path.read_text()))
