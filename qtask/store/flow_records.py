"""Flows as they are shown, and what people decide about them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from qtask.model.errors import NotFound, Refused
from qtask.model.flow import MAX_NAME_CHARACTERS, Changes, Limits, changed, check_key, check_limits
from qtask.model.flow_record import Breaker, FlowRecord, FlowState, Source
from qtask.store import flows, keys
from qtask.store.pages import Page, text, texts
from qtask.store.queries import Steps, commands, query

PAGE = 500  # flows that are read at once
KEPT = 10_000  # flows beyond those wanted, among which the busiest are sought from time to time
_WHY = {"breaker": "its deliveries keep failing", "asked": "its destination asked for a pause"}


class Adapting(msgspec.Struct):
    """The field `adapting` of a flow, as far as it is shown; see adapt_parallel.lua."""

    why: str = ""
    changed: float | None = None


class Timing(msgspec.Struct):
    """What is known of the durations of a flow, as far as it is shown; see adapt_timeout.lua."""

    seconds: float
    mean: float
    deviation: float


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
    tat: bytes | None
    window: bytes | None
    begun: bytes | None
    begun_before: bytes | None
    adapting: bytes | None
    rule: bytes | None
    parallel_by: bytes | None
    rate_by: bytes | None
    ordered_by: bytes | None


class _Counts(NamedTuple):
    """The numbers of a flow's tasks, the one that has waited longest, and what is known of its durations."""

    waiting: int
    slots: int
    queued: int
    oldest: list[Any]
    timing: bytes | None


# --- showing -------------------------------------------------------------------------------------------------------


@query
def show_flow(name: str) -> Steps[FlowRecord]:
    """A flow with state. Raises `NotFound`."""
    record = yield from find_flow(name)
    if record is None:
        raise NotFound(f"no flow {name!r} has limits, a pause, a rest or waiting tasks")
    return record


def find_flow(name: str) -> Steps[FlowRecord | None]:
    """A flow; None if it has no state."""
    (record,) = yield from _read([name])
    return record


@query
def list_flows(cursor: str = "", limit: int = PAGE) -> Steps[Page[FlowRecord]]:
    """A page of the flows with state, in no order. One that comes or goes meanwhile may be on two pages or on none.

    Args:
        cursor: of the page before; empty or `0` for the first.
        limit: about as many flows.

    Raises `Refused` for a text that is no cursor.
    """
    if (cursor and not cursor.isascii()) or (cursor and not cursor.isdigit()):
        raise Refused("invalid_value", "cursor", "this is not a cursor; it comes with the page before")
    names, following = yield from scan_names(cursor or "0", limit)
    records = yield from _read(names)
    return Page([record for record in records if record is not None], "" if following == "0" else following)


@query
def busiest_flows(limit: int = 50) -> Steps[list[FlowRecord]]:
    """The flows with the most waiting tasks, these first. It counts those of all flows, in pages.

    Args:
        limit: most flows. Raises `Refused` if it is less than 1.
    """
    if limit < 1:
        raise Refused("invalid_value", "limit", f"at least 1 flow is needed, got {limit}")
    counted: dict[str, int] = {}
    cursor = "0"
    while True:
        names, cursor = yield from scan_names(cursor, PAGE)
        counts = (yield commands(*(("ZCARD", keys.WAITING_PREFIX + name) for name in names))) if names else []
        counted.update(zip(names, counts, strict=True))
        if cursor == "0" or len(counted) > 2 * limit + KEPT:
            counted = dict(heapq.nsmallest(limit, counted.items(), key=lambda one: (-one[1], one[0])))
        if cursor == "0":
            break
    found = list(counted)
    records: list[FlowRecord | None] = []
    for start in range(0, len(found), PAGE):
        records += yield from _read(found[start : start + PAGE])
    return sorted((one for one in records if one is not None), key=lambda one: (-one.waiting, one.key))


@query
def count_flows() -> Steps[int]:
    """How many flows have state."""
    (count,) = yield commands(("ZCARD", keys.FLOWS))
    return int(count)


def scan_names(cursor: str, count: int) -> Steps[tuple[list[str], str]]:
    """Names of about `count` flows with state after a cursor of Redis, and the next cursor, which is `0` at the end."""
    ((following, members),) = yield commands(("ZSCAN", keys.FLOWS, cursor, "COUNT", count))
    return texts(name for name, _ in members), str(following) if isinstance(following, int) else text(following)


# --- deciding ------------------------------------------------------------------------------------------------------


@query
def set_flow(name: str, changes: Limits | Changes) -> Steps[FlowRecord]:
    """Changes limits of a flow, and returns it; limits that are left out stay, and None removes one.

    Raises `Refused` for wrong limits, and for those that contradict the ones that stay.
    """
    check_key(name, most=MAX_NAME_CHARACTERS)
    if not flows.limit_fields(changes):
        raise Refused("missing_field", "", "at least one limit is needed: parallel, rate, per, burst or ordered")
    before = yield from find_flow(name)
    check_limits(changed(Limits() if before is None else _limits_of(before), changes))
    yield flows.set_limits(name, changes)
    return (yield from _after(name))


@query
def replace_flow(name: str, limits: Limits) -> Steps[FlowRecord]:
    """Sets the limits of a flow, and removes those that are left out. Raises `Refused` for wrong limits."""
    check_key(name, most=MAX_NAME_CHARACTERS)
    check_limits(limits)
    yield flows.replace_limits(name, limits)
    return (yield from _after(name))


@query
def pause_flow(name: str, paused: bool = True) -> Steps[FlowRecord]:
    """Pauses or resumes a flow, and returns it. A flow without state can be paused.

    Raises `Refused` for a key that is wrong, and `NotFound` for a flow without state that is to be resumed.
    """
    check_key(name, most=MAX_NAME_CHARACTERS)
    if not paused:
        yield from show_flow.steps(name)
    yield flows.pause(name, paused)
    return (yield from _after(name))


