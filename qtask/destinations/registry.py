"""The registry of destinations: the built-in ones, one line each, and those of installed packages.

A package adds destinations with entry points of the group `qtask.destinations`, each of which names a `Destination`.
They are loaded when a type, a method or a flag is used that is not built in; a process that needs none never looks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Union

from qtask.destinations import graph, http, pipe, redis, socket, udp, websocket
from qtask.model.destination import Destination
from qtask.model.errors import QTaskError
from qtask.model.task import Task

GROUP = "qtask.destinations"

logger = logging.getLogger("qtask.destinations")


class BuiltIn:
    """The built-in destinations. Clients inherit from this class, so they have a method for each."""

    http = http.DESTINATION
    socket = socket.DESTINATION
    udp = udp.DESTINATION
    pipe = pipe.DESTINATION
    graph = graph.DESTINATION
    redis = redis.DESTINATION
    websocket = websocket.DESTINATION


def built_in() -> dict[str, Destination[...]]:
    """The built-in destinations by `address.type`."""
    found = (value for value in vars(BuiltIn).values() if isinstance(value, Destination))
    return {one.name: one for one in found}


class Registry:
    """All destinations that this process knows.

    Attributes:
        task_type: the type of a task with the address of any known destination. It is replaced when more become known.
    """

    def __init__(self, destinations: Mapping[str, Destination[...]]) -> None:
        self._known = dict(destinations)
        self._looked = False
        self.task_type = _task_type(self._known)

    def find(self, name: str) -> Destination[...] | None:
        """The destination with this `address.type`, or None."""
        if name not in self._known:
            self.look_for_more()
        return self._known.get(name)

    def known(self) -> tuple[Destination[...], ...]:
        """The destinations that are known so far, the built-in ones first."""
        return tuple(self._known.values())

    def look_for_more(self) -> None:
        """Loads the destinations of installed packages, once. One that is not usable is logged and left out."""
        if self._looked:
            return
        self._looked = True
        from importlib.metadata import entry_points  # takes longer to import than everything else here

        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            try:
                self._add(entry.load())
            except Exception as error:  # an error in another package must not stop QTask
                about = {"destination": entry.name, "from": entry.value, "error": f"{type(error).__name__}: {error}"}
                logger.error("destination_unusable", extra=about)
        self.task_type = _task_type(self._known)

    def _add(self, one: Any) -> None:
        if not isinstance(one, Destination):
            raise TypeError(f"a Destination is needed, got {type(one).__name__}")
        taken = {known.name for known in self.known()} | {known.word for known in self.known()}
        if one.name in taken or one.word in taken:
            raise ValueError(f"there is a destination {one.name!r} already")
        self._known[one.name] = one


def _task_type(destinations: Mapping[str, Destination[...]]) -> Any:
    """`Task` with the union of all addresses, for decoders."""
    addresses: Any = Union[tuple(one.address for one in destinations.values())]  # noqa: UP007  # made at run time
    return Task[addresses]


REGISTRY = Registry(built_in())


def flow_name_of(task: Task) -> str:
    """The name of the flow of a task that names none: that of its destination, without credentials."""
    found = REGISTRY.find(task.type)
    if found is None:
        return task.type
    link = task.address.link
    if found.flow is not None:
        with suppress(ValueError, QTaskError):  # a link that was never checked may be invalid
            return found.flow(link)
    return found.place(link) or task.type


def destination_of(name: str, link: str) -> str:
    """The destination of a task for logs: a host and its port, never a path or credentials; `unknown` for a bad link.

    Args:
        name: `address.type`.
        link: `address.link`, which may be invalid.
    """
    found = REGISTRY.find(name)
    return found.place(link) if found else "unknown"
