"""`__graph__` tasks: a graph of how punctual deliveries were. Redis keeps the newest ones for a day."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from qtask.model.destination import Destination, Flag, Parts
from qtask.model.errors import Refused
from qtask.model.task import Address, Task


class GraphAddress(Address, frozen=True, tag_field="type", tag="__graph__"):
    """The address of a graph; it needs no link."""

    link: str = ""


def _check(task: Task) -> None:
    data = task.settings.data
    if data is not UNSET and msgspec.json.decode(data) not in (None, {}):
        raise Refused("unknown_field", "settings.data", "a __graph__ takes no data; leave it out")


def _place(link: str) -> str:
    return "__graph__"


def _graph(*, title: str = "graph") -> Parts:
    """Asks for a graph of how punctual deliveries were; its id fetches the picture."""
    return Parts("")


DESTINATION = Destination(
    name="__graph__",
    address=GraphAddress,
    check=_check,
    place=_place,
    shorthand=_graph,
    flag=Flag("--graph", "", "draw a graph"),
    deliverer="qtask.destinations.graph.deliverer:GraphDeliverer",
    at_once=True,
)
