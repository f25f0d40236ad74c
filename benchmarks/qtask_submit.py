"""QTask's client, for `benchmarks.submit`: dicts to the address in QTASK_URL."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.plan import BODY, Task, receiver_url
from qtask import Client

_JSON = json.loads(BODY)


def dictionary(due: float, receiver: str, path: str) -> dict[str, Any]:
    """The dict of one task."""
    return {
        "title": "bench",
        "address": {"type": "http", "link": receiver + path},
        "settings": {"at": due, "data": {"method": "POST", "json": _JSON}},
    }


def prepare(tasks: list[Task]) -> list[dict[str, Any]]:
    """The dicts, ready to be sent."""
    receiver = receiver_url()
    return [dictionary(due, receiver, path) for due, path in tasks]


def submit(dictionaries: list[dict[str, Any]]) -> None:
    """Sends the dicts; raises if one is refused."""
    with Client() as client:
        for answer in client.send_iter(dictionaries):
            if isinstance(answer, Exception):
                raise answer
