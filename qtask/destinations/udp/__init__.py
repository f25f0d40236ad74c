"""`udp` tasks: the JSON of `settings.data` as one datagram."""

from __future__ import annotations

from typing import Any, Unpack

import msgspec
from msgspec import UNSET

from qtask.model import link
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import Refused
from qtask.model.task import Address, Task

MAX_DATAGRAM_BYTES = 65_507  # of UDP over IPv4


class UdpAddress(Address, frozen=True, tag_field="type", tag="udp"):
    """`link`: `HOST:PORT` or `[IPv6]:PORT`."""


def _check(task: Task) -> None:
    if link.parse_socket(task.address.link).path:
        raise Refused("invalid_value", link.FIELD, "udp wants HOST:PORT, such as 127.0.0.1:5000")
    if task.settings.data is UNSET:
        raise Refused("missing_field", "settings.data", "what the datagram holds is needed; any JSON will do")
    size = len(task.settings.data)
    if size > MAX_DATAGRAM_BYTES:  # with white space that is not sent
        size = len(msgspec.json.format(bytes(task.settings.data), indent=-1))
    if size > MAX_DATAGRAM_BYTES:
        raise Refused(
            "too_large", "settings.data", f"a datagram has at most {MAX_DATAGRAM_BYTES} bytes, this one is {size}"
        )


def _udp(address: str, data: Any, **options: Unpack[Options]) -> Parts:
    """Submits `data` (any JSON) as a datagram to `HOST:PORT` or `[IPv6]:PORT`."""
    return Parts(address, data)


DESTINATION = Destination(
    name="udp",
    address=UdpAddress,
    link_words="HOST:PORT",
    check=_check,
    place=link.place_of_socket,
    flow=lambda address: link.name_of_socket(address, "udp"),
    shorthand=_udp,
    flag=Flag("--udp", "HOST:PORT", "deliver a datagram"),
    deliverer="qtask.destinations.udp.deliverer:UdpDeliverer",
)
