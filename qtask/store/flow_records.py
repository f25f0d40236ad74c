"""Flows as they are shown, and what people decide about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from qtask.model.errors import NotFound, Refused
from qtask.model.flow import MAX_NAME_CHARACTERS, Limits, check_key, check_limits
from qtask.model.flow_record import FlowRecord, FlowState, Source
from qtask.store import flows, keys
from qtask.store.pages import Page, text, texts
from qtask.store.queries import Steps, commands, query

PAGE = 500  # flows that are read at once
_WHY = {"breaker": "its deliveries keep failing", "asked": "its destination asked for a pause"}


class _Fields(NamedTuple):
    """The fields of a flow's hash that are read."""

    made: bytes | None
    parallel: bytes | None
    share: bytes | None
    rate: bytes | None
    per: bytes | None
    burst: bytes | None
    ordered: bytes | None
    paused: bytes | None
    rest: bytes | None
    since: bytes | None
    why: bytes | None
    trips: bytes | None
    rule: bytes | None
    parallel_by: bytes | None
    rate_by: bytes | None
    ordered_by: bytes | None


@query
def show_flow(name: str) -> Steps[FlowRecord]:
    """A flow with state. Raises `NotFound`."""
    (record,) = yield from _read([name])
    if record is None:
        raise NotFound(f"no flow {name!r} has limits, a pause, a rest or waiting tasks")
    return record


@query
def list_flows(cursor: str = "", limit: int = PAGE) -> Steps[Page[FlowRecord]]:
    """A page of the flows with state, in no order. One that comes or goes meanwhile may be on two pages or on none.

    Args:
        cursor: of the page before; empty for the first.
        limit: about as many flows.

    Raises `Refused` for a text that is no cursor.
    """
    if (cursor and not cursor.isascii()) or (cursor and not cursor.isdigit()):
        raise Refused("invalid_value", "cursor", "this is not a cursor; it comes with the page before")
    (reply,) = yield commands(("ZSCAN", keys.FLOWS, cursor or "0", "COUNT", limit))
    following, members = reply
    names = texts(name for name, _ in members)
    records = yield from _read(names)
    end = text(following) if not isinstance(following, int) else str(following)
    return Page([record for record in records if record is not None], "" if end == "0" else end)


@query
def set_flow(name: str, limits: Limits) -> Steps[FlowRecord]:
    """Sets limits of a flow, and returns it; those that are left out stay. Raises `Refused` for wrong limits."""
    check_key(name, most=MAX_NAME_CHARACTERS)
    check_limits(limits)
    yield flows.set_limits(name, limits)
    return (yield from show_flow.steps(name))


@query
def replace_flow(name: str, limits: Limits) -> Steps[FlowRecord]:
    """As `set_flow`, but removes the limits that are left out."""
    check_key(name, most=MAX_NAME_CHARACTERS)
    check_limits(limits)
    yield flows.replace_limits(name, limits)
    return (yield from show_flow.steps(name))


@query
def pause_flow(name: str, paused: bool = True) -> Steps[FlowRecord]:
    """Pauses or resumes a flow, and returns it. Raises `Refused` for a key that is wrong."""
    check_key(name, most=MAX_NAME_CHARACTERS)
    yield flows.pause(name, paused)
    return (yield from show_flow.steps(name))


@query
def reset_flow(name: str) -> Steps[FlowRecord]:
    """Ends a rest and closes the circuit breaker; limits and a pause stay. Raises `NotFound`."""
    yield from show_flow.steps(name)
    yield flows.reset(name)
    return (yield from show_flow.steps(name))


@query
def remove_flow(name: str) -> Steps[None]:
    """Removes the limits, the pause and the rest of a flow; tasks that wait are admitted. Raises `NotFound`."""
    yield from show_flow.steps(name)
    yield flows.remove(name)


def _read(names: Sequence[str]) -> Steps[list[FlowRecord | None]]:
    if not names:
        return []
    asked = [
        command
        for name in names
        for command in (
            ("HMGET", keys.FLOW_PREFIX + name, *_Fields._fields),
            ("ZCARD", keys.WAITING_PREFIX + name),
            ("ZCARD", keys.SLOTS_PREFIX + name),
            ("ZRANGE", keys.WAITING_PREFIX + name, 0, 0, "WITHSCORES"),
        )
    ]
    *replies, (seconds, microseconds) = yield commands(*asked, ("TIME",))
    now = int(seconds) + int(microseconds) / 1e6
    fields = [_Fields._make(row) for row in replies[::4]]
    defaults = yield from _defaults(fields)
    rows = zip(names, fields, replies[1::4], replies[2::4], replies[3::4], strict=True)
    return [_record(name, row, defaults, waiting, held, oldest, now) for name, row, waiting, held, oldest in rows]


def _defaults(rows: Sequence[_Fields]) -> Steps[dict[bytes, dict[str, Any]]]:
    """The limits of the flow rules that these flows have, by pattern."""
    rules = sorted({row.rule for row in rows if row.rule is not None})
    if not rules:
        return {}
    (found,) = yield commands(("HMGET", keys.FLOW_RULES, *rules))
    return {rule: msgspec.json.decode(limits) for rule, limits in zip(rules, found, strict=True) if limits is not None}


def _with_defaults(row: _Fields, limits: dict[str, Any]) -> tuple[_Fields, dict[str, Source]]:
    """The fields of a flow with the limits of its rule, as flow_of in flows.lua adds them, and the source of each."""
    more = {name: str(value).encode() for name, value in limits.items() if value != ""}
    origins: dict[str, Source] = {}
    for name, group in (("parallel", ["parallel"]), ("rate", ["rate", "per", "burst"]), ("ordered", ["ordered"])):
        if getattr(row, name) is not None:
            origins[name] = "set" if getattr(row, f"{name}_by") else "task"
        elif name in more:
            row = row._replace(**{one: more.get(one) for one in group})
            origins[name] = "configuration"
    return row, origins


def _record(
    name: str,
    row: _Fields,
    defaults: dict[bytes, dict[str, Any]],
    waiting: int,
    held: int,
    oldest: list[Any],
    now: float,
) -> FlowRecord | None:
    if row.made is None:
        return None
    row, origins = _with_defaults(row, defaults.get(row.rule or b"", {}))
    rest = float(row.rest or 0)
    resting = rest > now
    state: FlowState = "waiting" if waiting else "idle"
    if row.paused:
        state = "paused"
    elif resting:
        state = "broken" if row.trips else "resting"
    elif row.trips:
        state = "probing"
    return FlowRecord(
        key=name,
        state=state,
        parallel=None if row.parallel is None else _number(row.parallel),
        rate=None if row.rate is None else float(row.rate),
        per=None if row.rate is None else float(row.per or 1),
        burst=None if row.rate is None else int(row.burst or 1),
        ordered=row.ordered == b"1",
        share=None if row.share is None else int(row.share),
        waiting=waiting,
        in_flight=held,
        oldest_due=_first_score(oldest),
        until=rest if resting else None,
        since=float(row.since) if resting and row.since else None,
        why=_WHY.get(text(row.why), "") if resting else "",
        limits_from=origins,
        rule=text(row.rule or b"") if row.rule in defaults else "",
    )


def _number(value: bytes) -> int | str:
    return int(value) if value.isdigit() else value.decode()


def _first_score(reply: list[Any]) -> float | None:
    """Of ZRANGE … WITHSCORES, which redis-py returns as pairs or as a flat list, by the protocol."""
    if not reply:
        return None
    return float(reply[0][1] if isinstance(reply[0], tuple | list) else reply[1])
