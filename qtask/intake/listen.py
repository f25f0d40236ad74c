"""Listening on a host and a port."""

from __future__ import annotations

import errno
import socket

from qtask.model.errors import QTaskError

BACKLOG = 1024
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # a name may resolve to an address that this host does not have


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host, all on one port; empty means all addresses.

    Port 0 lets the system choose. Raises `QTaskError` when there is no such host, or when the port is taken.
    """
    try:
        return _listen(host, port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        advice = "; is another one running? choose another with --port or --http-port" if taken else ""
        raise QTaskError(f"the gateway cannot listen on {host} port {port}: {error.strerror}{advice}") from None


def port_of(listeners: list[socket.socket]) -> int:
    """The port on which they listen."""
    return int(listeners[0].getsockname()[1])


def _listen(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            listeners.append(socket.create_server((address[0], port), family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            absent = error
        else:
            port = port_of(listeners)
    if absent is not None and not listeners:
        raise absent
    return listeners
