"""The name of the flow of a destination: one for all its spellings, none for two destinations, no credentials."""

from __future__ import annotations

import json
import re
from itertools import combinations

import msgspec
import pytest

from qtask.destinations.parsing import check_task, read_task
from qtask.destinations.registry import flow_name_of
from qtask.model.flow import MAX_NAME_CHARACTERS, check_key

DATA: dict[str, object] = {
    "http": {},
    "websocket": {"text": "x"},
    "socket": 1,
    "udp": 1,
    "pipe": {"data": 1},
    "__graph__": {},
    "redis": {"publish": "c", "text": "x"},
}
# The name, and links that mean the same destination.
SPELLINGS: dict[str, dict[str, list[str]]] = {
    "http": {
        "http://example.org": [
            *("http://example.org", "http://example.org/", "http://example.org/a/b?c=d#e", "http://example.org?a"),
            *("http://example.org#a", "http://example.org:80/", "http://example.org:/", "http://example.org:0080/x"),
            *("HTTP://example.org/", "http://EXAMPLE.Org/", "http://example.org./", "http://example.org.:80"),
            *("http://user@example.org/", "http://user:hunter2@example.org/", "http://user:80@example.org:80/"),
        ],
        "https://example.org": ["https://example.org/", "https://example.org:443/", "https://:hunter2@example.org"],
        "http://example.org:443": ["http://example.org:443/", "http://EXAMPLE.org:0443"],
        "https://example.org:80": ["https://example.org:80/"],
        "http://example.org:8080": [
            "http://example.org:8080/",
            "http://u:8081@example.org:8080",
            "http://example.org:08080",
        ],
        "http://www.example.org": ["http://www.example.org/"],
        "http://xn--bcher-kva.example": [
            "http://bücher.example/",
            "http://BÜCHER.example:80",
            "http://xn--bcher-kva.example",
        ],
        "http://127.0.0.1": ["http://127.0.0.1/"],
        "http://[::1]": ["http://[::1]/", "http://[0:0:0:0:0:0:0:1]:80/", "http://u:hunter2@[::0001]/"],
        "http://[::1]:8080": ["http://[::1]:8080/", "http://[0::1]:08080"],
        "http://[2001:db8::a]": ["http://[2001:DB8:0::A]/"],
        "http://a_b.example": ["http://a_b.example/x"],
        "http://unix:/run/app.sock": ["http://unix:/run/app.sock:/path?q", "http://unix:/run/app.sock"],
        "http://unix:/run/app.sock/other": ["http://unix:/run/app.sock/other:/"],
        "http://unix:/run/a%20b": ["http://unix:/run/a b:/"],
    },
    "websocket": {
        "ws://example.org": ["ws://example.org/", "WS://user:hunter2@example.org:80/chat", "ws://Example.org./"],
        "wss://example.org": ["wss://example.org", "wss://example.org:443/x"],
        "wss://example.org:444": ["wss://example.org:444"],
    },
    "socket": {
        "tcp://example.org:80": ["example.org:80", "EXAMPLE.org:080", "example.org.:80"],
        "tcp://example.org:81": ["example.org:81"],
        "tcp://xn--bcher-kva.example:80": ["bücher.example:80"],
        "tcp://[::1]:80": ["[::1]:80", "[0:0::1]:00080"],
        "unix:/run/app.sock": ["unix:/run/app.sock"],
        "unix:/run/%C3%A4%25": ["unix:/run/ä%"],
    },
    "udp": {"udp://example.org:80": ["example.org:80", "Example.org:080"], "udp://[::1]:80": ["[::1]:80"]},
    "pipe": {"pipe:news": ["news"], "pipe:News": ["News"]},
    "redis": {
        "redis://example.org:6379": [
            *("redis://example.org", "redis://example.org:6379/0", "redis://user:hunter2@Example.org/3"),
            *("rediss://:hunter2@example.org:6379", "redis://example.org./"),
        ],
        "redis://example.org:6380": ["redis://example.org:6380/0"],
        "redis://[::1]:6379": ["redis://:hunter2@[0::1]/1"],
        "redis://unix:/run/redis.sock": ["unix:///run/redis.sock", "unix://user:hunter2@/run/redis.sock"],
    },
    "__graph__": {"__graph__": [""]},
}
CASES = [(kind, name, link) for kind, names in SPELLINGS.items() for name, links in names.items() for link in links]


def name_of(kind: str, link: str) -> str:
    settings = {"time": 0, "data": DATA[kind]}
    return flow_name_of(check_task({"title": "t", "address": {"type": kind, "link": link}, "settings": settings}).task)


@pytest.mark.parametrize(("kind", "name", "link"), CASES)
def test_spellings_of_a_destination_have_one_name_without_credentials(kind: str, name: str, link: str) -> None:
    assert name_of(kind, link) == name
    assert "hunter2" not in name and "@" not in name


def test_different_destinations_have_different_names() -> None:
    names = [name for names in SPELLINGS.values() for name in names]
    assert all(one != other for one, other in combinations(names, 2))


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        ("http", f"https://{'.'.join(['a' * 61] * 4)}:65535/"),
        ("redis", f"rediss://:p@{'.'.join(['a' * 61] * 4)}:65535/"),
        ("socket", f"unix:/{'ä' * 53}"),
        ("http", f"http://unix:/{'ä' * 53}:/"),
    ],
)
def test_longest_names_are_keys_for_the_commands(kind: str, link: str) -> None:
    name = name_of(kind, link)
    check_key(name, most=MAX_NAME_CHARACTERS)
    assert len(name) > 200


@pytest.mark.parametrize(
    "link", ["http://[", "http://a:99999999/", "redis://u:hunter2@h:x", "ä", "", "http://[::zz]/", "a:b:c"]
)
@pytest.mark.parametrize("kind", ["http", "websocket", "socket", "udp", "pipe", "redis"])
def test_link_that_was_never_checked_has_a_name_without_credentials(kind: str, link: str) -> None:
    raw = msgspec.json.encode({"title": "t", "address": {"type": kind, "link": link}, "settings": {"time": 0}})
    name = flow_name_of(read_task(raw))
    assert name and "hunter2" not in name and re.fullmatch(r"[ -~]+", json.dumps(name))
