"""Looking at tasks, removing them, retrying the dead: one by id, or a page of those in one state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
from msgspec import UNSET, structs
from redis import Redis

from qtask.model.errors import NotFound, Refused, WrongState
from qtask.model.ids import client_id, instant_of, stored_id
from qtask.model.mask import Mask
from qtask.model.outcome import OUTCOMES_KEEP, decode_outcomes
from qtask.model.record import STATES, State, TaskRecord
from qtask.store import audit, keys
from qtask.store.job import due_of, read_data
from qtask.store.scripts import Value, script

_STATE_OF_STATUS: dict[str, State] = {
    "scheduled": "scheduled",
    "queued": "queued",
    "started": "started",
    "finished": "delivered",
    "failed": "dead",
    "stopped": "dead",  # by `rq`'s command to stop a job, in a stock worker
}
_NO_TASK = "unknown"  # in place of the kind
_MASK = Mask()


def show(redis: Redis, task_id: str, mask: Mask = _MASK) -> TaskRecord:
    """The task with this id, without its credentials. Raises `NotFound`.

    Args:
        redis: a client.
        task_id: its id.
        mask: which headers and query parameters are credentials.
    """
    (record,) = _records(redis, [stored_id(task_id)])
    if record is None:
        raise _not_found(task_id)
    return _masked(record, mask)


def _not_found(task_id: str) -> NotFound:
    return NotFound(f"no task has the id {task_id!r}; it never existed, was removed, or has left the history")


def list_tasks(redis: Redis, queue: str, state: State, limit: int = 50, mask: Mask = _MASK) -> list[TaskRecord]:
    """Up to `limit` tasks of a queue in one state: what is due next comes first, of what has ended the newest.

    Their credentials are masked, as `show` does it.
    """
    ids = _IDS[state](redis, queue, limit)
    return [_masked(record, mask) for record in _records(redis, ids) if record is not None]


def _masked(record: TaskRecord, mask: Mask) -> TaskRecord:
    """A record as it may be shown: credentials are masked in the task, and in the answers that repeat them."""
    body, found = mask.task(msgspec.json.encode(record.task))
    outcomes = [
        structs.replace(one, answer=mask.answer(one.answer, found), message=mask.answer(one.message, found))
        for one in record.outcomes
    ]
    title, link = mask.text(record.title), mask.text(record.link)
    return replace(record, title=title, link=link, task=msgspec.json.decode(body), outcomes=outcomes)


def count_tasks(redis: Redis, queue: str) -> dict[State, int]:
    """How many tasks of a queue are in each state.

    The schedule holds the tasks of all queues. How many of them are of this queue follows from the ledger, as long as
    that balances. Where it does not (other programs have put jobs into the schedule, or have deleted tasks), the whole
    schedule is looked through, a page at a time: about a second for a million tasks.
    """
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.llen(keys.queue(queue))
        pipeline.zcard(keys.started(queue))
        pipeline.zcard(keys.finished(queue))
        pipeline.zcard(keys.failed(queue))
        others = pipeline.execute()
    scheduled = audit.read_figures(redis).scheduled_of(queue)
    if scheduled is None:
        scheduled = sum(len(page) for page in _schedule_pages(redis, queue))
    return dict(zip(STATES, [scheduled, *others], strict=True))


def _schedule_pages(redis: Redis, queue: str) -> Iterator[list[str]]:
    """Stored ids of the tasks of one queue in the schedule, the next due first, a page of the schedule at a time."""
    start = 0
    while True:
        arguments: list[Value] = [keys.JOB_PREFIX, queue, start, _SCHEDULE_PAGE]
        looked_at, *ids = script("schedule_page").run(redis, [keys.SCHEDULE], arguments)
        yield _texts(ids)
        if looked_at < _SCHEDULE_PAGE:
            return
        start += looked_at


def cancel(redis: Redis, task_id: str) -> State:
    """Removes a task that waits, and returns the state that it was in. The client may use its id again.

    Raises `NotFound`, or `WrongState` when the task is being delivered or has ended.
    """
    prefixes = [
        *(keys.JOB_PREFIX, keys.QUEUE_PREFIX, keys.FAILED_PREFIX, keys.CANCELLED_PREFIX, keys.RESULTS_PREFIX),
    ]
    known = [keys.SCHEDULE, keys.LEDGER, keys.STOCK_RETRIES]
    state = _state_after(task_id, script("cancel").run(redis, known, [stored_id(task_id), *prefixes]))
    if state == "started":
        raise WrongState(state, f"task {task_id} is being delivered right now; it cannot be cancelled")
    if state == "delivered":
        raise WrongState(state, f"task {task_id} is delivered already; to have it forgotten, use forget")
    if state == "dead":
        raise WrongState(state, f"task {task_id} is dead, so it is not delivered any more; to remove it, use remove")
    return state


def forget(redis: Redis, task_id: str) -> State:
    """Forgets a delivered task before the end of its keeping, and returns the state that it was in.

    An id that the client chose stays remembered (`idempotency_seconds` from the delivery), so that a second task with
    it is still answered as a duplicate. Raises `NotFound`, or `WrongState` when the task is not delivered.
    """
    prefixes = [keys.JOB_PREFIX, keys.FINISHED_PREFIX, keys.RESULTS_PREFIX]
    state = _state_after(task_id, script("forget_task").run(redis, [], [stored_id(task_id), *prefixes]))
    if state != "delivered":
        verb = "remove" if state == "dead" else "cancel"
        raise WrongState(state, f"task {task_id} is {state}; only what is delivered is forgotten, so use {verb}")
    return state


def _state_after(task_id: str, status: bytes | str) -> State:
    """The state that a script found a task in. Raises `NotFound`."""
    if not status:
        raise _not_found(task_id)
    return _STATE_OF_STATUS.get(_text(status), "scheduled")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks are meant; what is None does not matter.

    Attributes:
        kind: `address.type`.
        error: kind of the last error, or the HTTP status as text.
        link, title: a part of it.
    """

    kind: str | None = None
    error: str | None = None
    link: str | None = None
    title: str | None = None

    def fits(self, record: TaskRecord) -> bool:
        """Whether a task is among them."""
        last = record.outcomes[-1] if record.outcomes else None
        return (
            self.kind in (None, record.kind)
            and (self.error is None or (last is not None and self.error in (last.error, str(last.code))))
            and (self.link is None or self.link in record.link)
            and (self.title is None or self.title in record.title)
        )


