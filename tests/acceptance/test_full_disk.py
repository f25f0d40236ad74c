"""A full disk: no tasks are accepted, every process recovers, and accepted tasks are kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from qtask import Client
from qtask.model.errors import QTaskError, Unavailable
from qtask.run.embedded import EmbeddedRedis
from qtask.store import keys, tasks
from tests.support.gateway_process import Gateway, scheduled
from tests.support.installation import Installation
from tests.support.live import Live
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = pytest.mark.slow

LARGE = "x" * 100_000
MOST = 2_000  # submissions of a loop that should end much sooner


class Disk:
    """A small file system in memory, mounted on a folder; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("size=3m", "-t", "tmpfs", "tmpfs", str(folder))

    def make_room(self) -> None:
        """Makes it larger."""
        self._mount("remount,size=64m", str(self.folder))

    def unmount(self) -> None:
        """Unmounts it as soon as nobody uses it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def _mount(self, options: str, *arguments: str) -> None:
        done = subprocess.run(["mount", "-o", options, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "data")
    yield disk
    disk.unmount()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def fill(url: str, failures: int) -> list[str]:
    """Sends large tasks until enough have failed; returns the ids of the accepted ones."""
    accepted: list[str] = []
    failed = 0
    with Client(url, timeout=5.0) as client:
        for _ in range(MOST):
            try:
                accepted.append(client.http("http://127.0.0.1:9/", delay=3_600, title="t", data=LARGE).id)
            except Unavailable:
                failed += 1
            if failed == failures:
                return accepted
    raise AssertionError(f"{failed} of {MOST} failed")


def is_accepted(url: str) -> str:
    try:
        with Client(url, timeout=5.0) as client:
            return client.http("http://127.0.0.1:9/", delay=3_600, data=LARGE).id
    except QTaskError:
        return ""


@pytest.mark.timeout(150)
def test_qtask_up_survives_a_full_disk_and_keeps_accepted_tasks(disk: Disk, tmp_path: Path, receiver: Receiver) -> None:
    with Installation(tmp_path, environment={"QTASK_ACCEPT_RETRY_SECONDS": "0"}) as installation:

        def deaths() -> list[dict[str, object]]:
            return [event for event in installation.events() if event["event"] == "redis_died"]

        accepted = fill(installation.url, failures=8)
        assert len(accepted) > 3
        while len(deaths()) < 4:
            fill(installation.url, failures=1)  # it is restarted, however often it dies
        assert installation.process.running
        died = deaths()[-1]
        assert died["ended"] == "exit code 1" and isinstance(died["log"], list)
        assert any("the disk is full" in str(event["disk"]) for event in deaths())
        disk.make_room()
        later = until(lambda: is_accepted(installation.url), 45, "the service to be back", every=0.5)
        assert {*accepted, later} <= set(scheduled(installation.redis))
        with Client(installation.url) as client:
            delivered = client.http(receiver.url + "again").id
        receiver.wait_for(1)
        until(lambda: tasks.show(installation.redis, delivered).state == "delivered", 30)
        assert installation.process.stop(30) == 0
    with Installation(tmp_path) as again:
        assert {*accepted, later} <= set(scheduled(again.redis))


def test_stop_works_with_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    with Installation(tmp_path, environment={"QTASK_ACCEPT_RETRY_SECONDS": "0"}) as installation:
        fill(installation.url, failures=2)
        assert installation.process.stop(40) == 0


def test_disk_that_is_full_at_the_start_is_named(disk: Disk) -> None:
    with suppress(OSError), (disk.folder / "ballast").open("wb") as ballast:
        while True:
            ballast.write(b"x" * 4_096)
            ballast.flush()
    with pytest.raises(QTaskError, match=r"the disk is full|No space left on device"):
        EmbeddedRedis(disk.folder).start()
    (disk.folder / "ballast").unlink()
    embedded = EmbeddedRedis(disk.folder)
    embedded.start()  # leftovers of the failed start do no harm
    embedded.stop()


def test_rewrite_without_room_does_no_harm_and_leaves_nothing(disk: Disk) -> None:
    embedded = EmbeddedRedis(disk.folder)
    embedded.start()
    try:
        client = Redis.from_url(embedded.url)
        for number in range(17):
            client.set(f"key {number}", os.urandom(100_000))
        for _ in range(3):
            with suppress(ResponseError):
                client.bgrewriteaof()
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 30)
        assert client.info("persistence")["aof_last_bgrewrite_status"] == "err"
        with suppress(RedisError):  # this one does not fit
            for number in range(17):
                client.set(f"another {number}", os.urandom(100_000))
        until(lambda: not embedded.running, 30)
        disk.make_room()

        def is_back() -> bool:
            embedded.look()
            return embedded.answers

        until(is_back, 30, "Redis to be back", every=0.1)
        client = Redis.from_url(embedded.url)
        assert [len(client.get(f"key {number}") or b"") for number in range(17)] == [100_000] * 17
        assert not list(disk.folder.rglob("temp-*"))
    finally:
        embedded.stop()


def test_processes_wait_for_a_redis_that_rejects_writes_while_the_disk_is_full(
    disk: Disk, tmp_path: Path, receiver: Receiver
) -> None:
    """With `appendfsync everysec` Redis keeps running and answers MISCONF."""
    with Live(disk.folder, "--appendonly", "yes", "--appendfsync", "everysec") as live:
        others = [live.start("scheduler"), live.start("worker")]
        with Gateway(live.url, tmp_path, ACCEPT_RETRY_SECONDS=0) as gateway:
            accepted = fill(gateway.url, failures=5)
            with pytest.raises(ResponseError, match="MISCONF"):
                live.redis.set("x", "y")
            disk.make_room()
            later = until(lambda: is_accepted(gateway.url), 30, "tasks to be accepted", every=0.2)
            with Client(gateway.url) as client:
                delivered = client.http(receiver.url + "again").id
            receiver.wait_for(1)
            until(lambda: tasks.show(live.redis, delivered).state == "delivered", 30)
            assert all(process.running for process in (gateway.process, *others))
            assert {*accepted, later} <= set(scheduled(live.redis))
            assert live.redis.zcard(keys.SCHEDULE) >= len(accepted)
