"""The ledger itself: it balances for a correct run, and names each violation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from qtask.client.protocol import Accepted
from qtask.model.errors import Refused
from qtask.model.outcome import Outcome
from qtask.model.record import TaskRecord
from tests.chaos.ledger import Ledger, balance
from tests.chaos.plan import ATTEMPTS, GONE, OK, Plan, PlannedTask, make_plan
from tests.chaos.receivers import Arrival
from tests.chaos.store import Store
from tests.chaos.submitters import Notes
from tests.chaos.system import Disruption

DUE = 1_000.0
TASKS = (
    PlannedTask(0, 0.0, ("socket",), "http", 1.0, OK, ""),
    PlannedTask(1, 0.0, ("inbox",), "udp", 1.0, OK, "chaos-1"),
    PlannedTask(2, 0.0, ("client",), "http", 1.0, GONE, ""),
    PlannedTask(3, 0.0, ("client",), "__graph__", 0.0, OK, "chaos-3"),
)
IDS = ("a", "chaos-1", "c", "chaos-3")


def outcome(attempt: int, code: int) -> Outcome:
    return Outcome("failed", DUE, DUE, None, 0.0, attempt, code, error="status")


class Run:
    """A correct run; each test changes one thing in it."""

    def __init__(self) -> None:
        self.plan = Plan(0, 10.0, TASKS, ())
        self.notes = Notes(len(TASKS))
        for task, task_id in zip(TASKS, IDS, strict=True):
            self.notes[task.number].sent_at = DUE - task.delay
            self.notes.answered(task, Accepted(task_id, DUE))
        self.arrivals = [
            Arrival(0, "http", DUE + 0.001, OK, "a", 1, "1970-01-01T00:16:40.000Z"),
            Arrival(1, "udp", DUE + 0.002, OK),
            Arrival(2, "http", DUE + 0.001, GONE, "c", 1, "1970-01-01T00:16:40.000Z"),
        ]
        about: dict[str, Any] = {"type": "http", "link": "", "task": msgspec.Raw(b"null"), "retry_at": None}
        about |= {"queue": "qtask", "due": DUE, "accepted": None}
        dead = TaskRecord(id="c", state="dead", attempts=1, title="chaos 2", outcomes=[outcome(1, 404)], **about)
        places = {"a": ["finished"], "chaos-1": ["finished"], "c": ["dead"], "chaos-3": ["finished"]}
        self.store = Store(places, set(IDS), [dead], {"chaos-1"}, {"chaos-3"})
        self.disruptions = [Disruption("worker-1", "kill", DUE + 0.5, DUE + 0.5, 1)]

    def ledger(self) -> Ledger:
        return balance(self.plan, self.notes, self.arrivals, self.store, self.disruptions)

    def fault(self) -> str:
        (fault,) = self.ledger().faults
        return fault


@pytest.fixture
def run() -> Run:
    return Run()


def test_correct_run_balances(run: Run) -> None:
    assert run.ledger().faults == []


def test_task_without_an_arrival_is_lost(run: Run) -> None:
    del run.arrivals[1]
    assert run.fault().startswith("1 accepted tasks are LOST: chaos 1 (udp)")


def test_task_that_only_failed_and_is_not_dead_is_lost(run: Run) -> None:
    run.store.dead.clear()
    assert "LOST: chaos 2" in run.fault()


def test_inbox_entry_must_be_delivered_even_without_an_answer(run: Run) -> None:
    run.notes[1].accepted.clear()
    run.notes.added(TASKS[1])
    assert run.ledger().faults == []
    del run.arrivals[1]
    assert "LOST: chaos 1" in run.fault()


def test_unanswered_task_may_arrive_or_not(run: Run) -> None:
    run.notes[1].accepted.clear()
    assert run.ledger().faults == []
    del run.arrivals[1]
    assert run.ledger().faults == []


def test_missing_picture_is_a_lost_task(run: Run) -> None:
    run.store.graphs.clear()
    assert "LOST: chaos 3 (__graph__)" in run.fault()


def test_task_that_arrived_before_due_is_named(run: Run) -> None:
    run.arrivals[1] = replace_arrival(run.arrivals[1], instant=DUE - 0.001)
    assert "before they were due: chaos 1 by 1.000 ms" in run.fault()


def test_duplicates_are_bounded_by_tasks_in_flight(run: Run) -> None:
    run.arrivals.append(replace_arrival(run.arrivals[0], instant=DUE + 1))
    assert run.ledger().faults == []
    run.arrivals.append(replace_arrival(run.arrivals[1], instant=DUE + 1))
    assert run.fault().startswith("2 duplicates, where at most 1 tasks were in flight")


def test_duplicate_needs_a_disruption_between_its_deliveries(run: Run) -> None:
    run.arrivals.append(replace_arrival(run.arrivals[0], instant=DUE + 1))
    for at, over, explains in ((DUE + 2, DUE + 3, False), (DUE - 9, DUE - 8, False), (DUE - 9, DUE + 0.5, True)):
        run.disruptions = [Disruption("worker-1", "stop", at, over, 5)]
        assert (run.ledger().faults == []) == explains


def test_delivery_after_a_failure_is_not_a_duplicate(run: Run) -> None:
    run.disruptions.clear()
    run.arrivals.append(replace_arrival(run.arrivals[2], instant=DUE + 1, answer=OK, attempt=2))
    run.store.dead.clear()
    run.store.places["c"] = ["finished"]
    assert run.ledger().faults == []


def test_second_id_of_a_task_is_named(run: Run) -> None:
    run.arrivals.append(replace_arrival(run.arrivals[0], instant=DUE + 1, id="b"))
    assert "had several ids: chaos 0: a, b" in run.fault()
    run.arrivals.pop()
    run.notes.answered(TASKS[1], Accepted("another", DUE))
    assert "had several ids: chaos 1: another, chaos-1" in run.fault()


def test_second_due_instant_of_a_task_is_named(run: Run) -> None:
    run.notes.answered(TASKS[1], Accepted("chaos-1", DUE, duplicate=True))
    assert run.ledger().faults == []
    run.notes.answered(TASKS[1], Accepted("chaos-1", DUE + 1, duplicate=True))
    assert "were told several due instants: chaos 1" in run.fault()


def test_task_that_died_too_early_is_named(run: Run) -> None:
    (dead,) = run.store.dead
    run.store.dead[0] = replace(dead, attempts=2, outcomes=[outcome(1, 500), outcome(2, 500)])
    assert "dead before their attempts are used up: chaos 2" in run.fault()
    outcomes = [outcome(attempt, 500) for attempt in range(1, ATTEMPTS + 1)]
    run.store.dead[0] = replace(dead, attempts=ATTEMPTS, outcomes=outcomes[1:])
    assert "chaos 2" in run.fault(), "one attempt is missing in its history"
    run.store.dead[0] = replace(dead, attempts=ATTEMPTS, outcomes=outcomes)
    assert run.ledger().faults == []


def test_refusal_is_named(run: Run) -> None:
    run.notes.answered(TASKS[0], Refused("too_large", "", "a dict of at most 10 bytes is accepted"))
    assert "tasks were refused" in run.fault()
    assert not Run().notes.answered(TASKS[0], Refused("unavailable", "", "Redis is away")), "it may be sent again"


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda store: store.places.update(a=["finished", "queue"]), "several places: a"),
        (lambda store: store.jobs.add("x"), "job hashes are in no place: x"),
        (lambda store: store.jobs.remove("a"), "ids have no job hash: a"),
        (lambda store: store.unknown_keys.append("k"), "keys belong to no task: k"),
        (lambda store: store.remembered.add("x"), "remembered ids were never chosen: x"),
        (lambda store: store.graphs.add("x"), "pictures belong to no task: x"),
        (lambda store: store.workers.append("w"), "workers have ended and are still known: w"),
        (lambda store: setattr(store, "inbox", 2), "entries are left in the inbox: 2 entries"),
    ],
)
def test_leftovers_in_redis_are_named(run: Run, spoil: Any, fault: str) -> None:
    spoil(run.store)
    assert any(fault in found for found in run.ledger().faults)


def test_same_seed_makes_the_same_plan() -> None:
    plan = make_plan(7, 60.0, 300)
    assert plan == make_plan(7, 60.0, 300)
    assert plan.tasks != make_plan(8, 60.0, 300).tasks
    assert plan.events != make_plan(8, 60.0, 300).events
    assert {task.kind for task in make_plan(7, 60.0, 3_000).tasks} == {"http", "socket", "udp", "pipe", "__graph__"}
    assert {(event.actor.partition("-")[0], event.act) for event in make_plan(7, 600.0, 1).events} == {
        *((kind, act) for kind in ("gateway", "scheduler", "worker", "redis") for act in ("kill", "stop", "restart")),
        *((kind, "hangup") for kind in ("gateway", "scheduler", "worker")),
        ("redis", "fill"),
        ("redis", "cut"),
        ("gateway", "cut"),
    }


def replace_arrival(arrival: Arrival, **changes: Any) -> Arrival:
    return msgspec.structs.replace(arrival, **changes)
