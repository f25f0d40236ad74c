"""Connects to a host name that has several addresses, as RFC 8305 ("Happy Eyeballs") has it. Blocks."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from time import monotonic
from typing import Any

STAGGER_SECONDS = 0.25  # the "Connection Attempt Delay" that the RFC recommends

_Found = tuple[int, Any]  # address family and what connect() wants


def connect(
    host: str, port: int, seconds: float, options: Sequence[tuple[int, int, int | bytes]] = ()
) -> socket.socket:
    """Connects to the first address that answers: one after the other, without waiting for an address that is silent.

    Args:
        host: a name or an address.
        port: the port.
        seconds: for connecting, the look-up of the name not included; later the timeout of the socket's calls.
        options: as `socket.setsockopt` takes them.

    Raises `socket.gaierror` when the name cannot be resolved, `TimeoutError` when no address has answered in time,
    and the `OSError` of the last address when all have refused.
    """
    addresses = _interleaved(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    failure = OSError("the name has no address")
    deadline = monotonic() + seconds
    next_at = 0.0
    with selectors.DefaultSelector() as selector:
        try:
            while addresses or selector.get_map():
                now = monotonic()
                if now >= deadline:
                    raise TimeoutError(f"no connection within {seconds:g} s")
                if addresses and now >= next_at:
                    family, address = addresses.pop(0)
                    next_at = now + STAGGER_SECONDS
                    try:
                        _begin(selector, family, address, options)
                    except OSError as error:
                        failure, next_at = error, now
                    continue
                for key, _ in selector.select(min(deadline, next_at if addresses else deadline) - now):
                    attempt: Any = key.fileobj
                    selector.unregister(attempt)
                    code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        attempt.settimeout(seconds)
                        return attempt  # type: ignore[no-any-return]  # selectors do not keep the type
                    attempt.close()
                    failure, next_at = OSError(code, os.strerror(code)), now
        finally:
            for key in list(selector.get_map().values()):
                rest: Any = key.fileobj
                rest.close()
    raise failure


def _begin(selector: selectors.BaseSelector, family: int, address: Any, options: Sequence[tuple[Any, ...]]) -> None:
    attempt = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            attempt.setsockopt(*option)
        attempt.setblocking(False)
        with suppress(BlockingIOError):
            attempt.connect(address)
        selector.register(attempt, selectors.EVENT_WRITE)
    except BaseException:
        attempt.close()
        raise


def _interleaved(found: Sequence[tuple[Any, ...]]) -> list[_Found]:
    """IPv6 and IPv4 in turn, beginning with what the system prefers."""
    first = [(entry[0], entry[4]) for entry in found if entry[0] == found[0][0]]
    others = [(entry[0], entry[4]) for entry in found if entry[0] != found[0][0]]
    return [one for pair in zip_longest(first, others) for one in pair if one is not None]
