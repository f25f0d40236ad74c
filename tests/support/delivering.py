"""Delivers single tasks on a separate loop, as a worker does, and returns the results."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Raw

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.deliverer import deliverer
from qtask.delivery.loop import Loop
from qtask.destinations.parsing import check_task, read_task
from qtask.model.outcome import Answer, Failure
from qtask.model.task import Task

Result = Answer | Failure

# Bodies for destinations that send a single message, by name: the data of the task, and the bytes that arrive.
BODIES: dict[str, tuple[dict[str, Any], bytes]] = {
    "json": ({"json": Raw(b'{"amount": 10.10, "a": ["\\u00e9"]}')}, b'{"amount":10.10,"a":["\\u00e9"]}'),
    "null": ({"json": None}, b"null"),
    "text": ({"text": "späte Nachricht"}, "späte Nachricht".encode()),
    "nothing": ({"text": ""}, b""),
    "binary": ({"base64": base64.b64encode(bytes(range(256))).decode()}, bytes(range(256))),
}


class Deliveries:
    """A deliverer and its loop.

    Args:
        kind: `address.type`.
        settings: of the worker.
    """

    def __init__(self, kind: str, **settings: Any) -> None:
        self.loop = Loop()
        self._kind = kind
        self._deliverer = deliverer(kind, self.loop, Config(**settings))
        self._count = 0

    def close(self) -> None:
        """Closes as a worker does when it stops; no timer may be left."""
        assert self.loop.waiting == 0
        self._deliverer.close()
        self.loop.close()

    def begin(self, link: str, data: Any, timeout: float = 30.0) -> list[Result]:
        """Starts a delivery; the list gets the result."""
        results: list[Result] = []
        self._count += 1
        claim = Claim(f"id-{self._count}", 1, self.task(link, data, timeout), 1.0)
        self._deliverer.start(claim, results.append)
        return results

    def run(self, *results: list[Result]) -> None:
        """Runs the loop until all these results are there."""
        while not all(results):
            self.loop.run_once()

    def __call__(self, link: str, data: Any, timeout: float = 30.0) -> Answer:
        """Delivers one task. Raises the `Failure`."""
        results = self.begin(link, data, timeout)
        self.run(results)
        (result,) = results
        if isinstance(result, Failure):
            raise result
        return result

    def failure(self, link: str, data: Any, timeout: float = 30.0) -> Failure:
        """The failure of the delivery of a task."""
        results = self.begin(link, data, timeout)
        self.run(results)
        (result,) = results
        assert isinstance(result, Failure), result
        return result

    def task(self, link: str, data: Any, timeout: float = 30.0) -> Task:
        """A task that was checked, as it is stored."""
        settings = {"time": 0, "timeout": timeout, "data": data}
        task = {"title": "t", "address": {"type": self._kind, "link": link}, "settings": settings}
        return read_task(check_task(task).body)


@contextmanager
def deliveries(kind: str, **settings: Any) -> Iterator[Deliveries]:
    """Deliveries to one kind of destination; closed at the end."""
    made = Deliveries(kind, **settings)
    try:
        yield made
    finally:
        made.close()
