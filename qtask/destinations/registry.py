"""What every kind of delivery has in common, and the table of kinds: a new kind is a module and one line here."""

from __future__ import annotations

from typing import Protocol

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import HostSlots
from qtask.model.task import Kind


class Deliverer(Protocol):
    """Delivers tasks of one kind without ever blocking the loop."""

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; `done` is called once, with an answer or a failure, from the loop."""

    def close(self) -> None:
        """Lets go of connections that are kept for the next delivery."""


def deliverer(kind: Kind, loop: Loop, config: Config, slots: HostSlots | None = None) -> Deliverer:
    """Makes the deliverer of a kind; its module is imported only now.

    Args:
        kind: of address.
        loop: on which it works.
        config: what the kinds of delivery need.
        slots: gets to know which HTTP hosts take many deliveries over one connection.
    """
    if kind == "http":
        from qtask.destinations.http.curl_transport import HttpDeliverer

        return HttpDeliverer(loop, config, slots)
    if kind == "socket":
        from qtask.destinations.socket import SocketDeliverer

        return SocketDeliverer(loop, config)
    if kind == "udp":
        from qtask.destinations.udp import UdpDeliverer

        return UdpDeliverer(loop, config)
    if kind == "pipe":
        from qtask.destinations.pipe import PipeDeliverer

        return PipeDeliverer(loop, config)
    from qtask.destinations.graph import GraphDeliverer

    return GraphDeliverer(loop, config)
