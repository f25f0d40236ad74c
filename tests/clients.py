"""What both clients are tested with: the same tasks, and the same looks at their answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis

from qtask.client import Accepted
from qtask.client.requests import Answer
from qtask.client.shorthands import Shorthands
from qtask.errors import Refused
from qtask.retry import Retry
from tests.gateway_process import HOUR, task, title_of_id

UNWRITABLE = {
    "title": "no JSON can say it",
    "address": {"type": "socket", "link": "127.0.0.1:9"},
    "settings": {"time": object()},
}

# Sound ones among those that are refused here, and by the gateway; and what each comes to.
MIXED = [UNWRITABLE, task("first"), task(delay=-1), UNWRITABLE, task("second"), {"title": "only"}, UNWRITABLE]
CODES = ["wrong_type", "ok", "invalid_value", "wrong_type", "ok", "missing_field", "wrong_type"]

SHORTHANDS: dict[str, tuple[Callable[[Shorthands[Any]], Any], dict[str, Any]]] = {
    "http": (
        lambda client: client.http("http://127.0.0.1:9/a", delay=HOUR),
        {
            "title": "http http://127.0.0.1:9/a",
            "address": {"type": "http", "link": "http://127.0.0.1:9/a"},
            "settings": {"data": {"method": "GET"}, "time": HOUR},
        },
    ),
    "http with all it can have": (
        lambda client: client.http(
            "https://127.0.0.1:9/a",
            method="PUT",
            headers={"X-A": "b"},
            params={"c": [1, 2]},
            json={"d": None},
            delay=timedelta(hours=1),
            title="all of it",
            timeout=2.5,
            retry={"attempts": 3, "backoff": "fixed"},
            expires=timedelta(minutes=1),
        ),
        {
            "title": "all of it",
            "address": {"type": "http", "link": "https://127.0.0.1:9/a"},
            "settings": {
                "data": {"method": "PUT", "headers": {"X-A": "b"}, "params": {"c": [1, 2]}, "json": {"d": None}},
                "time": HOUR,
                "timeout": 2.5,
                "retry": {"attempts": 3, "backoff": "fixed"},
                "expires": 60.0,
            },
        },
    ),
    "http with a form": (
        lambda client: client.http("http://127.0.0.1:9/", headers="auto", data={"a": "b"}, delay=HOUR),
        {
            "title": "http http://127.0.0.1:9/",
            "address": {"type": "http", "link": "http://127.0.0.1:9/"},
            "settings": {"data": {"method": "GET", "headers": "auto", "data": {"a": "b"}}, "time": HOUR},
        },
    ),
    "socket": (
        lambda client: client.socket("127.0.0.1:9", [1, "two"], delay=HOUR, timeout=3, retry=Retry(attempts=1)),
        {
            "title": "socket 127.0.0.1:9",
            "address": {"type": "socket", "link": "127.0.0.1:9"},
            "settings": {"data": [1, "two"], "time": HOUR, "timeout": 3, "retry": {"attempts": 1}},
        },
    ),
    "socket with null": (
        lambda client: client.socket("127.0.0.1:9", None, delay=HOUR),
        {
            "title": "socket 127.0.0.1:9",
            "address": {"type": "socket", "link": "127.0.0.1:9"},
            "settings": {"data": None, "time": HOUR},
        },
    ),
    "udp": (
        lambda client: client.udp("[::1]:9", {"n": 1}, delay=HOUR, expires=5),
        {
            "title": "udp [::1]:9",
            "address": {"type": "udp", "link": "[::1]:9"},
            "settings": {"data": {"n": 1}, "time": HOUR, "expires": 5},
        },
    ),
    "pipe": (
        lambda client: client.pipe("orders", {"n": 1}, delay=HOUR, title="an order"),
        {
            "title": "an order",
            "address": {"type": "pipe", "link": "orders"},
            "settings": {"data": {"data": {"n": 1}}, "time": HOUR},
        },
    ),
    "graph": (
        lambda client: client.graph(),
        {"title": "graph", "address": {"type": "__graph__"}, "settings": {"time": 0.0}},
    ),
}

_NAIVE = datetime(2030, 1, 1)
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [  # arguments of a shorthand, and the field for which they are refused
    ({"at": _NAIVE}, "settings.at"),
    ({"expires": _NAIVE}, "settings.expires"),
    ({"at": 2e9, "delay": 1}, "settings.at"),
    ({"at": _NAIVE.replace(tzinfo=UTC), "delay": 0}, "settings.at"),
    ({"delay": -1}, "settings.time"),
    ({"delay": timedelta(seconds=-1)}, "settings.time"),
    ({"expires": 0}, "settings.expires"),
    ({"id": "no blanks"}, "settings.id"),
    ({"id": ""}, "settings.id"),
    ({"retry": {"attempts": 0}}, "settings.retry.attempts"),
    ({"timeout": 0}, "settings.timeout"),
    ({"delay": float("nan")}, ""),
]


def accepted(answers: Sequence[Answer]) -> list[Accepted]:
    """The answers, none of which is a refusal."""
    found = [answer for answer in answers if isinstance(answer, Accepted)]
    assert len(found) == len(answers)
    return found


def codes(answers: Sequence[Answer]) -> list[str]:
    """The code of each refusal, and `ok` for the rest."""
    return [answer.code if isinstance(answer, Refused) else "ok" for answer in answers]


def titles(redis: Redis, answers: Sequence[Answer]) -> list[str]:
    """The titles that Redis holds for answers, in their order."""
    ids = [answer.id for answer in accepted(answers)]
    found = title_of_id(redis, ids)
    return [found[task_id] for task_id in ids]
