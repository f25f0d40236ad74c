"""For each shorthand of a client: the call, and the dict that it must make."""

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
            flow={"key": "partner-api", "rate": 5},
        ),
        {
            "title": "t",
            "address": {"type": "http", "link": HTTP},
            "settings": {
                "time": 60.0,
                "timeout": 5,
                "flow": {"key": "partner-api", "rate": 5},
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
    "redis, published": (
        lambda client: client.redis("redis://:pw@h:6379/0", publish="news", json={"a": None}, delay=60),
        {
            "title": "redis redis://***@h:6379/0",
            "address": {"type": "redis", "link": "redis://:pw@h:6379/0"},
            "settings": {"time": 60, "data": {"publish": "news", "json": {"a": None}}},
        },
    ),
    "redis, added to a stream": (
        lambda client: client.redis("redis://h", xadd="events", fields={"n": 1}, maxlen=9, delay=60, title="t"),
        {
            "title": "t",
            "address": {"type": "redis", "link": "redis://h"},
            "settings": {"time": 60, "data": {"xadd": "events", "fields": {"n": 1}, "maxlen": 9}},
        },
    ),
    "redis, bytes pushed": (
        lambda client: client.redis("redis://h", rpush="orders", data=b"\x00\xff", delay=60, title="t"),
        {
            "title": "t",
            "address": {"type": "redis", "link": "redis://h"},
            "settings": {"time": 60, "data": {"rpush": "orders", "base64": "AP8="}},
        },
    ),
    "websocket": (
        lambda client: client.websocket("ws://h/", json=None, delay=60),
        {
            "title": "websocket ws://h/",
            "address": {"type": "websocket", "link": "ws://h/"},
            "settings": {"time": 60, "data": {"json": None}},
        },
    ),
    "websocket with everything": (
        lambda client: client.websocket(
            "wss://h/", data="hi", answer=True, headers={"X-A": "b"}, subprotocol="chat", delay=60, title="t"
        ),
        {
            "title": "t",
            "address": {"type": "websocket", "link": "wss://h/"},
            "settings": {
                "time": 60,
                "data": {"text": "hi", "answer": True, "headers": {"X-A": "b"}, "subprotocol": "chat"},
            },
        },
    ),
    "graph": (
        lambda client: client.graph(),
        {"title": "graph", "address": {"type": "__graph__"}, "settings": {"time": 0.0}},
    ),
}
