"""Kept connections that receivers have closed, so that libcurl sends no request over them.

libcurl does not check a connection that it used or checked less than a second before. So it would send a request over a
connection whose close has already arrived.
"""

from __future__ import annotations

import socket
from time import monotonic

UNCHECKED_SECONDS = 1.1  # a little more than libcurl's second
KEPT = 1_000  # entries, before expired ones are removed

_TCP_ESTABLISHED = 1  # among the states of the kernel


class ClosedConnections:
    """Local ports of connections that were closed within the last second, and the places that they were connected to.

    Attributes:
        ports: maps a local port to the instant of `monotonic` from which libcurl checks the connection itself.
        places: maps scheme and host, and the port if the URL has one, to the instant until which requests go over new
            connections.
    """

    def __init__(self) -> None:
        self.ports: dict[int, float] = {}
        self.places: dict[str, float] = {}

    def note(self, descriptor: int) -> None:
        """Notes a connection that became readable without a request under way, if the receiver has closed it."""
        connection = socket.socket(fileno=descriptor)
        try:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and not _is_established(connection):
                now = monotonic()
                _take_out(self.ports, now)
                self.ports[connection.getsockname()[1]] = now + UNCHECKED_SECONDS
        except OSError:
            pass  # a request may fail on it then, which counts as an attempt
        finally:
            connection.detach()  # the descriptor belongs to libcurl

    def has(self, local_port: int) -> bool:
        """Whether the receiver has closed the connection from a local port, over which libcurl is about to send."""
        now = monotonic()
        if self.ports.get(local_port, 0.0) <= now:
            return False
        self.ports[local_port] = now + UNCHECKED_SECONDS  # for libcurl, the connection was used now
        return True

    def avoid(self, url: str) -> None:
        """Makes requests to a place use new connections for a second: more of the kept ones may be closed."""
        now = monotonic()
        _take_out(self.places, now)
        self.places[_place(url)] = now + UNCHECKED_SECONDS

    def are_avoided(self, url: str) -> bool:
        """Whether a request to a URL should go over a new connection."""
        return self.places.get(_place(url), 0.0) > monotonic()


def _place(url: str) -> str:
    return url[: url.find("/", 8)]


def _is_established(connection: socket.socket) -> bool:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_ESTABLISHED


def _take_out(until: dict[int, float] | dict[str, float], now: float) -> None:
    if len(until) >= KEPT:
        for key in [key for key, instant in until.items() if instant <= now]:
            del until[key]  # type: ignore[arg-type]  # the key is from this dict
