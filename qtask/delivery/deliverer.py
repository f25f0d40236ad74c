"""What every destination's deliverer offers, and how one is made."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, Protocol

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import HostSlots
from qtask.destinations.registry import REGISTRY


class Deliverer(Protocol):
    """Delivers the tasks of one destination without ever blocking the loop.

    It is made with the loop and the settings, and gets the host slots where its class says `takes_slots = True`.
    """

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; `done` is called once, with an answer or a failure, from the loop."""

    def close(self) -> None:
        """Lets go of connections that are kept for the next delivery."""


def deliverer(kind: str, loop: Loop, config: Config, slots: HostSlots | None = None) -> Deliverer:
    """Makes the deliverer of a destination; its module is imported only now.

    Args:
        kind: `address.type`.
        loop: on which it works.
        config: what deliveries need of the settings.
        slots: gets to know which HTTP hosts take many deliveries over one connection.
    """
    destination = REGISTRY.find(kind)
    assert destination is not None, f"a task of the type {kind!r} could not have been read"
    make: Any = resolve_name(destination.deliverer)
    made: Deliverer = make(loop, config, slots) if getattr(make, "takes_slots", False) else make(loop, config)
    return made
