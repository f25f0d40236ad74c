"""Keeps a child process made by `os.fork` from sharing connections and node numbers with its parent."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something that belongs to the process that made it."""

    def after_fork(self) -> None:
        """Called in the child before other code runs there. It must not change anything that the parent uses."""


_registered: WeakSet[Forked] = WeakSet()


def register(one: Forked) -> None:
    """Makes every child that is forked while `one` is alive call its `after_fork`."""
    _registered.add(one)


class Transport(Protocol):
    """The methods of asyncio's transports that are used here."""

    def is_closing(self) -> bool: ...
    def get_extra_info(self, name: str) -> Any: ...


def release(transport: Transport) -> None:
    """Releases the child's copy of a connection that belongs to an event loop of the parent.

    Its descriptor then refers to /dev/null. It cannot just be closed: the loop would later close whatever has the same
    number by then. And if the child's loop removed the connection from its epoll, which it shares with the parent, the
    parent would get no more events for it.
    """
    if transport.is_closing():  # its descriptor may belong to something else by now
        return
    descriptor = transport.get_extra_info("socket").fileno()
    with suppress(OSError):  # for example if no descriptor is free; then the copy stays open until the child ends
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, descriptor, inheritable=False)
        finally:
            os.close(null)


def _after_fork_in_child() -> None:
    for one in list(_registered):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
