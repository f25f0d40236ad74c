"""The ledger: what was promised against what came, and what Redis holds at the end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from redis import Redis

from qtask.store import keys, tasks
from qtask.store.tasks import TaskRecord
from qtask.timing import parse_instant
from tests.chaos.cast import Blow, tally
from tests.chaos.plan import ATTEMPTS, Plan
from tests.chaos.receivers import Arrival
from tests.chaos.submitters import REPLY_PREFIX, Note, Notes

CLOCK_SECONDS = 0.000_002  # two microseconds, to which due instants are rounded
_PAGE = 1_000

# What RQ and rq-scheduler write of live and lately dead processes; no task stands in it.
_REGISTRATIONS = ("rq:worker:", "rq:workers", "rq:scheduler_instance:", "rq:clean_registries:")


@dataclass(slots=True)
class Store:
    """What Redis holds.

    Attributes:
        places: id to every place that a task is in: `schedule`, `queue`, `started`, `finished`, `dead`.
        jobs: ids that have a job hash.
        dead: every dead task.
        remembered: ids that clients chose and that are remembered.
        graphs: ids that a picture is kept for.
        strangers: keys that nobody knows.
        inbox: entries that nobody has taken.
        consumers: of the inbox.
        workers: tokens in the table of heartbeats.
        finished: how many finished tasks are kept.
    """

    places: dict[str, list[str]] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    dead: list[TaskRecord] = field(default_factory=list)
    remembered: set[str] = field(default_factory=set)
    graphs: set[str] = field(default_factory=set)
    strangers: list[str] = field(default_factory=list)
    inbox: int = 0
    consumers: int = 0
    workers: int = 0
    finished: int = 0
    keys: int = 0


def read_store(redis: Redis, queue: str) -> Store:
    """Reads all of a Redis that nobody writes to any more."""
    store = Store()
    places: defaultdict[str, list[str]] = defaultdict(list)
    found: Any = {
        "schedule": redis.zrange(keys.SCHEDULE, 0, -1),
        "queue": redis.lrange(keys.queue(queue), 0, -1),
        "started": redis.zrange(keys.started(queue), 0, -1),
        "finished": redis.zrange(keys.finished(queue), 0, -1),
        "dead": redis.zrange(keys.failed(queue), 0, -1),
    }
    for place, members in found.items():
        for member in members:
            places[member.decode().partition(":")[0]].append(place)
    store.places = dict(places)
    store.finished = len(found["finished"])
    known = {
        *(keys.SCHEDULE, keys.QUEUES, keys.SCHEDULER_LOCK, keys.INBOX, keys.REFUSED, keys.NODES, keys.WORKERS),
        *(keys.COUNTERS, keys.queue(queue), keys.started(queue), keys.finished(queue), keys.failed(queue)),
    }
    for raw in redis.scan_iter(count=_PAGE):
        key = raw.decode()
        store.keys += 1
        if key.startswith(keys.JOB_PREFIX):
            store.jobs.add(key.removeprefix(keys.JOB_PREFIX))
        elif key.startswith(keys.ID_PREFIX):
            store.remembered.add(key.removeprefix(keys.ID_PREFIX))
        elif key.startswith(keys.GRAPH_PREFIX):
            store.graphs.add(key.removeprefix(keys.GRAPH_PREFIX))
        elif key.startswith(REPLY_PREFIX):
            if redis.ttl(key) == -1:
                store.strangers.append(f"{key}, which never expires")
        elif not (key in known or key.startswith((keys.STATS_PREFIX, *_REGISTRATIONS))):
            store.strangers.append(key)
    for page in tasks.find_dead(redis, queue, tasks.Filter()):
        store.dead += [tasks.show(redis, task_id) for task_id in page]
    store.inbox = redis.xlen(keys.INBOX)
    store.consumers = len(cast("list[Any]", redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)))
    store.workers = redis.zcard(keys.WORKERS)
    return store


@dataclass(slots=True)
class Ledger:
    """The balance of a run.

    Attributes:
        lines: what it says.
        faults: what must not be; empty when all is well.
    """

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def say(self, subject: str, text: str) -> None:
        self.lines.append(f"  {subject:<12} {text}")

    def blame(self, fault: str, about: Iterable[object]) -> None:
        """One fault with examples, when there are any."""
        found = [str(one) for one in about]
        if found:
            self.faults.append(f"{len(found)} {fault}: {'; '.join(found[:5])}")


def balance(plan: Plan, notes: Notes, arrivals: Sequence[Arrival], store: Store, blows: Sequence[Blow]) -> Ledger:
    """Checks everything that holds for each task, and for Redis as a whole."""
    ledger = Ledger()
    by_number: defaultdict[int, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda one: one.instant):
        by_number[arrival.number].append(arrival)
    dead = {int(record.title.rpartition(" ")[2]): record for record in store.dead}
    _check_submission(ledger, plan, notes)
    _check_delivery(ledger, plan, notes, by_number, dead, store)
    _check_punctuality(ledger, plan, notes, by_number)
    _check_duplicates(ledger, plan, by_number, blows)
    _check_ids(ledger, plan, notes, by_number, dead)
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
    ledger.say("accepted", f"{accepted} were told ok, {repeated} more times as duplicates; {added} stood in the inbox")
    ledger.say("unknown", f"{unknown} never had an answer, for want of a process that could give one")
    ledger.blame("tasks were refused", (one for task in plan.tasks for one in notes[task.number].refused))


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
    ledger.blame("accepted tasks are LOST", lost)
    ledger.blame("tasks are dead before their attempts are used up", unburied)


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
    ledger.blame("tasks were delivered before they were due", early)


def _check_duplicates(ledger: Ledger, plan: Plan, by_number: dict[int, list[Arrival]], blows: Sequence[Blow]) -> None:
    repeated = []
    for number, arrived in by_number.items():
        for before, after in pairwise(arrived):
            if not before.failed:  # a delivery after one that failed is a retry
                story = ", ".join(f"{one.answer} attempt {one.attempt} at {one.instant:.3f}" for one in (before, after))
                repeated.append(f"{plan.tasks[number].title} ({story})")
    workers = [blow for blow in blows if blow.actor.startswith("worker")]
    bound = sum(blow.in_flight for blow in workers)
    ledger.say(
        "duplicates", f"{len(repeated)} of at most {bound}, which were in flight when workers were killed or stopped"
    )
    if len(repeated) > bound:
        ledger.blame(f"duplicates, where at most {bound} tasks were in flight at a kill", repeated)


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
    ledger.blame("tasks bore several ids", several)


def _check_store(ledger: Ledger, plan: Plan, store: Store) -> None:
    chosen = {task.chosen_id for task in plan.tasks}
    graphs = {task.chosen_id for task in plan.tasks if task.kind == "__graph__"}
    counts = Counter(place for places in store.places.values() for place in places)
    ledger.say("in Redis", f"{store.keys} keys; tasks: {_counts(counts)}; {store.inbox} entries in the inbox")
    waiting = [one for one, places in store.places.items() if set(places) & {"schedule", "queue", "started"}]
    ledger.blame("tasks still wait", waiting)
    ledger.blame("tasks stand in several places", (f"{o}: {p}" for o, p in store.places.items() if len(p) > 1))
    ledger.blame("job hashes stand in no place", store.jobs - store.places.keys())
    ledger.blame("ids have no job hash", store.places.keys() - store.jobs)
    ledger.blame("keys belong to no task", store.strangers)
    ledger.blame("remembered ids were never chosen", store.remembered - chosen)
    ledger.blame("pictures belong to no task", store.graphs - graphs)
    ledger.blame("entries are left in the inbox", range(store.inbox))
    ledger.blame("workers that ended are still known", range(store.workers))


def say_blows(ledger: Ledger, blows: Sequence[Blow], cuts: dict[str, int]) -> None:
    """What was done to the processes."""
    for (kind, act), count in sorted(tally(blows).items()):
        ledger.say("", f"{kind} {_DONE[act]} {count} times")
    ledger.say("", f"connections cut in the middle of a reply: {_counts(Counter(cuts))}")


_DONE = {"kill": "killed", "stop": "stopped and continued", "restart": "restarted"}


def _story(note: Note, arrived: Sequence[Arrival]) -> str:
    told = [f"told {answer.id} due {answer.due:.3f}" for answer in note.accepted]
    came = [f"came at {arrival.instant:.3f} ({arrival.answer})" for arrival in arrived]
    return ", ".join([f"sent at {note.sent_at:.3f}", *(["in the inbox"] if note.added else []), *told, *came])


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{count} {name or 'delivered'}" for name, count in counter.most_common()) or "none"