def find_dead(redis: Redis, queue: str, wanted: Filter) -> Iterator[list[str]]:
    """Ids, as clients know them, of the dead of now that fit, the oldest first, a page of some hundreds at a time."""
    ids = _texts(redis.zrange(keys.failed(queue), 0, -1))
    for start in range(0, len(ids), _PAGE):
        records = _records(redis, ids[start : start + _PAGE])
        yield [record.id for record in records if record is not None and wanted.fits(record)]


def retry(redis: Redis, ids: Sequence[str]) -> list[str]:
    """Puts dead tasks back into their queues, with all their attempts; returns the ids of those that were dead."""
    prefixes = (keys.JOB_PREFIX, keys.QUEUE_PREFIX, keys.FAILED_PREFIX, keys.RESULTS_PREFIX)
    return _by_the_page(redis, "retry", [keys.QUEUES, keys.STOCK_RETRIES], [*prefixes, OUTCOMES_KEEP], ids)


def retry_one(redis: Redis, task_id: str) -> State:
    """As `retry`, for one task; returns the state it was in. Raises `NotFound`, or `WrongState` when it is not dead."""
    if not retry(redis, [task_id]):
        state = show(redis, task_id).state
        raise WrongState(state, f"task {task_id} is {state}; only what is dead is retried")
    return "dead"


def remove_dead(redis: Redis, ids: Sequence[str]) -> list[str]:
    """Removes dead tasks; returns the ids of those that were dead. Clients may use these ids again."""
    prefixes = (keys.JOB_PREFIX, keys.FAILED_PREFIX, keys.RESULTS_PREFIX)
    return _by_the_page(redis, "remove_dead", [keys.LEDGER, keys.STOCK_RETRIES], prefixes, ids)


