"""What each shorthand of a client makes: the call, and the dict that is to come of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from qtask.client.shorthands import Shorthands

HTTP = "http://127.0.0.1:9/hook"

SHORTHANDS: dict[str, tuple[Callable[[Shorthands[Any]], Any], dict[str, Any]]] = {
    "http": (
        lambda client: client.http(HTTP, delay=60),
        {"title": f"http {HTTP}", "address": {"type": "http", "link": HTTP}, "settings": {"time": 60}},
    ),
    "http with everything": (
        lambda client: client.http(
            HTTP,
            delay=timedelta(minutes=1),
            method="POST",
            headers={"X-A": "b"},
            params={"q": ["1", "2"]},
            json={"to": "ada"},
            title="t",
            timeout=5,
        ),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {
                "time": 60.0,
                "timeout": 5,
                "data": {"method": "POST", "headers": {"X-A": "b"}, "params": {"q": ["1", "2"]}, "json": {"to": "ada"}},
            },
        },
    ),
    "http with a body and no method": (
        lambda client: client.http(HTTP, delay=60, json={"to": "ada"}, title="t"),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {"time": 60, "data": {"method": "POST", "json": {"to": "ada"}}},
        },
    ),
    "http with an empty body and no method": (
        lambda client: client.http(HTTP, delay=60, data=b"", title="t"),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {"time": 60, "data": {"method": "POST", "body_base64": ""}},
        },
    ),
    "http with a body and GET": (
        lambda client: client.http(HTTP, delay=60, method="GET", json=0, title="t"),
        {"title": "t", "address": {"type": "http", "link": HTTP}, "settings": {"time": 60, "data": {"json": 0}}},
    ),
    "http with a form": (
        lambda client: client.http(HTTP, delay=60, method="PUT", headers="auto", data={"a": "b"}, title="t"),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {"time": 60, "data": {"method": "PUT", "headers": "auto", "data": {"a": "b"}}},
        },
    ),
    "http with bytes": (
        lambda client: client.http(HTTP, delay=60, method="POST", data=b"\x00\xff", title="t"),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {"time": 60, "data": {"method": "POST", "body_base64": "AP8="}},
        },
    ),
    "http with a long link": (
        lambda client: client.http(HTTP + "?" + "x" * 2_000, delay=60),
        {
            "title": f"http {HTTP}?{'x' * 2_000}"[:500],
            "address": {"type": "http", "link": HTTP + "?" + "x" * 2_000},
            "settings": {"time": 60},
        },
    ),
    "socket": (
        lambda client: client.socket("127.0.0.1:9", [1, {"a": None}], delay=60, timeout=1.5),
        {
            "title": "socket 127.0.0.1:9",
            "address": {"type": "socket", "link": "127.0.0.1:9"},
            "settings": {"time": 60, "data": [1, {"a": None}], "timeout": 1.5},
        },
    ),
    "socket with null": (
        lambda client: client.socket("127.0.0.1:9", None, delay=60, title="t"),
        {"title": "t", "address": {"type": "socket", "link": "127.0.0.1:9"}, "settings": {"time": 60, "data": None}},
    ),
    "udp": (
        lambda client: client.udp("127.0.0.1:9", "hello", delay=60),
        {
            "title": "udp 127.0.0.1:9",
            "address": {"type": "udp", "link": "127.0.0.1:9"},
            "settings": {"time": 60, "data": "hello"},
        },
    ),
    "pipe with retries and an end": (
        lambda client: client.pipe(
            "orders", 1, delay=60, retry={"attempts": 2, "base": 0.5}, expires=timedelta(minutes=5)
        ),
        {
            "title": "pipe orders",
            "address": {"type": "pipe", "link": "orders"},
            "settings": {"time": 60, "data": {"data": 1}, "retry": {"attempts": 2, "base": 0.5}, "expires": 300.0},
        },
    ),
    "pipe": (
        lambda client: client.pipe("orders", None, delay=60, timeout=2),
        {
            "title": "pipe orders",
            "address": {"type": "pipe", "link": "orders"},
            "settings": {"time": 60, "data": {"data": None}, "timeout": 2},
        },
    ),
    "graph": (
        lambda client: client.graph(),
        {"title": "graph", "address": {"type": "__graph__"}, "settings": {"time": 0.0}},
    ),
}
