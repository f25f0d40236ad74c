"""`__graph__` tasks: a picture of how punctual deliveries were, kept in Redis for a day."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from redis import Redis

from qtask.config import Config
from qtask.delivery.kinds import Claim, Done
from qtask.delivery.loop import Loop
from qtask.outcome import Answer, Failure
from qtask.store import keys
from qtask.store.connect import connect


def draw_into_redis(redis: Redis, task_id: str) -> Answer:
    """Draws the graph of now, keeps it under the task's id, and answers where it is."""
    from qtask.graph import render

    picture = render(redis, "png")
    key = keys.graph(task_id)
    redis.set(key, picture, ex=keys.GRAPH_SECONDS)
    where = {"graph": f"/graphs/{task_id}", "key": key, "type": "image/png", "bytes": len(picture)}
    return Answer(text=json.dumps(where))


class GraphDeliverer:
    """Draws in a process of its own, one picture at a time: a second of drawing must not delay a delivery."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._redis_url = config.redis
        self._thread = ThreadPoolExecutor(1, "graph")

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        self._thread.submit(self._draw, claim, done)

    def close(self) -> None:
        """Ends the waiting thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _draw(self, claim: Claim, done: Done) -> None:
        result: Answer | Failure
        # The address may hold a password, so it goes over standard input and not into the list of processes.
        command = [sys.executable, "-m", "qtask.delivery.graph", claim.id]
        try:
            drawn = subprocess.run(
                command, input=self._redis_url, capture_output=True, text=True, timeout=claim.task.timeout, check=False
            )
        except subprocess.TimeoutExpired:
            result = Failure("timeout", f"the graph was not drawn within {claim.task.timeout:g} s")
        else:
            if drawn.returncode == 0:
                result = Answer(text=drawn.stdout)
            else:
                result = Failure("internal", f"the graph was not drawn: {drawn.stderr.strip()[-500:]}")
        self._loop.call_from_thread(lambda: done(result))


if __name__ == "__main__":
    print(draw_into_redis(connect(sys.stdin.read()), sys.argv[1]).text, end="")
