"""Tables for people, and JSON for programs, of what the commands have to say."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from qtask.outcome import Outcome
from qtask.record import State, TaskRecord
from qtask.stats import KindSummary, Spread
from qtask.timing import format_duration, format_instant

_FILE_WIDTH = 200  # characters; a terminal has a width of its own
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def to_json(value: object) -> str:
    """A value (records, summaries, lists and dicts of them) as one line of JSON."""
    return msgspec.json.encode(value).decode()


def print_tasks(records: Sequence[TaskRecord], counts: dict[State, int]) -> None:
    """Prints a page of tasks, and how many there are in each state."""
    if records:
        table = _table("id", "state", "due", "type", "link", "title", "last outcome")
        for record in records:
            last = outcome_words(record.outcomes[-1]) if record.outcomes else ""
            link, title = plain(record.link[:60]), plain(record.title[:40])
            table.add_row(record.id, record.state, format_instant(record.due), record.kind, link, title, last)
        _print(table)
    _print_counts(counts)


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
        ("dict", msgspec.json.encode(record.task).decode()),
    ):
        table.add_row(name, plain(value))
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
                plain(outcome_answer(outcome)[:200]),
            )
        _print(outcomes)


def print_stats(kinds: Sequence[KindSummary], counts: dict[State, int]) -> None:
    """Prints the spread of lateness and duration, and the outcomes, of each kind."""
    if not kinds:
        _print("no deliveries yet")
    else:
        table = _table("type", "", "p50", "p95", "p99", "max", "of the newest", "outcomes since ever")
        for kind in kinds:
            totals = ", ".join(f"{count} {status}" for status, count in sorted(kind.totals.items()))
            table.add_row(kind.kind, "lateness", *_spread(kind.lateness), str(kind.sampled), totals)
            table.add_row("", "duration", *_spread(kind.duration))
        _print(table)
    _print_counts(counts)


def outcome_words(outcome: Outcome) -> str:
    """An outcome in a few words: `delivered 200`, `failed: timeout`."""
    if outcome.status == "delivered":
        return f"delivered {outcome.code}" if outcome.code else "delivered"
    return f"failed: {outcome.code or outcome.error}"


def outcome_answer(outcome: Outcome) -> str:
    """What the receiver answered, or else why the delivery failed."""
    return outcome.answer or outcome.message


def plain(text: str) -> str:
    """Text from elsewhere on one line: control characters, which could command a terminal, are shown as escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 4
    return [format_duration(value) for value in (spread.p50, spread.p95, spread.p99, spread.largest)]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_counts(counts: dict[State, int]) -> None:
    _print(", ".join(f"{count} {state}" for state, count in counts.items()))


def _print(what: Table | str) -> None:
    console = Console(emoji=False, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(what)
