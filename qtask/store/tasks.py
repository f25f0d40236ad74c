"""Reads tasks, cancels and forgets them, retries and removes dead letters: one by its id, or a page of one state.

All of these are queries: `show(redis, …)` with a client of redis-py, `await show.run_async(redis, …)` with one of
redis.asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from redis import Redis

from qtask.model.errors import NotFound, WrongState
from qtask.model.ids import client_id, stored_id
from qtask.model.mask import Mask
from qtask.model.outcome import OUTCOMES_KEEP
from qtask.model.record import STATES, State, TaskRecord
from qtask.store import keys
from qtask.store.ledger import read_figures
from qtask.store.pages import LIMIT, Cursor, Page, Place, decode_cursor, queue_page, sorted_page, texts
from qtask.store.queries import Steps, commands, query
from qtask.store.scripts import Call, NoArguments, NoKeys, Script
from qtask.store.task_records import masked, read_records, state_of
from qtask.store.waiting import wait_of, waiting_page

BATCH = 500  # tasks that one script retries or removes, and that are searched at once
_OLDEST_DEAD = "dead, oldest first"  # the order of `find_dead`, as its cursors name it
_MASK = Mask()

# --- reading -------------------------------------------------------------------------------------------------------


@query
def show(task_id: str, mask: Mask = _MASK) -> Steps[TaskRecord]:
    """The task with this id, without its credentials. Raises `NotFound`.

    Args:
        task_id: its id.
        mask: which headers and query parameters are credentials.
    """
    stored = stored_id(task_id)
    (record,) = yield from read_records([stored])
    if record is not None and record.state == "waiting":
        waits_for = yield from wait_of(stored)
        if waits_for is None:  # it has begun meanwhile
            (record,) = yield from read_records([stored])
        elif record is not None:
            record = replace(record, waits_for=waits_for)
    if record is None:
        raise _not_found(task_id)
    return masked(record, mask)


def _not_found(task_id: str) -> NotFound:
    return NotFound(f"no task has the id {task_id!r}; it never existed, was removed, or has left the history")


@query
def list_page(
    queue: str, state: State, limit: int = 50, cursor: str = "", mask: Mask = _MASK
) -> Steps[Page[TaskRecord]]:
    """A page of the tasks of a queue in one state: tasks due next come first; of those that have ended, the newest.

    Waiting tasks are listed flow by flow, those of one flow in the order in which they begin.

    Args:
        queue: its name.
        state: state of the tasks.
        limit: most tasks on the page, from 1 to `pages.LIMIT`; it may have fewer even if there are more.
        cursor: cursor of the page before; empty for the first.
        mask: as for `show`.

    Raises `Refused` for a cursor of another list.
    """
    ids = yield from _ids_of(queue, state, limit, decode_cursor(cursor, state, queue))
    records = yield from read_records(ids.items)
    return Page([masked(record, mask) for record in records if record is not None], ids.cursor)


@query
def list_tasks(queue: str, state: State, limit: int = 50, mask: Mask = _MASK) -> Steps[list[TaskRecord]]:
    """Up to `limit` tasks of a queue in one state, in the order of `list_page`."""
    found: list[TaskRecord] = []
    cursor = ""
    while len(found) < limit:
        page = yield from list_page.steps(queue, state, limit - len(found), cursor, mask)
        found += page.items
        cursor = page.cursor
        if not cursor:
            break
    return found


def list_pages(
    redis: Redis, queue: str, state: State, limit: int = 50, mask: Mask = _MASK
) -> Iterator[list[TaskRecord]]:
    """The tasks of `list_tasks` in pages, so that not all of them are in memory at once."""
    cursor = ""
    while limit > 0:
        page = list_page(redis, queue, state, limit, cursor, mask)
        yield page.items
        limit -= len(page.items)
        cursor = page.cursor
        if not cursor:
            return


def _ids_of(queue: str, state: State, limit: int, cursor: Cursor) -> Steps[Page[str]]:
    if state == "queued":
        return (yield from queue_page(keys.queue(queue), cursor, limit))
    if state == "waiting":
        return (yield from waiting_page(cursor, limit))
    page = yield from sorted_page(_place_of(queue, state), cursor, limit)
    if state == "started":
        return Page([member.partition(":")[0] for member in page.items], page.cursor)
    return page


def _place_of(queue: str, state: State) -> Place:
    match state:
        case "scheduled":
            return Place(keys.SCHEDULE, shared=True)
        case "started":
            return Place(keys.started(queue))
        case "delivered":
            return Place(keys.finished(queue), reverse=True)
        case _:
            return Place(keys.failed(queue), reverse=True)


@query
def count_tasks(queue: str) -> Steps[dict[State, int]]:
    """How many tasks of a queue are in each state.

    The ledger counts the tasks that wait in flows. The schedule holds the tasks of all queues; the number for this
    queue follows from the ledger, if that balances. If it does not (other programs have put jobs into the schedule, or
    have deleted tasks), the whole schedule is read, in pages, which takes about a second for a million tasks.
    """
    others = yield commands(
        ("LLEN", keys.queue(queue)),
        ("ZCARD", keys.started(queue)),
        ("ZCARD", keys.finished(queue)),
        ("ZCARD", keys.failed(queue)),
    )
    figures = yield from read_figures.steps()
    scheduled = figures.scheduled_of(queue)
    if scheduled is None:
        scheduled = 0
        cursor = Cursor("scheduled", queue)
        while True:
            page = yield from sorted_page(_place_of(queue, "scheduled"), cursor, LIMIT)
            scheduled += len(page.items)
            if not page.cursor:
                break
            cursor = decode_cursor(page.cursor, "scheduled", queue)
    waiting = max(0, figures.ledger.get("held", {}).get(queue, 0))
    return dict(zip(STATES, [scheduled, waiting, *others], strict=True))


# --- finding dead letters ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filter:
    """Criteria for dead letters; None matches all.

    Attributes:
        type: `address.type`.
        error: kind of the last error, or the HTTP status as text.
        link, title: text that it contains.
    """

    type: str | None = None
    error: str | None = None
    link: str | None = None
    title: str | None = None

    def fits(self, record: TaskRecord) -> bool:
        """Whether a task matches."""
        last = record.outcomes[-1] if record.outcomes else None
        return (
            self.type in (None, record.type)
            and (self.error is None or (last is not None and self.error in (last.error, str(last.code))))
            and (self.link is None or self.link in record.link)
            and (self.title is None or self.title in record.title)
        )


@query
def find_dead_page(queue: str, wanted: Filter, cursor: str = "", limit: int = BATCH) -> Steps[Page[str]]:
    """A page of the ids, as clients know them, of matching dead letters, the oldest first.

    Tasks that die after the first page was read are on none of the pages, so a caller that retries what it
    finds comes to an end.

    Args:
        queue: its name.
        wanted: the criteria.
        cursor: cursor of the page before; empty for the first.
        limit: dead letters that are checked for this page, from 1 to `pages.LIMIT`; possibly none of them matches.

    Raises `Refused` for a cursor of another list.
    """
    place = Place(keys.failed(queue), bounded=True)
    ids = yield from sorted_page(place, decode_cursor(cursor, _OLDEST_DEAD, queue), limit)
    records = yield from read_records(ids.items)
    return Page([record.id for record in records if record is not None and wanted.fits(record)], ids.cursor)


@query
def find_dead(queue: str, wanted: Filter) -> Steps[list[str]]:
    """All ids of `find_dead_page`."""
    found: list[str] = []
    cursor = ""
    while True:
        page = yield from find_dead_page.steps(queue, wanted, cursor)
        found += page.items
        cursor = page.cursor
        if not cursor:
            return found


def dead_pages(redis: Redis, queue: str, wanted: Filter) -> Iterator[list[str]]:
    """The pages of `find_dead_page`, one after the other."""
    cursor = ""
    while True:
        page = find_dead_page(redis, queue, wanted, cursor)
        yield page.items
        cursor = page.cursor
        if not cursor:
            return


# --- changing one task ---------------------------------------------------------------------------------------------


class TaskArguments(NamedTuple):
    """See cancel.lua and forget_task.lua."""

    id: str


class CancelKeys(NamedTuple):
    """See cancel.lua."""

    schedule: str
    ledger: str
    stock_retries: str
    flows: str
    queues: str


CANCEL = Script("cancel", CancelKeys, TaskArguments)
FORGET_TASK = Script("forget_task", NoKeys, TaskArguments)


@query
def cancel(task_id: str) -> Steps[State]:
    """Removes a task that waits, and returns its state before that. The client may use its id again.

    Raises `NotFound`, or `WrongState` when the task is being delivered or has ended.
    """
    script_keys = CancelKeys(
        schedule=keys.SCHEDULE,
        ledger=keys.LEDGER,
        stock_retries=keys.STOCK_RETRIES,
        flows=keys.FLOWS,
        queues=keys.QUEUES,
    )
    state = _state_after(task_id, (yield CANCEL.call(script_keys, TaskArguments(id=stored_id(task_id)))))
    if state == "started":
        raise WrongState(state, f"task {task_id} is being delivered right now; it cannot be cancelled")
    if state == "delivered":
        raise WrongState(state, f"task {task_id} is already delivered; use forget to delete what is kept of it")
    if state == "dead":
        raise WrongState(state, f"task {task_id} is dead, so it will not be delivered; use remove to remove it")
    return state


@query
def forget(task_id: str) -> Steps[State]:
    """Forgets a delivered task before the end of its retention, and returns its state before that.

    An id that the client chose stays known (`idempotency_seconds` from the delivery), so that a second task with it is
    still answered as a duplicate. Raises `NotFound`, or `WrongState` when the task is not delivered.
    """
    state = _state_after(task_id, (yield FORGET_TASK.call(NoKeys(), TaskArguments(id=stored_id(task_id)))))
    if state != "delivered":
        verb = "remove" if state == "dead" else "cancel"
        raise WrongState(state, f"task {task_id} is {state}; only delivered tasks can be forgotten; use {verb}")
    return state


def _state_after(task_id: str, status: bytes | str) -> State:
    """The state that a script found a task in. Raises `NotFound`."""
    if not status:
        raise _not_found(task_id)
    return state_of(status)


# --- changing dead letters -----------------------------------------------------------------------------------------


class RetryKeys(NamedTuple):
    """See retry.lua."""

    queues: str
    stock_retries: str


class RetryArguments(NamedTuple):
    """See retry.lua."""

    outcomes_keep: int


class RemoveKeys(NamedTuple):
    """See remove_dead.lua."""

    ledger: str
    stock_retries: str


RETRY = Script("retry", RetryKeys, RetryArguments)
REMOVE_DEAD = Script("remove_dead", RemoveKeys, NoArguments)


@query
def retry(ids: Sequence[str]) -> Steps[list[str]]:
    """Puts dead tasks back into their queues, with all their attempts; returns the ids of those that were dead."""
    script_keys = RetryKeys(queues=keys.QUEUES, stock_retries=keys.STOCK_RETRIES)
    arguments = RetryArguments(outcomes_keep=OUTCOMES_KEEP)
    return (yield from _by_batches(ids, lambda batch: RETRY.call(script_keys, arguments, rest=batch)))


@query
def retry_one(task_id: str) -> Steps[State]:
    """As `retry`, for one task; returns the state it was in. Raises `NotFound`, or `WrongState` when it is not dead."""
    if not (yield from retry.steps([task_id])):
        state = (yield from show.steps(task_id)).state
        raise WrongState(state, f"task {task_id} is {state}; only dead tasks can be retried")
    return "dead"


@query
def remove_dead(ids: Sequence[str]) -> Steps[list[str]]:
    """Removes dead tasks; returns the ids of those that were dead. Clients may use these ids again."""
    script_keys = RemoveKeys(ledger=keys.LEDGER, stock_retries=keys.STOCK_RETRIES)
    return (yield from _by_batches(ids, lambda batch: REMOVE_DEAD.call(script_keys, NoArguments(), rest=batch)))


@query
def remove_one(task_id: str) -> Steps[State]:
    """As `remove_dead`, for one task; returns the state it was in.

    Raises `NotFound`, or `WrongState` when it is not dead.
    """
    if not (yield from remove_dead.steps([task_id])):
        state = (yield from show.steps(task_id)).state
        raise WrongState(state, f"task {task_id} is {state}; only dead tasks can be removed")
    return "dead"


def _by_batches(ids: Sequence[str], call_with: Callable[[list[str]], Call]) -> Steps[list[str]]:
    """Runs a script for one batch of ids after the other, so that Redis can serve others in between."""
    done: list[str] = []
    for start in range(0, len(ids), BATCH):
        done += texts((yield call_with([stored_id(task_id) for task_id in ids[start : start + BATCH]])))
    return [client_id(task_id) for task_id in done]
