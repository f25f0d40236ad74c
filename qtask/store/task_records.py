"""Task records: read from the jobs, with credentials masked for display."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, structs

from qtask.model.errors import Refused
from qtask.model.ids import client_id, instant_of
from qtask.model.mask import Mask
from qtask.model.outcome import decode_outcomes
from qtask.model.record import State, TaskRecord
from qtask.store import keys
from qtask.store.job import due_of, read_data
from qtask.store.pages import text
from qtask.store.queries import Steps, commands

_STATE_OF_STATUS: dict[str, State] = {
    "scheduled": "scheduled",
    "queued": "queued",
    "deferred": "waiting",
    "started": "started",
    "finished": "delivered",
    "failed": "dead",
    "stopped": "dead",  # by `rq`'s command to stop a job, in a stock worker
}
_NO_TASK = "unknown"  # in place of the type


class _Job(NamedTuple):
    """The fields of a job that are read."""

    data: bytes | None
    status: bytes | None
    origin: bytes | None
    due: bytes | None
    attempt: bytes | None
    outcomes: bytes | None
    history: bytes | None


def state_of(status: bytes | str | None) -> State:
    """The state of a task, by the status of its job; a job in the schedule is scheduled, whatever its status."""
    return _STATE_OF_STATUS.get(text(status), "scheduled")


def read_records(ids: Sequence[str]) -> Steps[list[TaskRecord | None]]:
    """The tasks with these stored ids; None for an id without a task."""
    asked = [
        command
        for task_id in ids
        for command in (("HMGET", keys.job(task_id), *_Job._fields), ("ZSCORE", keys.SCHEDULE, task_id))
    ]
    replies = (yield commands(*asked)) if asked else []
    rows = zip(ids, replies[::2], replies[1::2], strict=True)
    return [_record(task_id, _Job._make(row), score) for task_id, row, score in rows]


def _record(task_id: str, job: _Job, scheduled_at: float | None) -> TaskRecord | None:
    if job.data is None:
        return None
    ended = decode_outcomes(job.history or b"") + decode_outcomes(job.outcomes or b"")
    accepted = instant_of(task_id)
    begun = ended[0].started if ended else 0.0
    title, task_type, link, body = "", _NO_TASK, "", b"null"
    try:
        task, _ = read_data(job.data)
        begun = due_of(task, task_id, job.due)
    except Refused:
        pass  # the outcome says what is wrong with it
    else:
        title, task_type, link, body = task.title, task.type, task.address.link, msgspec.json.encode(task)
        accepted = accepted if task.settings.id is UNSET else None
    return TaskRecord(
        id=client_id(task_id),
        state="scheduled" if scheduled_at is not None else state_of(job.status),
        queue=text(job.origin),
        due=begun if scheduled_at is None or job.attempt else scheduled_at,
        retry_at=scheduled_at if job.attempt else None,
        accepted=accepted,
        attempts=int(job.attempt or 0),
        title=title,
        type=task_type,
        link=link,
        task=msgspec.json.decode(body),
        outcomes=ended,
    )


def masked(record: TaskRecord, mask: Mask) -> TaskRecord:
    """A record with credentials masked, in the task and in the answers that repeat them."""
    body, found = mask.task(msgspec.json.encode(record.task))
    outcomes = [
        structs.replace(one, answer=mask.answer(one.answer, found), message=mask.answer(one.message, found))
        for one in record.outcomes
    ]
    title, link = mask.text(record.title), mask.text(record.link)
    shown: Any = msgspec.json.decode(body)
    return replace(record, title=title, link=link, task=shown, outcomes=outcomes)
