"""The interface of the deliverers of all destinations, and the function that makes them."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, Protocol

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import HostSlots
from qtask.destinations.registry import REGISTRY


class Deliverer(Protocol):
    """Delivers the tasks of one destination and never blocks the loop.

    It is made with the loop and the settings, and with the host slots if its class has `takes_slots = True`.
    """

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; `done` is called once, with an answer or a failure, from the loop."""

    def close(self) -> None:
        """Closes connections that are kept for the next delivery."""


def deliverer(task_type: str, loop: Loop, config: Config, slots: HostSlots | None = None) -> Deliverer:
    """Makes the deliverer of a destination; its module is not imported before that.

    Args:
        task_type: `address.type`.
        loop: on which it works.
        config: the settings.
        slots: learns which HTTP hosts accept many deliveries over one connection.
    """
    destination = REGISTRY.find(task_type)
    assert destination is not None, f"a task of the type {task_type!r} could not have been read"
    make: Any = resolve_name(destination.deliverer)
    made: Deliverer = make(loop, config, slots) if getattr(make, "takes_slots", False) else make(loop, config)
    return made
