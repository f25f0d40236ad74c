"""What the ledger says of flows: nothing for a correct run, and each violation by name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qtask.client.protocol import Accepted
from tests.chaos.flows import DEAD_SECONDS, faults_of_flows
from tests.chaos.plan import OK, RATE, Plan, PlannedTask
from tests.chaos.receivers import Arrival
from tests.chaos.submitters import Notes
from tests.chaos.system import Disruption

Times = Sequence[tuple[int, float, float]]  # number, began, ended


def faults(flow: str, times: Times, disruptions: Sequence[Disruption] = (), dues: Sequence[float] = ()) -> list[str]:
    """The faults of a run with tasks of one flow; by default all were due at 0 and accepted long before."""
    count = max(number for number, _, _ in times) + 1
    tasks = tuple(PlannedTask(number, 0.0, ("socket",), "http", 100.0, OK, "", flow) for number in range(count))
    plan, notes = Plan(0, 10.0, tasks, ()), Notes(count)
    for task in tasks:
        notes.answered(task, Accepted(f"id{task.number}", dues[task.number] if dues else 0.0))
    arrivals = [Arrival(number, "http", began, OK, f"id{number}", 1, "", ended) for number, began, ended in times]
    return [fault for fault, about in faults_of_flows(plan, notes, arrivals, disruptions).items() if about]


def stop(at: float, seconds: float, in_flight: int = 1) -> Disruption:
    return Disruption("worker-1", "stop", at, at + seconds, in_flight)


@pytest.mark.parametrize(
    ("flow", "times"),
    [
        ("parallel", [(0, 1.0, 2.0), (1, 1.0, 2.0), (2, 1.0, 2.0), (3, 2.0, 3.0)]),
        ("ordered", [(0, 1.0, 2.0), (0, 2.0, 3.0), (1, 3.0, 4.0)]),
        ("rated", [(number, number / RATE, number / RATE) for number in range(200)]),
    ],
)
def test_correct_run_has_no_faults(flow: str, times: Times) -> None:
    assert faults(flow, times) == []


def test_too_many_in_flight_are_found_and_a_stopped_worker_explains_them() -> None:
    (words,) = faults("parallel", four := [(number, 1.0, 2.0) for number in range(4)])
    assert "in flight than its limit" in words
    assert faults("parallel", four, [stop(0.0, DEAD_SECONDS - 1)])
    assert faults("parallel", four, [stop(0.0, DEAD_SECONDS)]) == []
    assert faults("parallel", [*four, (4, 1.5, 2.0)], [stop(0.0, DEAD_SECONDS)])
    assert faults("ordered", [(0, 1.0, 2.0), (1, 1.9, 3.0)])


def test_task_that_comes_again_after_its_successor_is_found() -> None:
    times = [(0, 1.0, 1.1), (1, 2.0, 2.1), (0, 3.0, 3.1)]
    (words,) = faults("ordered", times)
    assert "between those of another task" in words
    assert faults("ordered", times, [stop(1.0, 1.5)]) == []


def test_task_that_is_overtaken_is_found() -> None:
    times = [(1, 1.0, 1.1), (0, 2.0, 2.1)]
    assert faults("ordered", times, dues=[0.5, 0.6]) == ["times an ordered flow was out of order"]
    assert faults("ordered", times, dues=[0.5, 0.5]) == [], "they are due together"
    assert faults("ordered", times, dues=[150.0, 300.0]) != []
    assert faults("ordered", times, dues=[100.7, 0.6 + 100.0]) == [], "it was due later"


def test_windows_that_are_too_full_are_found() -> None:
    assert faults("rated", [(number, number / 500, number / 500) for number in range(60)])
