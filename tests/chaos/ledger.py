"""The ledger: accepted tasks compared with arrivals, and the state of Redis at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from qtask.model.record import TaskRecord
from qtask.model.timing import parse_instant
from qtask.store.audit import Audit
from tests.chaos.flows import faults_of_flows, summary
from tests.chaos.plan import ATTEMPTS, Plan
from tests.chaos.receivers import Arrival
from tests.chaos.store import Store, inconsistencies
from tests.chaos.submitters import Note, Notes
from tests.chaos.system import Disruption, count_disruptions

CLOCK_SECONDS = 0.000_002  # two microseconds, to which due instants are rounded
NOTED_SECONDS = 1.0  # delay with which a busy receiver may note an arrival


@dataclass(slots=True)
class Ledger:
    """The balance of a run.

    Attributes:
        lines: the report.
        faults: violations; empty for a correct run.
    """

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def say(self, subject: str, text: str) -> None:
        self.lines.append(f"  {subject:<12} {text}")

    def add_fault(self, fault: str, about: Iterable[object]) -> None:
        """Adds a fault with examples, if there are any."""
        found = [str(one) for one in about]
        if found:
            self.faults.append(f"{len(found)} {fault}: {'; '.join(found[:5])}")


def balance(
    plan: Plan, notes: Notes, arrivals: Sequence[Arrival], store: Store, disruptions: Sequence[Disruption]
) -> Ledger:
    """Checks all properties of each task, and of Redis as a whole."""
    ledger = Ledger()
    by_number: defaultdict[int, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda one: one.instant):
        by_number[arrival.number].append(arrival)
    dead = {int(record.title.rpartition(" ")[2]): record for record in store.dead}
    _check_submission(ledger, plan, notes)
    _check_delivery(ledger, plan, notes, by_number, dead, store)
    _check_punctuality(ledger, plan, notes, by_number)
    _check_duplicates(ledger, plan, by_number, disruptions)
    _check_ids(ledger, plan, notes, by_number, dead)
    if any(task.flow for task in plan.tasks):
        ledger.say("flows", summary(plan, arrivals))
        for fault, about in faults_of_flows(plan, notes, arrivals, disruptions).items():
            ledger.add_fault(fault, about)
    _check_store(ledger, plan, store)
    return ledger


def _check_submission(ledger: Ledger, plan: Plan, notes: Notes) -> None:
    ways = Counter(way for task in plan.tasks for way in task.ways)
    kinds = Counter(task.kind for task in plan.tasks)
    ledger.say("planned", f"{len(plan.tasks)} tasks: {_counts(kinds)}; ways: {_counts(ways)}")
    accepted = sum(1 for task in plan.tasks if notes[task.number].accepted)
    added = sum(1 for task in plan.tasks if notes[task.number].added and not notes[task.number].accepted)
    repeated = sum(1 for task in plan.tasks for answer in notes[task.number].accepted if answer.duplicate)
    unknown = len(plan.tasks) - accepted - added
    ledger.say("accepted", f"{accepted} were told ok, {repeated} more times as duplicates; {added} were in the inbox")
    ledger.say("unknown", f"{unknown} never had an answer, as no process could give one")
    ledger.add_fault("tasks were refused", (one for task in plan.tasks for one in notes[task.number].refused))


def _check_delivery(
    ledger: Ledger,
    plan: Plan,
    notes: Notes,
    by_number: dict[int, list[Arrival]],
    dead: dict[int, TaskRecord],
    store: Store,
) -> None:
    delivered: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    lost, unburied = [], []
    for task in plan.tasks:
        if task.kind == "__graph__":
            came = task.chosen_id in store.graphs
        else:
            came = any(not arrival.failed for arrival in by_number.get(task.number, ()))
        record = dead.get(task.number)
        if came:
            delivered[task.kind] += 1
        elif record is None and notes[task.number].promised:
            lost.append(f"{task.title} ({task.kind}), {_story(notes[task.number], by_number.get(task.number, []))}")
        if record is not None and not _is_rightly_dead(record):
            unburied.append(f"{task.title}: {record.attempts} attempts, {record.outcomes[-1:]}")
        if not notes[task.number].promised:
            unknown["delivered" if came else "dead" if record is not None else "never came"] += 1
    ledger.say("delivered", f"{delivered.total()}: {_counts(delivered)}")
    errors = Counter(record.outcomes[-1].error for record in dead.values() if record.outcomes)
    ledger.say("dead", f"{len(dead)} with their attempts, the last of which ended by: {_counts(errors)}")
    ledger.say("", f"of the unknown: {_counts(unknown)}")
    ledger.add_fault("accepted tasks are LOST", lost)
    ledger.add_fault("tasks are dead before their attempts are used up", unburied)


def _is_rightly_dead(record: TaskRecord) -> bool:
    if not record.outcomes or len(record.outcomes) < record.attempts:
        return False
    return record.attempts >= ATTEMPTS or record.outcomes[-1].code == 404


def _check_punctuality(ledger: Ledger, plan: Plan, notes: Notes, by_number: dict[int, list[Arrival]]) -> None:
    early, late = [], []
    for number, arrived in by_number.items():
        note = notes[number]
        due = min((answer.due for answer in note.accepted), default=note.sent_at + plan.tasks[number].delay)
        if arrived[0].due:
            due = max(due, parse_instant(arrived[0].due))
        late.append(arrived[0].instant - due)
        if late[-1] < -CLOCK_SECONDS:
            early.append(f"{plan.tasks[number].title} by {-late[-1] * 1e3:.3f} ms")
    late.sort()
    if late:
        middle, high = late[len(late) // 2], late[len(late) * 99 // 100]
        ledger.say(
            "lateness", f"p50 {middle * 1e3:.1f} ms, p99 {high:.1f} s (processes were away); early: {len(early)}"
        )
    ledger.add_fault("tasks were delivered before they were due", early)


def _check_duplicates(
    ledger: Ledger, plan: Plan, by_number: dict[int, list[Arrival]], disruptions: Sequence[Disruption]
) -> None:
    suspects = [
        disruption for disruption in disruptions if disruption.actor.startswith("worker") and disruption.in_flight
    ]
    repeated, unexplained = [], []
    for number, arrived in by_number.items():
        for before, after in pairwise(arrived):
            if before.failed:
                continue  # a delivery after one that failed is a retry
            story = ", ".join(f"{one.answer} attempt {one.attempt} at {one.instant:.3f}" for one in (before, after))
            repeated.append(f"{plan.tasks[number].title} ({story})")
            since, till = before.instant - NOTED_SECONDS, after.instant
            if not any(disruption.at <= till and disruption.over >= since for disruption in suspects):
                unexplained.append(repeated[-1])
    bound = sum(disruption.in_flight for disruption in suspects)
    ledger.say(
        "duplicates", f"{len(repeated)} of at most {bound}, which were in flight when workers were killed or stopped"
    )
    if len(repeated) > bound:
        ledger.add_fault(f"duplicates, where at most {bound} tasks were in flight at a kill", repeated)
    ledger.add_fault("duplicates between whose deliveries no worker was killed or stopped", unexplained)


def _check_ids(
    ledger: Ledger, plan: Plan, notes: Notes, by_number: dict[int, list[Arrival]], dead: dict[int, TaskRecord]
) -> None:
    several = []
    for task in plan.tasks:
        seen = {arrival.id for arrival in by_number.get(task.number, ()) if arrival.id}
        seen |= {answer.id for answer in notes[task.number].accepted}
        if task.number in dead:
            seen.add(dead[task.number].id)
        if task.chosen_id and seen:
            seen.add(task.chosen_id)
        if len(seen) > 1:
            several.append(f"{task.title}: {', '.join(sorted(seen))}")
    ledger.add_fault("tasks had several ids", several)
    told = {task.title: {answer.due for answer in notes[task.number].accepted} for task in plan.tasks}
    ledger.add_fault(
        "tasks were told several due instants", (f"{title}: {dues}" for title, dues in told.items() if len(dues) > 1)
    )


def _check_store(ledger: Ledger, plan: Plan, store: Store) -> None:
    chosen = {task.chosen_id for task in plan.tasks}
    graphs = {task.chosen_id for task in plan.tasks if task.kind == "__graph__"}
    counts = Counter(place for places in store.places.values() for place in places)
    ledger.say("in Redis", f"{store.keys} keys; tasks: {_counts(counts)}; {store.consumers} consumers of the inbox")
    for fault, about in inconsistencies(store).items():
        ledger.add_fault(fault, about)
    ledger.add_fault("remembered ids were never chosen", store.remembered - chosen)
    ledger.add_fault("pictures belong to no task", store.graphs - graphs)


def say_audit(ledger: Ledger, audited: Audit) -> None:
    """Reports QTask's own audit, which counts inside Redis."""
    ledger.say("audit", f"{audited.accepted} accepted; {audited.duplicates} submissions answered as duplicates")
    for fault, ids in audited.faults.items():
        ledger.add_fault(f"ids in the audit: {fault}", ids)
    if audited.missing:
        ledger.add_fault("missing in the audit", [audited])


def say_disruptions(ledger: Ledger, disruptions: Sequence[Disruption], cuts: dict[str, int]) -> None:
    """Reports the disruptions of the processes."""
    for (kind, act), count in sorted(count_disruptions(disruptions).items()):
        ledger.say("", f"{kind} {_DONE[act]} {count} times")
    ledger.say("", f"connections cut in the middle of a reply: {_counts(Counter(cuts))}")


_DONE = {
    "kill": "killed",
    "stop": "stopped and continued",
    "restart": "restarted",
    "hangup": "restarted by SIGHUP",
    "fill": "left without room on its disk",
}


def _story(note: Note, arrived: Sequence[Arrival]) -> str:
    told = [f"told {answer.id} due {answer.due:.3f}" for answer in note.accepted]
    came = [f"came at {arrival.instant:.3f} ({arrival.answer})" for arrival in arrived]
    return ", ".join([f"sent at {note.sent_at:.3f}", *(["in the inbox"] if note.added else []), *told, *came])


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{count} {name or 'delivered'}" for name, count in counter.most_common()) or "none"
