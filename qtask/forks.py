"""What a child process made by `os.fork` must not share with its parent: connections, and the numbers in ids."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Something that belongs to the process that made it."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there. It must not change anything that the parent uses."""


_registered: WeakSet[Forked] = WeakSet()


def register(one: Forked) -> None:
    """Has `after_fork` called in every child that is forked while `one` is alive."""
    _registered.add(one)


class Transport(Protocol):
    """What this needs of asyncio's transports."""

    def is_closing(self) -> bool: ...
    def get_extra_info(self, name: str) -> Any: ...


def release(transport: Transport) -> None:
    """Gives up the child's copy of a connection that an event loop of the parent owns.

    Its descriptor then refers to /dev/null. It cannot simply be closed: the loop would later close whatever has got
    the same number by then. And if the child's loop took the connection out of its epoll, which the parent shares, the
    parent would hear nothing on it any more.
    """
    if transport.is_closing():  # its descriptor may be another's by now
        return
    descriptor = transport.get_extra_info("socket").fileno()
    with suppress(OSError):  # no descriptor is free, for example; then the copy stays open until the child ends
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