def remove_one(redis: Redis, task_id: str) -> State:
    """As `remove_dead`, for one task; returns the state it was in.

    Raises `NotFound`, or `WrongState` when it is not dead.
    """
    if not remove_dead(redis, [task_id]):
        state = show(redis, task_id).state
        raise WrongState(state, f"task {task_id} is {state}; only what is dead is removed")
    return "dead"


def _by_the_page(
    redis: Redis, name: str, script_keys: list[str], arguments: Sequence[Value], ids: Sequence[str]
) -> list[str]:
    """Runs a script for a page of ids after the other, so that others get their turn at Redis."""
    done: list[str] = []
    for start in range(0, len(ids), _PAGE):
        page = [stored_id(task_id) for task_id in ids[start : start + _PAGE]]
        done += _texts(script(name).run(redis, script_keys, [*arguments, *page]))
    return [client_id(task_id) for task_id in done]


_PAGE = 500
_SCHEDULE_PAGE = 1_000  # jobs that one script looks at: about a millisecond
_FIELDS = ("data", "status", "origin", "due", "attempt", "outcomes", "history")


def _records(redis: Redis, ids: Sequence[str]) -> list[TaskRecord | None]:
    # No transaction: Redis would refuse it when it has no memory, when people look most.
    with redis.pipeline(transaction=False) as pipeline:
        for task_id in ids:
            pipeline.hmget(keys.job(task_id), *_FIELDS)
            pipeline.zscore(keys.SCHEDULE, task_id)
        replies = pipeline.execute()
    return [_record(task_id, row, score) for task_id, row, score in zip(ids, replies[::2], replies[1::2], strict=True)]


def _record(task_id: str, row: Sequence[Any], scheduled_at: float | None) -> TaskRecord | None:
    data, status, origin, due, attempt, outcomes, history = row
    if data is None:
        return None
    if scheduled_at is not None:
        status = "scheduled"
    ended = decode_outcomes(history or b"") + decode_outcomes(outcomes or b"")
    accepted = instant_of(task_id)
    begun = ended[0].started if ended else 0.0
    title, kind, link, body = "", _NO_TASK, "", b"null"
    try:
        task, _ = read_data(data)
        begun = due_of(task, task_id, due)
    except Refused:
        pass  # the outcome says what is wrong with it
    else:
        title, kind, link, body = task.title, task.kind, task.address.link, msgspec.json.encode(task)
        accepted = accepted if task.settings.id is UNSET else None
    return TaskRecord(
        id=client_id(task_id),
        state=_STATE_OF_STATUS.get(_text(status), "scheduled"),
        queue=_text(origin),
        due=begun if scheduled_at is None or attempt else scheduled_at,
        retry_at=scheduled_at if attempt else None,
        accepted=accepted,
        attempts=int(attempt or 0),
        title=title,
        kind=kind,
        link=link,
        task=msgspec.json.decode(body),
        outcomes=ended,
    )


def _scheduled(redis: Redis, queue: str, limit: int) -> list[str]:
    found: list[str] = []
    for page in _schedule_pages(redis, queue):
        found += page
        if len(found) >= limit:
            break
    return found[:limit]


def _queued(redis: Redis, queue: str, limit: int) -> list[str]:
    return _texts(redis.lrange(keys.queue(queue), 0, limit - 1))


def _started(redis: Redis, queue: str, limit: int) -> list[str]:
    return [member.partition(":")[0] for member in _texts(redis.zrange(keys.started(queue), 0, limit - 1))]


def _delivered(redis: Redis, queue: str, limit: int) -> list[str]:
    return _texts(redis.zrevrange(keys.finished(queue), 0, limit - 1))


def _dead(redis: Redis, queue: str, limit: int) -> list[str]:
    return _texts(redis.zrevrange(keys.failed(queue), 0, limit - 1))


_IDS = {
    "scheduled": _scheduled,
    "queued": _queued,
    "started": _started,
    "delivered": _delivered,
    "dead": _dead,
}


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _texts(values: object) -> list[str]:
    return [_text(value) for value in cast("list[bytes | str]", values)]