@query
def reset_flow(name: str) -> Steps[FlowRecord]:
    """Ends a rest and closes the circuit breaker; limits and a pause stay. Raises `NotFound`."""
    yield from show_flow.steps(name)
    yield flows.reset(name)
    return (yield from _after(name))


@query
def remove_flow(name: str) -> Steps[None]:
    """Removes the limits, the pause and the rest of a flow; tasks that wait are admitted. Raises `NotFound`."""
    yield from show_flow.steps(name)
    yield flows.remove(name)


def _after(name: str) -> Steps[FlowRecord]:
    """A flow after a decision; idle if it has no state any more."""
    record = yield from find_flow(name)
    return FlowRecord(name) if record is None else record


def _limits_of(record: FlowRecord) -> Limits:
    fields = {name: getattr(record, name) for name in Limits.__struct_fields__}
    return Limits(**{name: UNSET if value is None else value for name, value in fields.items()})


# --- reading -------------------------------------------------------------------------------------------------------


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
            ("ZCOUNT", keys.SLOTS_PREFIX + name, "-inf", keys.FOREVER_SECONDS),  # see flows.lua
            ("ZRANGE", keys.WAITING_PREFIX + name, 0, 0, "WITHSCORES"),
            ("GET", keys.TIMEOUT_PREFIX + name),
        )
    ]
    *replies, (seconds, microseconds) = yield commands(*asked, ("TIME",))
    now = int(seconds) + int(microseconds) / 1e6
    width = 1 + len(_Counts._fields)
    starts = range(0, len(replies), width)
    rows = [_Fields._make(replies[start]) for start in starts]
    counts = [_Counts._make(replies[start + 1 : start + width]) for start in starts]
    defaults = yield from _defaults(rows)
    return [_record(name, row, defaults, one, now) for name, row, one in zip(names, rows, counts, strict=True)]


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
    name: str, row: _Fields, defaults: dict[bytes, dict[str, Any]], counts: _Counts, now: float
) -> FlowRecord | None:
    timing = counts.timing
    if row.made is None and timing is None:
        return None
    row, origins = _with_defaults(row, defaults.get(row.rule or b"", {}))
    is_auto = row.parallel == b"auto"
    adapting = msgspec.json.decode(row.adapting, type=Adapting) if is_auto and row.adapting else Adapting()
    times = msgspec.json.decode(timing, type=Timing) if timing else None
    rest = float(row.rest or 0)
    resting = rest > now
    breaker: Breaker = "closed" if not row.trips else "open" if resting else "half-open"
    state: FlowState = "waiting" if counts.waiting else "active" if counts.slots else "idle"
    if row.paused:
        state = "paused"
    elif breaker != "closed":
        state = breaker
    elif resting:
        state = "resting"
    oldest_due = _first_score(counts.oldest)
    rested = resting or breaker != "closed"
    return FlowRecord(
        key=name,
        state=state,
        breaker=breaker,
        parallel=None if row.parallel is None else _number(row.parallel),
        rate=None if row.rate is None else float(row.rate),
        per=None if row.rate is None else float(row.per or 1),
        burst=None if row.rate is None else int(row.burst or 1),
        ordered=row.ordered == b"1",
        share=None if row.share is None or is_auto else int(row.share),
        waiting=counts.waiting,
        queued=counts.queued,
        in_flight=counts.slots - counts.queued,
        begun=None if row.rate is None else _begun(row, now),
        next_token=None if row.rate is None else _next_token(row, counts.queued, now),
        oldest_due=oldest_due,
        oldest_seconds=None if oldest_due is None else max(0.0, now - oldest_due),
        until=rest if resting else None,
        since=float(row.since) if rested and row.since else None,
        why=_WHY.get(text(row.why), "") if rested else "",
        adapted=int(row.share or keys.FIRST_PARALLEL) if is_auto else None,
        adapted_why=adapting.why,
        adapted_at=adapting.changed,
        timeout=times.seconds if times else None,
        duration_mean=times.mean if times else None,
        duration_deviation=times.deviation if times else None,
        limits_from=origins,
        rule=text(row.rule or b"") if row.rule in defaults else "",
    )


def _begun(row: _Fields, now: float) -> int:
    """How many deliveries began in the last `per` seconds, by the counters of take_token in flows.lua."""
    window, part = divmod(now / float(row.per or 1), 1)
    behind = window - float(row.window or 0)
    begun, before = int(row.begun or 0), int(row.begun_before or 0)
    if behind == 0:
        return round(begun + before * (1 - part))
    return round(begun * (1 - part)) if behind == 1 else 0


def _next_token(row: _Fields, queued: int, now: float) -> float | None:
    """When the rate lets the next task begin, after those that are queued, in Unix seconds; None if that is now."""
    assert row.rate is not None
    per = float(row.per or 1)
    spacing = per / float(row.rate)
    slack = min(keys.RATE_SLACK * per, keys.RATE_SLACK_SECONDS)
    burst = int(row.burst or 1)
    longer = spacing * (1 + 2 * slack / per)
    begins = max(float(row.tat or 0), now) - (burst - 1) * spacing - slack + queued * longer
    return begins if begins > now else None


def _number(value: bytes) -> int | str:
    return int(value) if value.isdigit() else value.decode()


def _first_score(reply: list[Any]) -> float | None:
    """Of ZRANGE … WITHSCORES, which redis-py returns as pairs or as a flat list, by the protocol."""
    if not reply:
        return None
    score = float(reply[0][1] if isinstance(reply[0], tuple | list) else reply[1])
    return score if math.isfinite(score) else None
