"""A task as an RQ job: the fields of its hash, and how they are parsed."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from msgspec import UNSET

from qtask.destinations.parsing import TaskDecoder
from qtask.model.errors import Refused
from qtask.model.ids import instant_of
from qtask.model.task import Task
from qtask.model.timing import parse_instant

FUNCTION = "qtask.do"  # what a stock `rq worker` imports and calls; short, because every job names it

_ACCEPTED = b'["qtask.do",0,['  # how submit.lua begins the data of a job
_DECODER: TaskDecoder[tuple[str, int | None, tuple[Task], dict[str, Any]]] = TaskDecoder(
    lambda task: tuple[str, int | None, tuple[task], dict[str, Any]]  # type: ignore[valid-type]
)


def read_data(data: bytes) -> tuple[Task, bool]:
    """Parses the `data` field of a job hash.

    Returns the task, and whether QTask accepted it: another program may put a job with the same function into Redis
    through RQ or rq-scheduler, which write null where submit.lua writes 0.

    Raises `Refused` for a job that is not a task, such as one that another program put into the same queue.
    """
    if data[:1] != b"[":  # RQ compresses what its own tools write back
        try:
            data = zlib.decompress(data)
        except zlib.error:
            raise Refused("invalid_value", "data", "this job is not a task: its data is not RQ's JSON") from None
    try:
        try:
            function, instance, (task,), _ = _DECODER.decoder.decode(data)
        except msgspec.ValidationError as unknown:
            function, instance, (task,), _ = _DECODER.decode_anew(data, unknown)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _check_function(data)
        raise Refused("invalid_value", "data", f"this job is not a task: {error}") from None
    if function != FUNCTION:
        _check_function(data)
    return task, instance is not None


def is_foreign(data: bytes) -> bool:
    """Whether another program put this job into Redis, so that QTask never accepted it; by its `data` field."""
    if data[:1] != b"[":
        try:
            data = zlib.decompress(data)
        except zlib.error:
            return True
    return not data.startswith(_ACCEPTED)


def _check_function(data: bytes) -> None:
    """Raises `Refused` if a job calls another function, which is a better reason than an error in its arguments."""
    try:
        function = msgspec.json.decode(data)[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return
    if function != FUNCTION:
        raise Refused(
            "invalid_value", "data", f"this job is not a task: it calls {function!r}, a task calls {FUNCTION!r}"
        )


def due_of(task: Task, task_id: str, written: bytes | str | None) -> float:
    """The due instant of a task that has left the schedule, in Unix seconds.

    Args:
        task: the dict.
        task_id: its id, which holds the instant of acceptance.
        written: field `due` of the job, which QTask's scheduler writes and a stock rqscheduler does not.

    Returns 0.0 if it is unknown; then no lateness is measured. Raises `Refused` if `written` is not a number.
    """
    if written:
        try:
            return float(written)
        except ValueError:
            raise Refused("invalid_value", "due", f"the job's field due is not an instant: {written!r}") from None
    if task.settings.at is not UNSET:
        return parse_instant(task.settings.at)
    accepted = instant_of(task_id)
    if accepted is None or task.settings.id is not UNSET:
        return 0.0
    return accepted + (0.0 if task.settings.time is UNSET else task.settings.time)
