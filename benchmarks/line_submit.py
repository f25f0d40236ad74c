"""A minimal client of the gateway's socket, for `benchmarks.submit`: it writes lines and reads lines on one connection.

It shows how much the gateway can accept, without the cost of a client in Python.
"""

from __future__ import annotations

import os
import selectors
import socket
from urllib.parse import urlsplit

from benchmarks.plan import Task
from benchmarks.qtask_submit import prepare as dictionaries
from qtask.model.validation import encode

ANSWER_SECONDS = 30.0


def prepare(tasks: list[Task]) -> bytes:
    """All lines in one text."""
    return b"".join(encode(task) + b"\n" for task in dictionaries(tasks))


def submit(lines: bytes) -> None:
    """Writes the lines as fast as the gateway reads them, and counts its answers."""
    address = urlsplit(os.environ["QTASK_URL"])
    wanted, answered, sent = lines.count(b"\n"), 0, 0
    view = memoryview(lines)
    with (
        socket.create_connection((address.hostname or "", address.port or 0), ANSWER_SECONDS) as connection,
        selectors.DefaultSelector() as selector,
    ):
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while answered < wanted:
            ready = selector.select(ANSWER_SECONDS)
            if not ready:
                raise TimeoutError(f"{wanted - answered} answers are missing")
            events = ready[0][1]
            if events & selectors.EVENT_WRITE:
                sent += connection.send(view[sent : sent + 262_144])
                if sent == len(lines):
                    selector.modify(connection, selectors.EVENT_READ)
            if events & selectors.EVENT_READ:
                answers = connection.recv(262_144)
                if not answers or b'"ok":false' in answers:
                    raise ConnectionError(f"the gateway refused or closed: {answers[:200]!r}")
                answered += answers.count(b"\n")
