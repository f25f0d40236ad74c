"""Tables for people, and JSON for programs, of what the commands have to say."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from qtask.outcome import Outcome
from qtask.stats import KindSummary, Spread
from qtask.store.tasks import State, TaskRecord
from qtask.timing import format_duration, format_instant


def to_json(value: object) -> str:
    """A value (records, summaries, lists and dicts of them) as one line of JSON."""
    return msgspec.json.encode(value).decode()


def print_tasks(records: Sequence[TaskRecord], counts: dict[State, int]) -> None:
    """Prints a page of tasks, and how many there are in each state."""
    if records:
        table = _table("id", "state", "due", "type", "link", "title", "last outcome")
        for record in records:
            last = outcome_words(record.outcomes[-1]) if record.outcomes else ""
            due = format_instant(record.due)
            table.add_row(record.id, record.state, due, record.kind, record.link[:60], record.title[:40], last)
        _print(table)
    Console().print(", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False)


def print_task(record: TaskRecord) -> None:
    """Prints one task with its deliveries."""
    table = _table("", "")
    table.show_header = False
    accepted = format_instant(record.accepted) if record.accepted is not None else "?"
    for name, value in (
        ("id", record.id),
        ("title", record.title),
        ("state", record.state),
        ("accepted", accepted),
        ("due", format_instant(record.due)),
        ("type", record.kind),
        ("link", record.link),
        ("deliveries", str(record.attempts)),
        ("dict", bytes(record.task).decode()),
    ):
        table.add_row(name, value)
    _print(table)
    if record.outcomes:
        outcomes = _table("delivery", "started", "lateness", "duration", "outcome", "answer")
        for outcome in record.outcomes:
            outcomes.add_row(
                str(outcome.attempt),
                format_instant(outcome.started),
                format_duration(outcome.lateness),
                format_duration(outcome.duration),
                outcome_words(outcome),
                outcome.answer[:200],
            )
        _print(outcomes)


def print_stats(kinds: Sequence[KindSummary], counts: dict[State, int]) -> None:
    """Prints the spread of lateness and duration, and the outcomes, of each kind."""
    if not kinds:
        Console().print("no deliveries yet")
    else:
        table = _table("type", "outcomes", "", "p50", "p95", "p99", "max")
        for kind in kinds:
            totals = ", ".join(f"{count} {status}" for status, count in sorted(kind.totals.items()))
            table.add_row(kind.kind, totals, "lateness", *_spread(kind.lateness))
            table.add_row("", f"the newest {kind.sampled} count", "duration", *_spread(kind.duration))
        _print(table)
    Console().print(", ".join(f"{count} {state}" for state, count in counts.items()), highlight=False)


def outcome_words(outcome: Outcome) -> str:
    """An outcome in a few words: `delivered 200`, `failed: timeout`."""
    if outcome.status == "delivered":
        return f"delivered {outcome.code}" if outcome.code else "delivered"
    return f"failed: {outcome.code or outcome.error}"


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 4
    return [format_duration(value) for value in (spread.p50, spread.p95, spread.p99, spread.largest)]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table, highlight=False, markup=False)
