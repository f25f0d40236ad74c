"""`socket` tasks: the JSON of `settings.data`, over TCP or a unix socket."""

from __future__ import annotations

from typing import Any, Unpack

from msgspec import UNSET

from qtask.model import link
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import Refused
from qtask.model.task import Address, Task


class SocketAddress(Address, frozen=True, tag_field="type", tag="socket"):
    """`link`: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""


def _check(task: Task) -> None:
    link.parse_socket(task.address.link)
    if task.settings.data is UNSET:
        raise Refused("missing_field", "settings.data", "what the socket is sent is needed; any JSON will do")


def _socket(address: str, data: Any, **options: Unpack[Options]) -> Parts:
    """Submits `data` (any JSON) for a socket: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""
    return Parts(address, data)


DESTINATION = Destination(
    name="socket",
    address=SocketAddress,
    link_words="HOST:PORT",
    check=_check,
    place=link.place_of_socket,
    flow=lambda address: link.name_of_socket(address, "tcp"),
    shorthand=_socket,
    flag=Flag("--socket", "HOST:PORT", "deliver to a socket"),
    deliverer="qtask.destinations.socket.deliverer:SocketDeliverer",
)
