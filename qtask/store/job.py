"""A task as an RQ job: what stands in its hash, and how it is read back."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from qtask.errors import Refused
from qtask.task import Task

FUNCTION = "qtask.deliver"  # what a stock `rq worker` imports and calls

_DECODER = msgspec.json.Decoder(tuple[str, None, tuple[Task, float], dict[str, Any]])


def read_data(data: bytes) -> tuple[Task, float]:
    """Reads the `data` field of a job hash.

    Returns the task and its due instant in Unix seconds. Raises `Refused` for a job that is no task, such as
    one that another program put into the same queue.
    """
    if data[:1] != b"[":  # RQ compresses what its own tools write back
        try:
            data = zlib.decompress(data)
        except zlib.error:
            raise Refused("invalid_value", "data", "this job is no task: its data is not RQ's JSON") from None
    try:
        function, _, (task, due), _ = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("invalid_value", "data", f"this job is no task: {error}") from None
    if function != FUNCTION:
        raise Refused("invalid_value", "data", f"this job is no task: it calls {function!r}, a task calls {FUNCTION!r}")
    return task, due
