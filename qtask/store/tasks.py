"""Looking at tasks, removing them, retrying the dead: one by id, or a page of those in one state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from msgspec import UNSET
from redis import Redis

from qtask.errors import NotFound, QTaskError, Refused
from qtask.ids import instant_of
from qtask.outcome import OUTCOMES_KEEP, decode_outcomes
from qtask.record import STATES, State, TaskRecord
from qtask.store import keys
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


def show(redis: Redis, task_id: str) -> TaskRecord:
    """The task with this id. Raises `NotFound`."""
    (record,) = _records(redis, [task_id])
    if record is None:
        raise NotFound(f"no task has the id {task_id!r}; it never existed, was removed, or has left the history")
    return record


def list_tasks(redis: Redis, queue: str, state: State, limit: int = 50) -> list[TaskRecord]:
    """Up to `limit` tasks in one state: what is due next comes first, of what has ended the newest."""
    ids = _IDS[state](redis, queue, limit)
    return [record for record in _records(redis, ids) if record is not None]


def count_tasks(redis: Redis, queue: str) -> dict[State, int]:
    """How many tasks are in each state."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.zcard(keys.SCHEDULE)
        pipeline.llen(keys.queue(queue))
        pipeline.zcard(keys.started(queue))
        pipeline.zcard(keys.finished(queue))
        pipeline.zcard(keys.failed(queue))
        return dict(zip(STATES, pipeline.execute(), strict=True))


def cancel(redis: Redis, task_id: str) -> State:
    """Removes a task that is not being delivered, and returns the state it was in.

    Raises `NotFound`, or `QTaskError` while the task is being delivered.
    """
    prefixes = [
        *(keys.JOB_PREFIX, keys.QUEUE_PREFIX, keys.FINISHED_PREFIX, keys.FAILED_PREFIX),
        *(keys.RESULTS_PREFIX, keys.ID_PREFIX),
    ]
    status = _text(script("cancel").run(redis, [keys.SCHEDULE], [task_id, *prefixes]))
    if not status:
        raise NotFound(f"no task has the id {task_id!r}; it never existed, was removed, or has left the history")
    if status == "started":
        raise QTaskError(f"task {task_id} is being delivered right now; cancel it when that has ended")
    return _STATE_OF_STATUS.get(status, "scheduled")


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
    """Ids of the dead of now that fit, the oldest first, a page of some hundreds at a time."""
    ids = _texts(redis.zrange(keys.failed(queue), 0, -1))
    for start in range(0, len(ids), _PAGE):
        records = _records(redis, ids[start : start + _PAGE])
        yield [record.id for record in records if record is not None and wanted.fits(record)]


def retry(redis: Redis, ids: Sequence[str]) -> list[str]:
    """Puts dead tasks back into their queues, with all their attempts; returns the ids of those that were dead."""
    prefixes = (keys.JOB_PREFIX, keys.QUEUE_PREFIX, keys.FAILED_PREFIX, keys.RESULTS_PREFIX)
    return _by_the_page(redis, "retry", [keys.QUEUES], [*prefixes, OUTCOMES_KEEP], ids)


def retry_one(redis: Redis, task_id: str) -> State:
    """As `retry`, for one task; returns the state it was in. Raises `NotFound`, or `QTaskError` when it is not dead."""
    if not retry(redis, [task_id]):
        raise QTaskError(f"task {task_id} is {show(redis, task_id).state}; only what is dead is retried")
    return "dead"


def remove_dead(redis: Redis, ids: Sequence[str]) -> list[str]:
    """Removes dead tasks; returns the ids of those that were dead."""
    prefixes = (keys.JOB_PREFIX, keys.FAILED_PREFIX, keys.RESULTS_PREFIX)
    return _by_the_page(redis, "remove_dead", [], prefixes, ids)


def _by_the_page(
    redis: Redis, name: str, script_keys: list[str], arguments: Sequence[Value], ids: Sequence[str]
) -> list[str]:
    """Runs a script for a page of ids after the other, so that others get their turn at Redis."""
    done: list[str] = []
    for start in range(0, len(ids), _PAGE):
        done += _texts(script(name).run(redis, script_keys, [*arguments, *ids[start : start + _PAGE]]))
    return done


_PAGE = 500
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
        task = read_data(data)
        begun = due_of(task, task_id, due)
    except Refused:
        pass  # the outcome says what is wrong with it
    else:
        title, kind, link, body = task.title, task.kind, task.address.link, msgspec.json.encode(task)
        accepted = accepted if task.settings.id is UNSET else None
    return TaskRecord(
        id=task_id,
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
    return _texts(redis.zrange(keys.SCHEDULE, 0, limit - 1))


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
