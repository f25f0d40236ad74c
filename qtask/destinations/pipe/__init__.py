"""`pipe` tasks: the JSON of `settings.data.data`, as one line, to a FIFO in the pipe folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Unpack

from msgspec import UNSET, Raw

from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import Refused
from qtask.model.link import FIELD, shown
from qtask.model.task import Address, Part, Task
from qtask.model.validation import DataReader

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)


class PipeAddress(Address, frozen=True, tag_field="type", tag="pipe"):
    """`link`: the name of a FIFO in the pipe folder."""


class PipeData(Part, frozen=True):
    """The data of a `pipe` task: the JSON of `data` is written as one line."""

    data: Raw


_READER = DataReader(PipeData, {"data": "; any JSON for pipe"})


def pipe_data(task: Task) -> PipeData:
    """The data of a `pipe` task. Raises `Refused` if it has another form."""
    return _READER.read(task)


def check_pipe(link: str) -> str:
    """Returns the name of a pipe unchanged. Raises `Refused` for a name that could leave the pipe folder."""
    if not _NAME.fullmatch(link):
        raise Refused(
            "invalid_value",
            FIELD,
            "the name of a pipe is 1 to 100 letters, digits, '-', '_' or '.', not beginning with '.', "
            f"got {shown(link)}",
        )
    return link


def _check(task: Task) -> None:
    check_pipe(task.address.link)
    pipe_data(task)


def _place(link: str) -> str:
    return f"pipe:{link}" if _NAME.fullmatch(link) else "unknown"


def _pipe(name: str, data: Any, **options: Unpack[Options]) -> Parts:
    """Submits `data` (any JSON) for a named pipe."""
    return Parts(name, {"data": data})


def _data_of_flags(flags: Mapping[str, Any], data: Raw | None) -> Any:
    return UNSET if data is None else {"data": data}


DESTINATION = Destination(
    name="pipe",
    address=PipeAddress,
    link_words="the name of the pipe",
    check=_check,
    place=_place,
    shorthand=_pipe,
    flag=Flag("--pipe", "NAME", "deliver to a named pipe"),
    data_of_flags=_data_of_flags,
    deliverer="qtask.destinations.pipe.deliverer:PipeDeliverer",
)
