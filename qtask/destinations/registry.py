"""The destinations that there are: those that come with QTask, one line each, and those of installed packages.

A package adds destinations by entry points of the group `qtask.destinations`, each of which names a `Destination`. They
are looked for when something is asked for that QTask itself does not have; a process that needs none never looks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Union

from qtask.destinations import graph, http, pipe, redis, socket, udp, websocket
from qtask.model.destination import Destination
from qtask.model.task import Task

GROUP = "qtask.destinations"

logger = logging.getLogger("qtask.destinations")


class BuiltIn:
    """What comes with QTask. Clients inherit from this class, and so have a method for each."""

    http = http.DESTINATION
    socket = socket.DESTINATION
    udp = udp.DESTINATION
    pipe = pipe.DESTINATION
    graph = graph.DESTINATION
    redis = redis.DESTINATION
    websocket = websocket.DESTINATION


def built_in() -> dict[str, Destination[...]]:
    """The destinations that come with QTask, by `address.type`."""
    found = (value for value in vars(BuiltIn).values() if isinstance(value, Destination))
    return {one.name: one for one in found}


class Registry:
    """All destinations that this process knows.

    Attributes:
        task_type: the type of a task whose address is one of those known. It is replaced when more become known.
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
        """Loads the destinations of installed packages, once. One that cannot be used is logged and left out."""
        if self._looked:
            return
        self._looked = True
        from importlib.metadata import entry_points  # takes longer to import than all the rest

        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            try:
                self._add(entry.load())
            except Exception as error:  # whatever is wrong in a package of somebody else's, QTask goes on without it
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
    """`Task` with the union of all addresses: what a decoder is made for."""
    addresses: Any = Union[tuple(one.address for one in destinations.values())]  # noqa: UP007  # made at run time
    return Task[addresses]


REGISTRY = Registry(built_in())


def destination_of(name: str, link: str) -> str:
    """Where a task goes, for logs: a host and its port, never a path or credentials; `unknown` where it cannot be read.

    Args:
        name: `address.type`.
        link: `address.link`, which may be wrong in any way.
    """
    found = REGISTRY.find(name)
    return found.place(link) if found else "unknown"
