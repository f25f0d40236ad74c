"""The flows of a run: their limits, judged by what the receiver noted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from tests.chaos.plan import FLOWS, PARALLEL, RATE, Plan
from tests.chaos.receivers import Arrival
from tests.chaos.submitters import Notes
from tests.chaos.system import Disruption

DEAD_SECONDS = 4.5  # a worker that was stopped for so long may count as dead, and continue with tasks that others have
NOTED_SECONDS = 1.0  # by which a busy receiver may note an arrival too late
RATE_SECONDS = 0.5  # by which arrivals may be closer than their claims, because workers and the receiver were busy


def arrivals_by_flow(plan: Plan, arrivals: Sequence[Arrival]) -> dict[str, list[Arrival]]:
    """The arrivals of each flow, in order."""
    found: defaultdict[str, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda one: one.instant):
        if plan.tasks[arrival.number].flow:
            found[plan.tasks[arrival.number].flow].append(arrival)
    return found


def faults_of_flows(
    plan: Plan, notes: Notes, arrivals: Sequence[Arrival], disruptions: Sequence[Disruption]
) -> Mapping[str, list[str]]:
    """A fault to its examples."""
    by_flow = arrivals_by_flow(plan, arrivals)
    stops = [one for one in disruptions if one.actor.startswith("worker") and one.over - one.at >= DEAD_SECONDS]
    workers = [one for one in disruptions if one.actor.startswith("worker")]
    return {
        "times more deliveries of a flow were in flight than its limit": [
            *_too_many(by_flow.get("parallel", []), PARALLEL, stops),
            *_too_many(by_flow.get("ordered", []), 1, stops),
        ],
        "times a delivery of an ordered flow came between those of another task": list(
            _interleaved(plan, by_flow.get("ordered", []), workers)
        ),
        "times an ordered flow was out of order": list(_out_of_order(plan, notes, by_flow.get("ordered", []))),
        "windows of a flow have more deliveries than its rate": list(_too_fast(by_flow.get("rated", []))),
    }


def _too_many(arrivals: list[Arrival], limit: int, stops: list[Disruption]) -> Iterator[str]:
    events = sorted([(one.ended, -1) for one in arrivals] + [(one.instant, 1) for one in arrivals])
    now = 0
    for instant, change in events:
        now += change
        allowed = limit + sum(one.in_flight for one in stops if one.at <= instant <= one.over + NOTED_SECONDS)
        if change > 0 and now > allowed:
            yield f"{now} at {instant:.3f}"


def _interleaved(plan: Plan, arrivals: list[Arrival], workers: list[Disruption]) -> Iterator[str]:
    """A task that comes again after another one has come; only a worker that was killed or stopped explains it."""
    last: dict[int, float] = {}
    for before, after in pairwise(arrivals):
        last[before.number] = before.instant
        if after.number != before.number and after.number in last:
            since = last[after.number] - NOTED_SECONDS
            if not any(one.at <= after.instant and one.over >= since for one in workers if one.in_flight):
                yield f"{plan.tasks[after.number].title} at {after.instant:.3f}"


def _out_of_order(plan: Plan, notes: Notes, arrivals: list[Arrival]) -> Iterator[str]:
    """A task before one that is due earlier and had been accepted when this one was due."""
    dues: dict[int, float] = {}
    order = [number for number in dict.fromkeys(one.number for one in arrivals) if notes[number].accepted]
    for number in order:
        dues[number] = min(answer.due for answer in notes[number].accepted)
    latest = -1
    for number in order:
        if latest >= 0 and dues[number] < dues[latest] and _accepted_at(plan, dues, number) < dues[latest]:
            yield f"{plan.tasks[number].title} after {plan.tasks[latest].title}"
        if latest < 0 or dues[number] > dues[latest]:
            latest = number


def _accepted_at(plan: Plan, dues: Mapping[int, float], number: int) -> float:
    return dues[number] - plan.tasks[number].delay


def _too_fast(arrivals: list[Arrival]) -> Iterator[str]:
    most = RATE + int(FLOWS["rated"]["burst"]) - 1
    for first, last in zip(arrivals, arrivals[most:], strict=False):
        if last.instant - first.instant < 1.0 - RATE_SECONDS:
            yield f"{most + 1} in {last.instant - first.instant:.3f} s at {first.instant:.3f}"


def summary(plan: Plan, arrivals: Sequence[Arrival]) -> str:
    """How many tasks and deliveries each flow had."""
    planned = Counter(task.flow for task in plan.tasks if task.flow)
    came = {flow: len(found) for flow, found in arrivals_by_flow(plan, arrivals).items()}
    return ", ".join(f"{flow}: {count} tasks, {came.get(flow, 0)} deliveries" for flow, count in planned.most_common())
