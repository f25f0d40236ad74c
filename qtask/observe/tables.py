"""Output of the commands: tables for people, and JSON for programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from qtask.model.flow_record import FlowRecord
from qtask.model.outcome import Outcome
from qtask.model.queue_record import QueueRecord
from qtask.model.record import State, TaskRecord
from qtask.model.timing import format_duration, format_instant, format_second
from qtask.observe.stats import Spread, TypeSummary
from qtask.store.audit import Audit

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_FILE_WIDTH = 200  # characters; a terminal has its own width
_NARROW = 110  # a terminal with fewer columns has no column for the type
_ID_WIDTH = 12  # of an id that QTask makes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def to_json(value: object) -> str:
    """A value (records, summaries, lists and dicts of them) as one line of JSON."""
    return msgspec.json.encode(value).decode()


def print_tasks(records: Sequence[TaskRecord], counts: dict[State, int]) -> None:
    """Prints a page of tasks, and how many there are in each state."""
    if records:
        narrow = _console().width < _NARROW
        when = "due or retry" if any(record.retry_at is not None for record in records) else "due"
        columns = () if narrow else ("type",)
        table = _table("id", "state", when, *columns, "link", "title", "last outcome", whole=("state", when, *columns))
        table.columns[0].min_width = _ID_WIDTH
        for record in records:
            last = outcome_words(record.outcomes[-1]) if record.outcomes else ""
            link, title = plain(record.link[:60]), plain(record.title[:40])
            if not narrow:
                where = [record.type, link]
            elif record.type == "http":  # its link shows the type
                where = [link]
            else:
                where = [f"{record.type} {link}"]
            state = record.state if record.retry_at is None else "retrying"
            instant = format_second(record.due if record.retry_at is None else record.retry_at)
            table.add_row(record.id, state, instant, *where, title, last)
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
        ("next attempt", "" if record.retry_at is None else format_instant(record.retry_at)),
        ("queue", record.queue),
        ("type", record.type),
        ("link", record.link),
        ("waits for", "" if record.waits_for is None else record.waits_for.words),
        ("deliveries", str(record.attempts)),
        ("dict", msgspec.json.encode(record.task).decode()),
    ):
        if value or name not in ("next attempt", "waits for"):
            table.add_row(name, plain(value))
    _print(table)
    if record.outcomes:
        whole = ("delivery", "started", "lateness", "duration")
        outcomes = _table(*whole, "outcome", "answer", whole=whole)
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


def print_flows(records: Sequence[FlowRecord], total: int) -> None:
    """Prints flows: how many tasks wait and for how long, why, and the limits where the terminal has room for them.

    Args:
        records: the flows to show.
        total: how many there are.
    """
    if not records:
        _print("no flow has limits, a pause, a rest or waiting tasks")
        return
    narrow = _console().width < _NARROW
    whole = ("state", "waiting", "oldest", "until")
    table = _table("flow", *whole, *(() if narrow else ("in flight", "rate used", "limits")), whole=whole)
    for record in records:
        oldest = "" if record.oldest_seconds is None else format_duration(record.oldest_seconds)
        until = "" if record.until is None else format_second(record.until)
        more = () if narrow else (str(record.in_flight), _rate_used(record), ", ".join(_limits(record)))
        table.add_row(plain(record.key), record.state_words, str(record.waiting), oldest, until, *more)
    _print(table)
    if total > len(records):
        _print(f"{len(records)} of {total} flows, those with the most waiting tasks")


def print_flow(record: FlowRecord) -> None:
    """Prints one flow."""
    table = _table("", "")
    table.show_header = False
    oldest = record.oldest_due
    rows = (
        ("flow", plain(record.key)),
        ("state", record.state_words),
        ("why", record.why),
        ("since", "" if record.since is None else format_instant(record.since)),
        ("next probe" if record.breaker == "open" else "rests until", _instant(record.until)),
        ("circuit breaker", record.breaker),
        ("limits", ", ".join(_limits(record)) or "none"),
        ("waiting", str(record.waiting)),
        ("oldest", "" if oldest is None else f"{format_duration(record.oldest_seconds)}, due {format_instant(oldest)}"),
        ("queued", str(record.queued)),
        ("in flight", str(record.in_flight)),
        ("rate used", _rate_used(record)),
        ("next by rate", _instant(record.next_token)),
    )
    for name, value in rows:
        if value:
            table.add_row(name, value)
    _print(table)


def _instant(seconds: float | None) -> str:
    return "" if seconds is None else format_instant(seconds)


def _rate_used(record: FlowRecord) -> str:
    """How much of its rate a flow has used in the last span; empty without a rate."""
    return "" if record.rate is None else f"{record.begun} of {record.rate:g} in {record.per:g} s"


def _limits(record: FlowRecord) -> list[str]:
    """The limits of a flow, each in a few words, with where it comes from."""
    origins = {name: f" ({origin})" for name, origin in record.limits_from.items()}
    words = [f"parallel {record.parallel}{origins.get('parallel', '')}"] if record.parallel is not None else []
    if record.rate is not None:
        words.append(f"rate {record.rate:g} in {record.per:g} s, burst {record.burst}{origins.get('rate', '')}")
    if record.ordered:
        words.append(f"ordered{origins.get('ordered', '')}")
    if record.share is not None and record.parallel is None:
        words.append(f"slow: at most {record.share} in flight")
    if record.adapted is not None:
        words.append(f"now {record.adapted}" + (f": {record.adapted_why}" if record.adapted_why else ""))
    if record.timeout is not None:
        words.append(
            f"timeout {format_duration(record.timeout)} (deliveries take {format_duration(record.duration_mean or 0)}"
            f" ± {format_duration(record.duration_deviation or 0)})"
        )
    return words


def print_queues(records: Sequence[QueueRecord]) -> None:
    """Prints queues: how many tasks each has, and whether it is paused."""
    if not records:
        _print("no task was accepted yet, so there are no queues")
        return
    table = _table("queue", "", "queued", "in flight", "waiting in flows", "dead", "workers", whole=("queue",))
    for record in records:
        counts = (record.queued, record.in_flight, record.waiting, record.dead, record.workers)
        table.add_row(plain(record.name), "paused" if record.paused else "", *map(str, counts))
    _print(table)


def print_stats(types: Sequence[TypeSummary], counts: dict[State, int]) -> None:
    """Prints the spread of lateness and duration, and the outcomes, of each type."""
    if not types:
        _print("no deliveries yet")
    else:
        spread = ("p50", "p95", "p99", "max")
        table = _table("type", "", *spread, "of the newest", "outcomes since ever", whole=spread)
        for one in types:
            totals = ", ".join(f"{count} {status}" for status, count in sorted(one.totals.items()))
            table.add_row(one.type, "lateness", *_spread(one.lateness), str(one.sampled), totals)
            table.add_row("", "duration", *_spread(one.duration))
        _print(table)
    _print_counts(counts)


def print_audit(audit: Audit) -> None:
    """Prints the equation that an audit checks, and the faults."""
    table = _table("", "")
    table.show_header = False
    table.columns[1].justify = "right"
    rows = [
        ("accepted", audit.accepted, ""),
        ("= waiting in the schedule", audit.scheduled, ""),
        ("+ waiting in flows", audit.in_flows, ""),
        ("+ queued", audit.queued, ""),
        ("+ in flight", audit.started, ""),
        ("+ delivered", audit.delivered, ""),
        ("+ dead", audit.dead, ""),
        ("+ cancelled", audit.cancelled, ""),
        (
            "+ removed",
            audit.removed,
            f"{audit.dropped} of them dropped because of dead_retention_count" if audit.dropped else "",
        ),
    ]
    if audit.deleted:
        rows.append(("+ deleted by other programs", audit.deleted, "their ids were found without a job"))
    if audit.written_off:
        rows.append(("+ written off", audit.written_off, "by --write-off"))
    if audit.missing > 0:
        rows.append(("+ MISSING", audit.missing, "deleted by another program (rq empty, rq-dashboard), or lost"))
    elif audit.missing < 0:
        rows.append(("- TOO MANY", -audit.missing, "more tasks than were accepted"))
    table.add_column("")
    for name, count, about in rows:
        table.add_row(name, str(count), about)
    _print(table)
    _print(f"{audit.duplicates} duplicates were not accepted again, {audit.expired} tasks expired")
    if audit.foreign:
        _print(f"{audit.foreign} jobs of other programs are in the same places, and not counted")
    for fault, ids in audit.faults.items():
        _print(f"{fault}: {', '.join(plain(one) for one in ids)}")
    _print("balances" if audit.balances else "DOES NOT BALANCE")


def outcome_words(outcome: Outcome) -> str:
    """An outcome in a few words: `delivered 200`, `failed: timeout`."""
    if outcome.status == "delivered":
        return f"delivered {outcome.code}" if outcome.code else "delivered"
    return f"failed: {outcome.code or outcome.error}"


def outcome_answer(outcome: Outcome) -> str:
    """The receiver's answer and what was wrong with it, or why the delivery failed."""
    if outcome.status == "delivered" and outcome.answer and outcome.message:
        return f"{outcome.answer} ({outcome.message})"
    return outcome.answer or outcome.message


def plain(text: str) -> str:
    """Foreign text on one line: control characters, which could control a terminal, are shown as escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _spread(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 4
    return [format_duration(value) for value in (spread.p50, spread.p95, spread.p99, spread.largest)]


def _table(*columns: str, whole: Collection[str] = ()) -> Table:
    """A table whose cells are wrapped if there is no room, except in the columns in `whole`."""
    from rich.table import Table  # not installed with the client alone

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    return table


def _print_counts(counts: dict[State, int]) -> None:
    _print(", ".join(f"{count} {state}" for state, count in counts.items()))


def _print(what: Table | str) -> None:
    _console().print(what)


def _console() -> Console:
    from rich.console import Console

    console = Console(emoji=False, markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console
