"""Hosts that delay deliveries, for tests and measures of isolation: `python -m tests.support.bad_hosts TROUBLE COUNT`.

Prints the ports, and serves until its standard input ends.
"""

from __future__ import annotations

import selectors
import socket
import sys
import time
from typing import Literal, get_args

Trouble = Literal["hang", "refuse", "fail", "trickle"]
"""`hang`: it accepts connections and never answers. `refuse`: it accepts none. `fail`: it answers 500 at once.
`trickle`: it sends one byte of its answer each second."""

TROUBLES: tuple[Trouble, ...] = get_args(Trouble)
_BACKLOG = 4_096
_FAILURE = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
_ENDLESS = b"HTTP/1.1 200 OK\r\nX-Padding: "


class Hosts:
    """Some ports on which the same trouble is met.

    Args:
        trouble: what clients meet.
        count: ports.

    Attributes:
        ports: their numbers.
    """

    def __init__(self, trouble: Trouble, count: int) -> None:
        self._trouble = trouble
        self._selector = selectors.DefaultSelector()
        self._clients: dict[socket.socket, int] = {}  # and how many bytes each has got
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) for _ in range(count)]
        self.ports = [one.getsockname()[1] for one in self._listeners]
        for one in self._listeners:
            one.setblocking(False)
            if trouble == "refuse":
                one.close()  # nobody else gets the port soon, since the kernel hands out others first
            else:
                self._selector.register(one, selectors.EVENT_READ)

    def serve(self) -> None:
        """Serves until the standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        next_bytes = time.monotonic()
        while True:
            for key, _ in self._selector.select(0.2):
                if key.fileobj is sys.stdin:
                    return
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj in self._clients:
                    self._read(key.fileobj)
                else:
                    self._accept(key.fileobj)
            if self._trouble == "trickle" and time.monotonic() >= next_bytes:
                next_bytes += 1.0
                for client in list(self._clients):
                    self._send(client, _ENDLESS[self._clients[client] :][:1] or b"x")

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            self._clients[client] = 0
            self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._close(client)
        elif self._trouble == "fail":
            self._send(client, _FAILURE * data.count(b"\r\n\r\n"))

    def _send(self, client: socket.socket, data: bytes) -> None:
        try:
            self._clients[client] += client.send(data)
        except OSError:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        if self._clients.pop(client, None) is not None:
            self._selector.unregister(client)
            client.close()


def main() -> None:
    """Serves; see above."""
    trouble, count = sys.argv[1:]
    assert trouble in TROUBLES
    hosts = Hosts(trouble, int(count))
    print(*hosts.ports, flush=True)
    hosts.serve()


if __name__ == "__main__":
    main()
