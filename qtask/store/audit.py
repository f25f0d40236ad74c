"""The audit: counters that the scripts keep, against what Redis holds.

Every accepted task waits, is queued, is in flight, was delivered, is dead, was cancelled, or was removed. The scripts
count a task when it enters and when it leaves, in the step that moves it (`qtask:ledger`); tasks in between are counted
where they are. So the equation holds at any instant, even while tasks are being processed.

Jobs that other programs put into Redis by RQ or rq-scheduler were never accepted by QTask. No counter knows them; those
that are in our queues, or in the schedule, are found by their data and left out.

RQ's own tools delete jobs without a trace (`rq empty`, rq-dashboard). Where they leave an id behind, the script that
finds it counts it as deleted. The rest is missing, and the audit reports it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from qtask.model.ids import client_id
from qtask.store import keys
from qtask.store.job import is_foreign
from qtask.store.ledger import Figures, read_figures

PAGE = 500  # members per command; a larger page would block Redis for others
SMALL = 10  # members of flows that are read together with those of other flows
OVERLAP = 100  # ids that two pages of a list share, since tasks may be taken out in between
SETTLE_SECONDS = 0.2  # between two looks at suspects: a stock worker moves its jobs with several commands
LOOKS = 5
EXAMPLES = 100  # ids listed for each kind of fault

# The places of a job, one bit each.
SCHEDULE, FLOW, QUEUE, STARTED, DEAD, CANCELLED_BY_RQ, HISTORY = (1 << bit for bit in range(7))
# Slots of flows, which are no places: one that only a task in the queue or in flight may have, and one that a scheduled
# task may have as well, as it does in an ordered flow.
SLOT, LASTING_SLOT = 1 << 7, 1 << 8
_NAMES = {
    SCHEDULE: "schedule",
    FLOW: "flow",
    QUEUE: "queue",
    STARTED: "started",
    DEAD: "dead",
    CANCELLED_BY_RQ: "cancelled by RQ",
    HISTORY: "history",
}
_HAS_JOB = 1 << 9
_PLACES = HISTORY * 2 - 1
_COUNTED = _PLACES & ~HISTORY


@dataclass(slots=True)
class Audit:
    """The result of an audit.

    Attributes:
        accepted: tasks accepted so far.
        scheduled, in_flows, queued, started, delivered, dead, cancelled, removed: where these tasks are, or how they
            ended; `removed` includes those dead letters that were dropped because of `dead_retention_count`.
        deleted: tasks that another program deleted while they waited.
        written_off: tasks that were missing at an earlier audit, and written off there.
        missing: accepted tasks that are nowhere; negative if there are more tasks than were accepted.
        expired, dropped: how many of the dead and of the removed tasks expired, and how many were dropped.
        duplicates: submissions that were answered as duplicates.
        foreign: jobs of other programs among ours.
        faults: maps a fault to the ids that have it, at most `EXAMPLES` each.
    """

    accepted: int
    scheduled: int
    in_flows: int
    queued: int
    started: int
    delivered: int
    dead: int
    cancelled: int
    removed: int
    deleted: int
    written_off: int
    missing: int
    expired: int
    dropped: int
    duplicates: int
    foreign: int
    faults: dict[str, list[str]] = field(default_factory=dict)

    @property
    def balances(self) -> bool:
        """Whether every accepted task is accounted for, and none is in a wrong place."""
        return not self.missing and not self.faults


def audit(redis: Redis) -> Audit:
    """Compares the ledger with the jobs in Redis, and finds jobs in wrong places.

    It reads every job once, in pages that take Redis about a millisecond each. For a million tasks it takes about half
    a minute and 130 MB.
    """
    walk = _Walk(redis, read_figures(redis))
    suspects = walk.suspects
    figures, missing = walk.compare()
    for _ in range(LOOKS):
        if not (suspects or missing):
            break
        time.sleep(SETTLE_SECONDS)
        suspects = walk.look_again(suspects)
        if missing:
            figures, missing = walk.compare()
    foreign = walk.foreign_by_place()
    rest = figures.queues.values()
    return Audit(
        accepted=figures.total("accepted"),
        scheduled=figures.scheduled - foreign[SCHEDULE],
        in_flows=figures.total("held") - foreign[FLOW],
        queued=sum(one.queued for one in rest) - foreign[QUEUE],
        started=sum(one.started for one in rest) - foreign[STARTED],
        delivered=figures.total("delivered"),
        dead=sum(one.dead for one in rest) - figures.stock_retries - foreign[DEAD],
        cancelled=figures.total("cancelled") + sum(one.cancelled_by_rq for one in rest) - foreign[CANCELLED_BY_RQ],
        removed=figures.total("removed") + figures.total("dropped"),
        deleted=figures.total("deleted"),
        written_off=figures.total("written_off"),
        missing=missing,
        expired=figures.total("expired"),
        dropped=figures.total("dropped"),
        duplicates=figures.total("duplicates"),
        foreign=foreign.total(),
        faults=_by_fault(suspects),
    )


def write_off(redis: Redis, missing: int) -> None:
    """Counts tasks that an audit found missing as gone, so that later audits balance."""
    redis.hincrby(keys.LEDGER, "written_off:", missing)


def _by_fault(suspects: dict[str, str]) -> dict[str, list[str]]:
    faults: dict[str, list[str]] = {}
    for stored, fault in sorted(suspects.items()):
        examples = faults.setdefault(fault, [])
        if len(examples) < EXAMPLES:
            examples.append(client_id(stored))
    return faults


class _Walk:
    """One pass over all places and all jobs.

    Attributes:
        suspects: maps stored ids to their fault. Tasks that moved during the walk are among them.
        foreign: maps stored ids of other programs' jobs to their places, without the history.
    """

    def __init__(self, redis: Redis, before: Figures) -> None:
        self._redis = redis
        self._before = before
        places = self._read_places(before.queues)
        self.foreign: dict[str, int] = {}
        self.suspects: dict[str, str] = {}
        for page in self._job_pages():
            self._note_jobs(page, places)
        for task_id, found in places.items():
            if not found & _HAS_JOB or _are_several(found) or _slot_is_lost(found):
                self.suspects[task_id] = ""
        self.suspects = self.look_again(self.suspects)

    def compare(self) -> tuple[Figures, int]:
        """The current figures, and how many tasks are missing: none if these or the ones before the walk balance.

        If jobs of other programs come and go during the walk, only bounds of their number are known.
        """
        now = read_figures(self._redis)
        gaps = [figures.held - figures.owed for figures in (self._before, now)]
        self._before = now
        foreign = self.foreign_by_place().total()
        return now, 0 if min(gaps) <= foreign <= max(gaps) else foreign - gaps[1]

    def foreign_by_place(self) -> Counter[int]:
        """How many of other programs' jobs are in each place; one that repeats may be in two."""
        return Counter(place for places in self.foreign.values() for place in _NAMES if places & place)

    def look_again(self, suspects: Iterable[str]) -> dict[str, str]:
        """The suspects that did not move during this look, mapped to their fault."""
        ids = list(suspects)
        if not ids:
            return {}
        before = self._signatures(ids)
        places = self._read_places(self._before.queues, set(ids))
        after = self._signatures(ids)
        found: dict[str, str] = {}
        for task_id, one, other in zip(ids, before, after, strict=True):
            has_job, waits_for_stock = one[0], one[1]
            fault = _fault(places.get(task_id, 0), has_job, waits_for_stock)
            if one == other and fault:
                found[task_id] = fault
        return found

    def _note_jobs(self, page: list[str], places: dict[str, int]) -> None:
        with self._redis.pipeline(transaction=False) as pipeline:
            for task_id in page:
                pipeline.hget(keys.job(task_id), "created_at")
            saved_by_rq = [task_id for task_id, at in zip(page, pipeline.execute(), strict=True) if at is not None]
        foreign = set(self._foreign(saved_by_rq))
        for task_id in page:
            found = places.get(task_id, 0)
            if task_id in foreign:
                places.pop(task_id, None)
                if found & _COUNTED:
                    self.foreign[task_id] = found & _COUNTED
            elif found:
                places[task_id] = found | _HAS_JOB
            else:
                self.suspects[task_id] = ""

    def _foreign(self, ids: list[str]) -> Iterator[str]:
        for start in range(0, len(ids), OVERLAP):  # dicts may be large
            part = ids[start : start + OVERLAP]
            with self._redis.pipeline(transaction=False) as pipeline:
                for task_id in part:
                    pipeline.hget(keys.job(task_id), "data")
                yield from (one for one, data in zip(part, pipeline.execute(), strict=True) if is_foreign(data or b""))

    def _signatures(self, ids: list[str]) -> list[tuple[Any, ...]]:
        """Values that change when a task moves, beginning with: does it have a job, will a stock worker retry it."""
        found = []
        for start in range(0, len(ids), OVERLAP):
            part = ids[start : start + OVERLAP]
            with self._redis.pipeline(transaction=False) as pipeline:
                for task_id in part:
                    pipeline.exists(keys.job(task_id))
                    pipeline.sismember(keys.STOCK_RETRIES, task_id)
                    pipeline.hmget(keys.job(task_id), "status", "attempt", "outcomes", "last_heartbeat")
                    pipeline.zscore(keys.SCHEDULE, task_id)
                replies = pipeline.execute()
            found += [(*replies[i : i + 2], tuple(replies[i + 2]), replies[i + 3]) for i in range(0, len(replies), 4)]
        return found

    def _read_places(self, queues: Iterable[str], wanted: set[str] | None = None) -> dict[str, int]:
        """Maps every id, or every wanted id, to its places."""
        places: dict[str, int] = {}

        def note(place: int, ids: Iterable[bytes]) -> None:
            for raw in ids:
                task_id = raw.partition(b":")[0].decode()
                if wanted is None or task_id in wanted:
                    places[task_id] = places.get(task_id, 0) | place

        # Read in the direction in which tasks move, so that few of them are missed.
        note(SCHEDULE, self._members(keys.SCHEDULE))
        for names in self._flow_pages():
            for waiting, slots, place in self._read_flows(names):
                note(FLOW, (one.rpartition(b":")[2] for one in waiting))
                note(place, slots)
        for queue in queues:
            note(QUEUE, self._list(keys.queue(queue)))
            note(QUEUE, self._list(keys.queue(queue) + keys.INTERMEDIATE_SUFFIX))
            note(STARTED, self._members(keys.started(queue)))
            note(DEAD, self._members(keys.failed(queue)))
            note(CANCELLED_BY_RQ, self._members(keys.CANCELLED_PREFIX + queue))
            note(HISTORY, self._members(keys.finished(queue)))
        return places

    def _flow_pages(self) -> Iterator[list[str]]:
        cursor = 0
        while True:
            cursor, page = cast(
                "tuple[int, list[tuple[bytes, float]]]", self._redis.zscan(keys.FLOWS, cursor, count=PAGE)
            )
            yield [name.decode() for name, _ in page]
            if not cursor:
                return

    def _read_flows(self, names: list[str]) -> Iterator[tuple[Iterable[bytes], Iterable[bytes], int]]:
        """For each flow the tasks that wait, those that hold a slot, and which kind of slots these are."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.zrange(keys.WAITING_PREFIX + name, 0, SMALL - 1)
                pipeline.zrange(keys.SLOTS_PREFIX + name, 0, SMALL - 1)
                pipeline.hmget(keys.FLOW_PREFIX + name, "ordered", "parallel", "rate")
            replies = pipeline.execute()
        for name, waiting, slots, limits in zip(names, replies[::3], replies[1::3], replies[2::3], strict=True):
            ordered, parallel, rate = limits
            yield (
                waiting if len(waiting) < SMALL else self._members(keys.WAITING_PREFIX + name),
                slots if len(slots) < SMALL else self._members(keys.SLOTS_PREFIX + name),
                LASTING_SLOT if ordered or not (parallel or rate) else SLOT,
            )

    def _members(self, key: str) -> Iterator[bytes]:
        for member, _ in self._redis.zscan_iter(key, count=PAGE):
            yield member

    def _list(self, key: str) -> Iterator[bytes]:
        """Reads from the tail to the head, so that tasks taken from the head do not shift the others."""
        end = -1
        while True:
            page: list[Any] = self._redis.lrange(key, end - PAGE + 1, end)
            yield from page
            if len(page) < PAGE:
                return
            end -= PAGE - OVERLAP

    def _job_pages(self) -> Iterator[list[str]]:
        cursor = 0
        while True:
            cursor, found = cast(
                "tuple[int, list[bytes]]", self._redis.scan(cursor, keys.JOB_PREFIX + "*", PAGE, "hash")
            )
            names = [key.decode().removeprefix(keys.JOB_PREFIX) for key in found]
            yield [name for name in names if ":" not in name]
            if not cursor:
                return


def _are_several(found: int) -> bool:
    found &= _PLACES
    return bool(found & (found - 1))


def _slot_is_lost(found: int) -> bool:
    """Whether an id has a slot in a flow, and is in no place in which a task may have one."""
    if found & LASTING_SLOT:
        return not found & (QUEUE | STARTED | SCHEDULE)
    return bool(found & SLOT) and not found & (QUEUE | STARTED)


def _fault(found: int, has_job: bool, waits_for_stock: bool) -> str:
    """The fault of an id that is in these places, in words; empty if there is none."""
    if waits_for_stock and found & _PLACES == SCHEDULE | DEAD:
        found &= ~DEAD
    names = [name for place, name in _NAMES.items() if found & place]
    if not has_job and names:
        return "ids without a job hash"
    if _slot_is_lost(found):
        return "slots of flows without a task in flight"
    if not has_job:
        return ""
    if not names:
        return "job hashes in no place"
    return f"tasks in several places ({', '.join(names)})" if len(names) > 1 else ""
