"""flow_of_link.lua: it finds the flow of a task by its link, or leaves it to the workers, and is never wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from qtask import store
from qtask.store import keys
from tests.unit.test_flow_names import CASES, DATA, SPELLINGS

NAMES = [name for names in SPELLINGS.values() for name in names]
GROUPS = [NAMES[first : first + 16] for first in range(0, len(NAMES), 16)]
FRAGMENT = (Path(store.__path__[0]) / "flow_of_link.lua").read_text()
TEXT = f"local FLOW_DESTINATIONS = '{keys.FLOW_DESTINATIONS}'\n{FRAGMENT}\nreturn flow_of_link(ARGV[1])"


def found(redis: Redis, data: bytes, names: list[str]) -> str | None:
    redis.delete(keys.FLOW_DESTINATIONS)
    redis.sadd(keys.FLOW_DESTINATIONS, *names)
    name: Any = redis.eval(TEXT, 0, data)
    return None if name is None else name.decode()


def job(kind: str, link: str, title: str = "t") -> bytes:
    address = {"type": kind, "link": link}
    task = {"title": title, "address": address, "settings": {"time": 0, "data": DATA.get(kind)}}
    return b'["qtask.do",0,[' + msgspec.json.encode(task) + b"],{}]"


@pytest.mark.parametrize(("kind", "name", "link"), CASES)
def test_no_link_is_taken_for_another_destination(kind: str, name: str, link: str, redis: Redis) -> None:
    for names in GROUPS:
        assert found(redis, job(kind, link), names) in ((name, None) if name in names else (None,))


def is_written_alike(name: str, link: str) -> bool:
    if link.startswith(name):
        return link[len(name) :][:1] in ("", "/", "?", "#") or name.startswith("http://unix:")
    return name in (f"tcp://{link}", f"udp://{link}", f"pipe:{link}")


@pytest.mark.parametrize(("kind", "name", "link"), [case for case in CASES if is_written_alike(*case[1:])])
def test_link_that_is_written_as_the_name_is_found(kind: str, name: str, link: str, redis: Redis) -> None:
    assert found(redis, job(kind, link), [name, "http://another"]) == name


@pytest.mark.parametrize(
    ("kind", "link", "names"),
    [
        ("http", "http://a.example/", ["http://a"]),
        ("http", "http://a:81/", ["http://a"]),
        ("http", "http://a@b/", ["http://a", "http://b"]),
        ("http", "http://b/?x=http://a", ["http://a"]),
        ("http", "http://b/http://a/", ["http://a"]),
        ("http", "http://unix:/run/app.sock/other:/", ["http://unix:/run/app.sock"]),
        ("socket", "a:800", ["tcp://a:80"]),
        ("socket", "a:80", ["udp://a:80", "redis://a:80"]),
        ("socket", "unix:/run/x/y", ["unix:/run/x"]),
        ("pipe", "a", ["a", "pipe:ab"]),
        ("print", "http://a/", ["http://a"]),
        ("websocket", "ws://a/", ["http://a"]),
    ],
)
def test_similar_links_are_other_destinations(kind: str, link: str, names: list[str], redis: Redis) -> None:
    assert found(redis, job(kind, link), names) is None


def test_name_in_the_title_or_the_data_is_no_link(redis: Redis) -> None:
    assert found(redis, job("http", "http://b/", title="http://a"), ["http://a"]) is None
    assert found(redis, job("http", "http://b/", title="http://a"), ["http://a", "http://b"]) == "http://b"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"http://a",
        b'"http://a"',
        b'{"http://a":1}',
        b'["qtask.do",0,"http://a",{}]',
        b'["qtask.do",0,["http://a"],{}]',
        b'["qtask.do",0,[{"address":"http://a"}],{}]',
        b'["qtask.do",0,[{"address":{"type":"http","link":["http://a"]}}],{}]',
        b'["qtask.do",0,[{"address":{"type":["http"],"link":"http://a"}}],{}]',
        b'["qtask.do",0,[{"address":{"link":"http://a"}}],{}]',
        b'["qtask.do",0,[null],{}] http://a',
        job("http", "http://a/" + "x" * 20_000),
    ],
)
def test_job_that_is_no_task_or_too_large_has_no_flow_here(data: bytes, redis: Redis) -> None:
    assert found(redis, data, ["http://a"]) is None


def test_flow_is_found_among_many(redis: Redis) -> None:
    names = [f"http://a{number}" for number in range(10_000)]
    for number in (0, 3, 9_999):
        assert found(redis, job("http", f"http://a{number}/x"), names) == f"http://a{number}"
    assert found(redis, job("http", "http://a10000/"), names) is None
