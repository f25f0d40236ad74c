"""`__graph__` tasks on their own loop, with a real drawing process: place of the picture, sharing, failures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.loop import Loop
from qtask.destinations.graph.deliverer import GraphDeliverer
from qtask.destinations.parsing import read_task
from qtask.model.outcome import Answer, Failure, Outcome
from qtask.observe.graph import render
from qtask.store import keys
from tests.support.command import qtask
from tests.support.descriptors import no_descriptors
from tests.support.live import drawings
from tests.support.pictures import check_png, texts
from tests.support.redis_server import RedisServer, free_port
from tests.support.statistics import record
from tests.support.waiting import until


@dataclass
class Drawing:
    """A deliverer on a loop that the test runs."""

    url: str
    loop: Loop = field(default_factory=Loop)
    results: dict[str, Answer | Failure] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.deliverer = GraphDeliverer(self.loop, Config(redis_url=self.url))

    def start(self, task_id: str, timeout: float = 90.0) -> None:
        dict_ = {"title": "g", "address": {"type": "__graph__"}, "settings": {"timeout": timeout}}
        claim = Claim(task_id, 1, read_task(msgspec.json.encode(dict_)), 0.0)
        self.deliverer.start(claim, lambda result: self._note(task_id, result))

    def wait_for(self, count: int) -> None:
        def turned() -> bool:
            self.loop.run_once(0.05)
            return len(self.results) >= count

        until(turned, 90)

    def _note(self, task_id: str, result: Answer | Failure) -> None:
        assert task_id not in self.results, "reported once"
        self.results[task_id] = result


@contextmanager
def drawing(url: str) -> Iterator[Drawing]:
    one = Drawing(url)
    try:
        yield one
    finally:
        one.deliverer.close()
        one.loop.close()


def the_drawing() -> int:
    """Process id of the only drawing process. A process that has just started has no command line for a moment."""
    until(lambda: len(drawings(os.getpid())) == 1, what="one drawing")
    return drawings(os.getpid())[0]


def test_answer_names_the_place_of_the_picture(redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    with drawing(redis_server.url) as one:
        one.start("GRAPH-1")
        one.wait_for(1)
    result = one.results["GRAPH-1"]
    assert isinstance(result, Answer), result
    where = json.loads(result.text)
    picture: Any = redis.get(where["key"])
    assert where == {
        "graph": "/graphs/GRAPH-1",
        "key": keys.graph("GRAPH-1"),
        "type": "image/png",
        "bytes": len(picture),
    }
    assert picture.startswith(b"\x89PNG\r\n")
    assert 86_300 < redis.ttl(where["key"]) <= 86_400
    fetched = qtask("graph", "--redis", redis_server.url, "--id", "GRAPH-1", "-o", str(tmp_path / "fetched.png"))
    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "fetched.png").read_bytes() == picture


def test_tasks_that_arrive_during_a_drawing_share_the_next_picture(redis: Redis, redis_server: RedisServer) -> None:
    with drawing(redis_server.url) as one:
        one.start("FIRST")
        for number in range(20):
            one.start(f"LATER-{number}")
        the_drawing()  # one process for any number of waiting tasks
        one.wait_for(21)
    assert all(isinstance(result, Answer) for result in one.results.values()), one.results
    kept = {bytes(key).decode() for key in redis.scan_iter(keys.graph("*"))}
    assert kept == {keys.graph(task_id) for task_id in one.results}


def test_hanging_drawing_ends_at_the_timeout_and_does_not_delay_others(redis: Redis, redis_server: RedisServer) -> None:
    with drawing(redis_server.url) as one:
        one.start("HANGS", timeout=0.3)
        process = the_drawing()
        os.kill(process, signal.SIGSTOP)
        one.start("NEXT")
        one.wait_for(2)
        hung, drawn = one.results["HANGS"], one.results["NEXT"]
    assert isinstance(hung, Failure)
    assert (hung.error, hung.message) == ("timeout", "the graph was not drawn within 0.3 s")
    assert isinstance(drawn, Answer), drawn
    assert redis.exists(keys.graph("HANGS")) == 0


def test_failed_drawing_reports_the_reason() -> None:
    with drawing(f"redis://:secret@127.0.0.1:{free_port()}/0") as one:
        one.start("FAILS")
        process = the_drawing()
        assert b"secret" not in Path(f"/proc/{process}/cmdline").read_bytes()
        one.wait_for(1)
        result = one.results["FAILS"]
    assert isinstance(result, Failure)
    assert result.error == "internal"
    assert "Connection refused" in result.message


def test_close_ends_the_drawing(redis_server: RedisServer) -> None:
    with drawing(redis_server.url) as one:
        one.start("ENDS")
        process = the_drawing()
        os.kill(process, signal.SIGSTOP)  # so that it does not end by itself
    until(lambda: process not in drawings(os.getpid()))
    assert one.results == {}


def test_drawing_that_cannot_start_fails_and_the_next_one_succeeds(redis: Redis, redis_server: RedisServer) -> None:
    with drawing(redis_server.url) as one:
        with no_descriptors():
            one.start("FAILS")
            one.start("FAILS TOO")
        one.wait_for(2)
        one.start("DRAWN")
        one.wait_for(3)
    for name in ("FAILS", "FAILS TOO"):
        failed = one.results[name]
        assert isinstance(failed, Failure) and failed.error == "internal"
        assert "could not be started: [Errno 24] Too many open files" in failed.message
    assert isinstance(one.results["DRAWN"], Answer), one.results


def test_render_reads_the_statistics_from_redis(redis: Redis) -> None:
    assert "no deliveries yet" in texts(render(redis, "svg"))
    record(redis, "socket", "ID", Outcome("delivered", 1_795_489_515.0, 1_795_489_515.1, 0.002, 0.1))
    written = texts(render(redis, "svg"))
    assert "1 delivery" in written and "socket" in written
    check_png(render(redis))
