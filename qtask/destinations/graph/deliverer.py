"""Delivers `__graph__` tasks: draws the graph in a child process, and stores it in Redis."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from urllib.parse import quote

from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import Loop
from qtask.model.ids import client_id
from qtask.model.outcome import Answer, Failure
from qtask.store import graphs
from qtask.store.connect import connect

_NICENESS = 10  # a picture can wait for a core, a delivery cannot


def draw_into_redis(redis: Redis, task_ids: list[str]) -> list[str]:
    """Draws the current graph and stores it under each of the ids. Returns a JSON text for each, which says where."""
    from qtask.observe.graph import render

    picture = render(redis, "png")
    for task_id in task_ids:
        graphs.keep(redis, task_id, picture)
    return [
        json.dumps(
            {
                "graph": f"/graphs/{quote(client_id(one), safe='')}",
                "key": graphs.key_of(one),
                "type": "image/png",
                "bytes": len(picture),
            }
        )
        for one in task_ids
    ]


class _Wanted(Exchange):
    """A task that waits for its graph."""

    def __init__(
        self, loop: Loop, claim: Claim, done: Done, draw: Callable[[_Wanted], None], give_up: Callable[[], None]
    ) -> None:
        super().__init__(loop, claim, done)
        self.id = claim.id
        self._draw = draw
        self._give_up = give_up

    def begin(self) -> None:
        """Requests the graph."""
        self.set_timer(self.deadline, self._on_timeout)
        self._draw(self)

    def release(self) -> None:
        """Nothing is held."""

    def _on_timeout(self) -> None:
        self.end(Failure("timeout", f"the graph was not drawn within {self.timeout:g} s"))
        self._give_up()


class GraphDeliverer:
    """Draws in a child process, one graph at a time: a second of drawing must not delay a delivery.

    Tasks that arrive while it draws share the next graph, so none waits for more than two.
    """

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._redis_url = config.redis
        self._process: subprocess.Popen[str] | None = None
        self._waiting: list[_Wanted] = []
        self._drawn_for: list[_Wanted] = []

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        _Wanted(self._loop, claim, done, self._want, self._give_up).start()

    def close(self) -> None:
        """Stops the drawing under way."""
        if self._process is not None:
            self._process.kill()

    def _want(self, wanted: _Wanted) -> None:
        self._waiting.append(wanted)
        if self._process is None:
            self._draw()

    def _draw(self) -> None:
        """Begins to draw for all waiting tasks, if there are any."""
        self._drawn_for, self._waiting = [one for one in self._waiting if not one.ended], []
        if not self._drawn_for:
            return
        # The address may contain a password, so it is passed over standard input: arguments show in the process list.
        order = json.dumps([self._redis_url, [one.id for one in self._drawn_for]])
        process: subprocess.Popen[str] | None = None
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "qtask.destinations.graph.deliverer"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            threading.Thread(target=self._wait, args=(process, order), name="graph", daemon=True).start()
        except (OSError, RuntimeError) as error:  # no descriptors, no processes or no threads are left
            if process is not None:
                process.kill()
                process.communicate()
            self._fail(f"its process could not be started: {error}")
        else:
            self._process = process

    def _wait(self, process: subprocess.Popen[str], order: str) -> None:
        try:
            output, errors = process.communicate(order)
        except Exception as error:
            process.kill()
            process.wait()
            output, errors = "", str(error)
        self._loop.call_from_thread(partial(self._on_drawn, process.returncode, output, errors))

    def _on_drawn(self, code: int, output: str, errors: str) -> None:
        self._process = None
        try:
            answers = output.splitlines()
            if code == 0 and len(answers) == len(self._drawn_for):
                for one, answer in zip(self._drawn_for, answers, strict=True):
                    one.end(Answer(text=answer))
            else:
                self._fail(errors.strip()[-500:])
        finally:
            self._draw()

    def _fail(self, why: str) -> None:
        for one in self._drawn_for:
            one.end(Failure("internal", f"the graph was not drawn: {why}"))

    def _give_up(self) -> None:
        if self._process is not None and all(one.ended for one in self._drawn_for):
            self._process.kill()  # no task waits for this graph any more, and other tasks wait for the next


if __name__ == "__main__":
    os.nice(_NICENESS)
    redis_url, ids = json.load(sys.stdin)
    print("\n".join(draw_into_redis(connect(redis_url), ids)))
