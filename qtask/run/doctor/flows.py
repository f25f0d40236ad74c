"""Flows whose tasks wait: paused, resting, with an open circuit breaker, or with a backlog that grows."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from qtask.model.flow_record import FlowRecord
from qtask.model.timing import format_duration, format_second
from qtask.run.doctor.finding import Examined, Finding, Level
from qtask.store import flow_records

LOOKED_AT = 1_000  # flows, those with the most waiting tasks
NAMED = 5  # flows of one kind that get a finding each
OLD_SECONDS = 10.0  # for which the oldest task of a flow has waited, before its backlog is measured
GROWTH_SECONDS = 2.0  # between the two measurements


class _Kind(NamedTuple):
    """A problem that several flows may have."""

    level: Level
    fits: Callable[[FlowRecord], bool]
    what: Callable[[FlowRecord], str]
    advice: str  # in which KEY stands for the key
    others: str  # about how many flows beyond those that are named


def flows(here: Examined) -> list[Finding]:
    """Flows that do not deliver now, and flows whose tasks come faster than they are delivered.

    A backlog grows if more tasks wait than `GROWTH_SECONDS` before. Only flows whose oldest task has waited for
    `OLD_SECONDS` are measured: a rate spreads a burst over a while, and that is no problem.
    """
    found = flow_records.busiest_flows(here.redis, LOOKED_AT)
    findings = [finding for kind in _STATES for finding in _findings(kind, found)]
    findings += _findings(_GROWTH, _growing(here, found))
    return findings or [Finding("fine", "no flow rests, is paused with tasks, or has a backlog that grows")]


def _growing(here: Examined, found: Iterable[FlowRecord]) -> list[FlowRecord]:
    """The flows whose backlog is larger than a moment ago."""
    before = {
        one.key: one.waiting
        for one in found
        if one.state == "waiting" and one.oldest_seconds is not None and one.oldest_seconds > OLD_SECONDS
    }
    if not before:
        return []
    time.sleep(GROWTH_SECONDS)
    now = flow_records.busiest_flows(here.redis, LOOKED_AT)
    return [one for one in now if one.key in before and one.waiting > before[one.key]]


def _findings(kind: _Kind, found: Iterable[FlowRecord]) -> list[Finding]:
    fitting = [one for one in found if kind.fits(one)]
    findings = [
        Finding(kind.level, kind.what(one), kind.advice.replace("KEY", shlex.quote(one.key))) for one in fitting[:NAMED]
    ]
    if len(fitting) > NAMED:
        findings.append(Finding(kind.level, f"{len(fitting) - NAMED} {kind.others}", "see `qtask flow list`"))
    return findings


def _tasks(record: FlowRecord) -> str:
    """How many tasks wait in a flow, in words."""
    count = record.waiting
    return "no task waits" if not count else "1 task waits" if count == 1 else f"{count} tasks wait"


def _until(record: FlowRecord) -> str:
    return "" if record.until is None else f" until {format_second(record.until)}"


_STATES = (
    _Kind(
        "note",
        lambda one: one.breaker != "closed",
        lambda one: f"the circuit breaker of flow {one.key} is {one.breaker}{_until(one)}; {_tasks(one)}",
        "its deliveries keep failing: see `qtask list --state dead`; `qtask flow reset KEY` closes it at once",
        "more flows whose circuit breaker is not closed",
    ),
    _Kind(
        "note",
        lambda one: one.breaker == "closed" and one.until is not None,
        lambda one: f"flow {one.key} rests{_until(one)}; {_tasks(one)}",
        "its destination asked for a pause (Retry-After); `qtask flow reset KEY` ends it at once",
        "more flows that rest",
    ),
    _Kind(
        "note",
        lambda one: one.state == "paused" and one.waiting > 0,
        lambda one: f"flow {one.key} is paused; {_tasks(one)}",
        "`qtask flow resume KEY` delivers them",
        "more flows that are paused while tasks wait",
    ),
)
_GROWTH = _Kind(
    "wrong",
    lambda _: True,
    lambda one: (
        f"the backlog of flow {one.key} grows; {_tasks(one)}, the oldest for {format_duration(one.oldest_seconds)}"
    ),
    "its tasks come faster than they are delivered: raise its limits with `qtask flow set KEY`, or send fewer",
    "more flows whose backlog grows",
)
