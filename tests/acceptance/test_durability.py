"""Accepted tasks survive crashes of Redis and power cuts; the doctor reports a Redis that may lose writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.model.errors import NotFound
from qtask.run.doctor.examination import examine
from qtask.run.doctor.finding import Finding
from qtask.run.embedded import OPTIONS_FILE
from qtask.store import keys, tasks
from qtask.store.connect import connect
from tests.support.embedded_redis import running
from tests.support.gateway_process import Connection, Gateway, task
from tests.support.preload import Preload
from tests.support.processes import Process
from tests.support.receiver import Receiver
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

SHIPPED = ("--include", str(OPTIONS_FILE))


class Machine:
    """A Redis on a simulated machine whose power can be cut; a context manager.

    A power cut loses what was written without fsync. The kernel of this machine keeps running, so the test truncates
    the file, by the records of each fsync.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._synced = Preload("power_cut", "SYNCED", folder)
        self.server = RedisServer(folder, *options, environment=self._synced.environment)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()

    def cut_power(self) -> None:
        """Kills Redis, drops what was not synced to disk, and starts it again."""
        self.server.kill()
        (file,) = self._folder.glob("**/*.aof")
        with file.open("r+b") as written:
            written.truncate(self._synced.number)
        self.server.start()


def is_there(redis: Redis, task_id: str) -> bool:
    try:
        return tasks.show(redis, task_id).state == "scheduled"
    except NotFound:
        return False


def accept(gateway: Gateway, dicts: list[dict[str, Any]]) -> list[str]:
    """Submits an array, and returns the ids as soon as the answer arrives."""
    with Connection(gateway.port) as connection:
        answers = connection.ask(dicts)
    assert all(answer["ok"] for answer in answers), answers[0]
    return [answer["id"] for answer in answers]


# --- with the shipped options ------------------------------------------------------------------------------------


def test_accepted_tasks_survive_a_redis_crash_and_a_power_cut_right_after_the_answer(tmp_path: Path) -> None:
    with (
        Machine(tmp_path, *SHIPPED) as machine,
        Gateway(machine.server.url, tmp_path, ACCEPT_RETRY_SECONDS=10) as gateway,
    ):
        redis = connect(machine.server.url)
        ids: list[str] = []
        for number in (1, 700, 2, 1):
            ids += accept(gateway, [task() for _ in range(number)])
            machine.server.kill()
            machine.server.start()
            assert all(is_there(redis, task_id) for task_id in ids)
            ids += accept(gateway, [task() for _ in range(number)])
            machine.cut_power()
            assert all(is_there(redis, task_id) for task_id in ids)
        assert redis.zcard(keys.SCHEDULE) == len(ids) == 1_408


def test_answered_inbox_entries_and_outcomes_survive_a_power_cut(tmp_path: Path) -> None:
    with Machine(tmp_path, *SHIPPED) as machine, Receiver() as receiver:
        environment = {"QTASK_REDIS_URL": machine.server.url}
        redis = connect(machine.server.url, 40.0)
        processes = [Process(name, environment, tmp_path / f"{name}.log") for name in ("scheduler", "worker")]
        try:
            with Gateway(machine.server.url, tmp_path) as gateway:
                address = {"type": "http", "link": receiver.url}
                (delivered,) = accept(gateway, [{"title": "t", "address": address, "settings": {"time": 0}}])
                until(lambda: tasks.show(redis, delivered).state == "delivered")
                redis.xadd(keys.INBOX, {"task": json.dumps(task()), "reply": "reply"})
                reply: Any = redis.blpop(["reply"], 30)
                machine.cut_power()
                assert is_there(redis, json.loads(reply[1])["id"])
                (later,) = accept(gateway, [{"title": "t", "address": address, "settings": {"time": 0}}])
                until(lambda: tasks.show(redis, later).state == "delivered")
                assert tasks.show(redis, delivered).state == "delivered"
        finally:
            for process in processes:
                process.kill()
        assert [request.header("QTask-Id") for request in receiver.requests] == [delivered, later]


