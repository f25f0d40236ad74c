"""Reads and checks tasks: everything that a client sends passes through here before it is stored.

A task is read in two steps: all fields but the data by msgspec (a tagged union on `address.type`), then its link and
data by the checks of its destination. Nothing here uses the network, Redis or the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec

from qtask.destinations.registry import REGISTRY
from qtask.model.destination import Destination
from qtask.model.rejection import refusal_of_text
from qtask.model.task import MAX_BYTES, Task
from qtask.model.validation import (
    Checked,
    bare,
    check_depth,
    check_settings,
    check_size,
    check_text,
    check_title,
    encode,
)

_Read = TypeVar("_Read")


class TaskDecoder(Generic[_Read]):
    """Decodes JSON that is, or contains, a task of a known destination.

    Args:
        shape: makes the type of the whole JSON from the type of a task.

    Attributes:
        decoder: for the destinations that are known so far. If it raises `ValidationError`, call `decode_anew`.
    """

    def __init__(self, shape: Callable[[Any], Any]) -> None:
        self._shape = shape
        self._task_type = REGISTRY.task_type
        self.decoder: msgspec.json.Decoder[_Read] = msgspec.json.Decoder(shape(self._task_type))

    def decode_anew(self, raw: bytes, error: msgspec.ValidationError) -> _Read:
        """Decodes with the destinations of installed packages as well. Raises `error` if there are none."""
        REGISTRY.look_for_more()
        if self._task_type is REGISTRY.task_type:
            raise error
        self._task_type = REGISTRY.task_type
        self.decoder = msgspec.json.Decoder(self._shape(self._task_type))
        return self.decoder.decode(raw)


_TASK: TaskDecoder[Task] = TaskDecoder(lambda task: task)


def read_task(raw: bytes) -> Task:
    """A task from its JSON, without the checks. Raises `msgspec.DecodeError` if it has another form."""
    try:
        return _TASK.decoder.decode(raw)
    except msgspec.ValidationError as error:
        return _TASK.decode_anew(raw, error)


def parse(raw: bytes, max_bytes: int = MAX_BYTES) -> Checked:
    """Reads and checks one task.

    Args:
        raw: one JSON object in UTF-8, in any layout; a byte order mark before it is ignored.
        max_bytes: the largest task to accept.

    Raises `Refused`, which names the field, says what is wrong and what would be right.
    """
    check_size(raw, max_bytes, "a dict")
    check_depth(raw)
    if not raw.startswith(b"{"):
        raw = bare(raw)
    try:
        try:
            task = _TASK.decoder.decode(raw)
        except msgspec.ValidationError as unknown:
            task = _TASK.decode_anew(raw, unknown)
        check_text(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal_of_text(error, raw, hints=_hints(REGISTRY.known())) from None
    check_title(task.title)
    destination = REGISTRY.find(task.type)
    assert destination is not None, "the union of all known destinations has read it"
    destination.check(task)
    delay, instant = check_settings(task.settings, destination.at_once)
    return Checked(task, msgspec.json.format(raw, indent=-1), delay, instant)


def check_task(task: Task | Mapping[str, Any], max_bytes: int = MAX_BYTES) -> Checked:
    """As `parse`, for a `Task` or a dict from Python code. Raises `Refused`."""
    return parse(encode(task), max_bytes)


@lru_cache(1)
def _hints(known: tuple[Destination[...], ...]) -> dict[str, str]:
    """Hints for messages about an address: the existing types, and the form of the link of each."""
    names_by_words: dict[str, list[str]] = {}
    for one in known:
        if one.link_words:
            names_by_words.setdefault(one.link_words, []).append(one.name)
    links = ", ".join(f"{' and '.join(names)}: {words}" for words, names in names_by_words.items())
    return {
        "address.type": f"; one of {', '.join(one.name for one in known)}",
        "address.link": f"; {links}",
    }
