"""`__graph__` tasks: a picture of how punctual deliveries were, kept in Redis for a day, if it is among the newest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop, Timer
from qtask.outcome import Answer, Failure
from qtask.store import keys
from qtask.store.connect import connect

_NICENESS = 10  # a picture can wait for a core, a delivery cannot


def draw_into_redis(redis: Redis, task_ids: list[str]) -> list[str]:
    """Draws the graph of now, keeps it under each of the ids, and says where it is: JSON, one text a task."""
    from qtask.graph import render

    picture = render(redis, "png")
    for task_id in task_ids:
        _keep(redis, task_id, picture)
    return [
        json.dumps({"graph": f"/graphs/{one}", "key": keys.graph(one), "type": "image/png", "bytes": len(picture)})
        for one in task_ids
    ]


def _keep(redis: Redis, task_id: str, picture: bytes) -> None:
    """Keeps a picture for a day, as long as it is among the newest."""
    now: int = redis.time()[0]
    with redis.pipeline() as pipeline:
        pipeline.set(keys.graph(task_id), picture, ex=keys.GRAPH_SECONDS)
        pipeline.zadd(keys.GRAPHS, {task_id: now})
        pipeline.zremrangebyscore(keys.GRAPHS, "-inf", now - keys.GRAPH_SECONDS)
        pipeline.zrange(keys.GRAPHS, 0, -1 - keys.GRAPHS_KEEP)
        old: list[bytes] = pipeline.execute()[-1]
    if old:
        redis.unlink(*(keys.graph(one.decode()) for one in old))
        redis.zrem(keys.GRAPHS, *old)


class _Wanted:
    """A task that waits for its picture; it ends once."""

    def __init__(self, claim: Claim, done: Done, timer: Timer) -> None:
        self.claim = claim
        self.ended = False
        self._done = done
        self._timer = timer

    def end(self, result: Answer | Failure) -> None:
        if not self.ended:
            self.ended = True
            self._timer.cancel()
            self._done(result)


class GraphDeliverer:
    """Draws in a process of its own, one picture at a time: a second of drawing must not delay a delivery.

    Tasks that come while it draws share the next picture, so that none waits for more than two.
    """

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._redis_url = config.redis
        self._thread = ThreadPoolExecutor(1, "graph")
        self._process: subprocess.Popen[str] | None = None
        self._waiting: list[_Wanted] = []
        self._drawn_for: list[_Wanted] = []

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        timer = self._loop.call_later(claim.task.timeout, lambda: self._on_timeout(wanted))
        wanted = _Wanted(claim, done, timer)
        self._waiting.append(wanted)
        if self._process is None:
            self._draw()

    def close(self) -> None:
        """Ends the drawing under way, which nobody waits for any more."""
        if self._process is not None:
            self._process.kill()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self) -> None:
        self._drawn_for, self._waiting = [one for one in self._waiting if not one.ended], []
        if not self._drawn_for:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qtask.delivery.graph"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The address may hold a password, so it goes over standard input and not into the list of processes.
        order = json.dumps([self._redis_url, [one.claim.id for one in self._drawn_for]])
        self._thread.submit(self._wait, self._process, order)

    def _wait(self, process: subprocess.Popen[str], order: str) -> None:
        output, errors = process.communicate(order)
        self._loop.call_from_thread(partial(self._on_drawn, process.returncode, output, errors))

    def _on_drawn(self, code: int, output: str, errors: str) -> None:
        self._process = None
        if code == 0:
            for one, where in zip(self._drawn_for, output.splitlines(), strict=True):
                one.end(Answer(text=where))
        else:
            for one in self._drawn_for:
                one.end(Failure("internal", f"the graph was not drawn: {errors.strip()[-500:]}"))
        self._draw()

    def _on_timeout(self, wanted: _Wanted) -> None:
        wanted.end(Failure("timeout", f"the graph was not drawn within {wanted.claim.task.timeout:g} s"))
        if self._process is not None and all(one.ended for one in self._drawn_for):
            self._process.kill()  # nobody waits for this picture any more, and it keeps others waiting


if __name__ == "__main__":
    os.nice(_NICENESS)
    redis_url, ids = json.load(sys.stdin)
    print("\n".join(draw_into_redis(connect(redis_url), ids)))