def test_power_cut_loses_what_was_not_synced(tmp_path: Path) -> None:
    """The other tests depend on this."""
    with Machine(tmp_path, *SHIPPED, "--appendfsync", "no") as machine:
        with Gateway(machine.server.url, tmp_path) as gateway:
            ids = accept(gateway, [task() for _ in range(3)])
        machine.cut_power()
        assert [is_there(machine.server.client(), task_id) for task_id in ids] == [False] * 3


def test_embedded_redis_has_the_shipped_persistence_options(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        found: Any = Redis.from_url(embedded.url).config_get("*")
    for line in OPTIONS_FILE.read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            if value.endswith("mb"):
                value = str(int(value.removesuffix("mb")) * 1_048_576)
            assert found[name] == value.strip('"'), name
    assert (found["appendonly"], found["appendfsync"], found["maxmemory-policy"]) == ("yes", "always", "noeviction")


# --- findings of the doctor ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(redis: Redis) -> Iterator[Redis]:
    """A Redis with an append-only file; its settings are restored afterwards."""
    redis.config_set("appendonly", "yes")
    until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
    try:
        yield redis
    finally:
        redis.config_set("appendfsync", "everysec")
        redis.config_set("no-appendfsync-on-rewrite", "no")
        redis.config_set("appendonly", "no")


def about_the_file(config: Config) -> Finding:
    (finding,) = [one for one in examine(config) if "append-only file" in one.what]
    return finding


@contextmanager
def guest(redis: Redis, url: str, *rights: str) -> Iterator[str]:
    """The address for a user with restricted rights."""
    redis.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "~*", *rights)
    try:
        yield url.replace("://", "://guest:secret@")
    finally:
        redis.execute_command("ACL", "DELUSER", "guest")


@pytest.mark.parametrize(
    ("appendfsync", "level", "words"),
    [
        ("always", "fine", "before it answers"),
        ("everysec", "note", "a power cut may lose the last second"),
        ("no", "note", "a power cut may lose the last half minute"),
    ],
)
def test_possible_loss_by_a_power_cut_is_reported(
    kept: Redis, redis_server: RedisServer, appendfsync: str, level: str, words: str
) -> None:
    kept.config_set("appendfsync", appendfsync)
    finding = about_the_file(Config(redis_url=redis_server.url))
    assert (finding.level, words in finding.what) == (level, True), finding
    assert ("CONFIG SET appendfsync always" in finding.advice) is (level == "note")


def test_missing_fsync_during_a_rewrite_is_reported(kept: Redis, redis_server: RedisServer) -> None:
    kept.config_set("appendfsync", "always")
    kept.config_set("no-appendfsync-on-rewrite", "yes")
    finding = about_the_file(Config(redis_url=redis_server.url))
    assert finding.level == "note" and "during a rewrite" in finding.what
    assert "CONFIG SET no-appendfsync-on-rewrite no" in finding.advice


def test_doctor_without_config_rights_reports_what_it_can_see(kept: Redis, redis_server: RedisServer) -> None:
    with guest(kept, redis_server.url, "+@all", "-config") as url:
        finding = about_the_file(Config(redis_url=url))
    assert finding.level == "note"
    assert finding.what.endswith("when it is synced to the disk was not checked")


def test_redis_without_persistence_or_with_eviction_is_wrong(redis: Redis, redis_server: RedisServer) -> None:
    redis.config_set("maxmemory-policy", "volatile-lru")
    try:
        findings = examine(Config(redis_url=redis_server.url))
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    wrong = [finding.what for finding in findings if finding.level == "wrong"]
    assert any("tasks are lost when Redis restarts" in what for what in wrong)
    assert any("maxmemory-policy volatile-lru" in what for what in wrong)
