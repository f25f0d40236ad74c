"""A fake gateway that answers lines as a real one does, or as none should."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def answering(*replies: bytes | None) -> Iterator[str]:
    """A fake gateway: it answers each line of a connection with the next of `replies`; None closes the connection.

    After the last reply it stays silent. Yields its address.
    """
    over = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            for reply in replies:
                if not stream.readline() or reply is None:
                    return
                connection.sendall(reply)
            over.wait(60)

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"socket://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            accepting.join(30)


def answer_line(n: int) -> bytes:
    return json.dumps({"ok": True, "id": f"id-{n}", "due": n}).encode() + b"\n"
