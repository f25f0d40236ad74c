"""The load of the soak: a fixed rate of tasks of every type, by every entrance, some refused or failing."""

from __future__ import annotations

import json
import time
from itertools import count
from typing import Any

import requests
from redis import Redis

from qtask import Client
from qtask.store import keys
from tests.soak.receiver import FAILS_FIRST, GONE, SLOW

SLOT_SECONDS = 0.1
DELAY_SECONDS = 3.0  # until a task is due, at most
INBOX_A_SLOT = 10  # of the tasks
HTTP_A_SLOT = 10
GRAPH_EVERY_SECONDS = 60.0


class Load:
    """Submits at a steady rate.

    Args:
        rate: tasks a second.
        client: over the gateway's socket.
        http_url: of the gateway's HTTP.
        redis: for the inbox.
        ports: of the receiver, for HTTP, sockets and UDP.
        pipe: name of the pipe.

    Attributes:
        submitted: tasks that were accepted (or were duplicates), so far.
        refused: dicts that were refused as intended.
    """

    def __init__(
        self, rate: float, client: Client, http_url: str, redis: Redis, ports: tuple[int, int, int], pipe: str
    ) -> None:
        self.submitted = self.refused = 0
        self._a_slot = max(40, round(rate * SLOT_SECONDS))
        self._client = client
        self._tasks_url = f"{http_url}/tasks"
        self._session = requests.Session()
        self._redis = redis
        self._http, self._socket, self._udp = ports
        self._pipe = pipe
        self._numbers = count()
        self._next_graph = 0.0

    def fill_the_refused(self) -> None:
        """Fills the stream of refused dicts, so that it does not grow any more."""
        for _ in range(0, keys.REFUSED_KEEP + 500, 500):
            with self._redis.pipeline(transaction=False) as pipeline:
                for _ in range(500):
                    pipeline.xadd(keys.INBOX, {"task": json.dumps(_broken())})
                pipeline.execute()

    def submit_slow(self, number: int) -> None:
        """Submits tasks that are due at once, to a receiver that answers slowly."""
        data = {"method": "POST", "json": {"text": "x" * 300}}
        link = f"http://127.0.0.1:{self._http}/{SLOW}"
        self._client.send_many([_dict("http", link, {"time": 1, "data": data}) for _ in range(number)])
        self.submitted += number

    def run_slot(self) -> None:
        """Submits the tasks of one slot."""
        dicts = [self._task(next(self._numbers)) for _ in range(self._a_slot)]
        by_inbox, by_http, rest = dicts[:INBOX_A_SLOT], dicts[INBOX_A_SLOT:][:HTTP_A_SLOT], dicts[20:]
        with self._redis.pipeline(transaction=False) as pipeline:
            for one in (*by_inbox, _broken()):
                pipeline.xadd(keys.INBOX, {"task": json.dumps(one)})
            pipeline.execute()
        answers = self._session.post(self._tasks_url, json=[*by_http, _broken()], timeout=30).json()
        accepted = sum(bool(answer["ok"]) for answer in answers)
        again = [rest[0], _broken()]
        results = self._client.send_many([*rest, *again])
        accepted += sum(hasattr(answer, "due") for answer in results)
        self.submitted += len(by_inbox) + accepted
        self.refused += len(answers) + len(results) - accepted
        if time.monotonic() >= self._next_graph:
            self._next_graph = time.monotonic() + GRAPH_EVERY_SECONDS
            self._client.graph()

    def _task(self, number: int) -> dict[str, Any]:
        place = number % 50
        settings: dict[str, Any] = {"time": (number * 7919 % 1000) / 1000 * DELAY_SECONDS}
        if place in (1, 26):
            return _dict("socket", f"127.0.0.1:{self._socket}", {**settings, "data": {"number": number}})
        if place in (2, 27):
            return _dict("udp", f"127.0.0.1:{self._udp}", {**settings, "data": [number]})
        if place in (3, 28):
            return _dict("pipe", self._pipe, {**settings, "data": {"data": number}})
        path = "hook"
        if place == 4:
            path = FAILS_FIRST
            settings["retry"] = {"attempts": 3, "base": 1.0}
        elif number % 200 == 5:
            path = GONE
        elif place in (0, 6, 20):
            settings["id"] = f"order-{number}"
        settings["data"] = {"method": "POST", "json": {"number": number, "text": "x" * (number % 300)}}
        return _dict("http", f"http://127.0.0.1:{self._http}/{path}", settings)


def _dict(kind: str, link: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"title": f"{kind} of the soak", "address": {"type": kind, "link": link}, "settings": settings}


def _broken() -> dict[str, Any]:
    return {"title": "no address", "settings": {"time": 1, "data": "x" * 100}}
