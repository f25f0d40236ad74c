"""Connects to a host name that has several addresses, by RFC 8305 ("Happy Eyeballs"); for threads, as it blocks."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from qtask.delivery.connecting import ATTEMPT_DELAY_SECONDS
from qtask.delivery.resolver import interleaved


def connect(
    host: str, port: int, seconds: float, options: Sequence[tuple[int, int, int | bytes]] = ()
) -> socket.socket:
    """Connects to the first address that answers; one that is silent does not hold up the next.

    Args:
        host: a name or an address.
        port: the port.
        seconds: for connecting, without the look-up of the name; later the timeout of the socket's calls.
        options: as `socket.setsockopt` takes them.

    Raises `socket.gaierror` when the name cannot be resolved, `TimeoutError` when no address answers in time, and the
    `OSError` of the last address when every address refuses.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = interleaved([(int(family), address) for family, _, _, _, address in found])
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
                    next_at = now + ATTEMPT_DELAY_SECONDS
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
                        return attempt  # type: ignore[no-any-return]  # selectors lose the type
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
