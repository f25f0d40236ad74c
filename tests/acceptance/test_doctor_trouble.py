"""Findings of the doctor on real problems: of Redis, its data, tasks, and processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.run.doctor import backlog, data_folder, examination, gateway, processes, redis_server
from qtask.run.doctor.examination import examine
from qtask.run.doctor.finding import Examined, Finding
from qtask.store import keys
from tests.integration.test_doctor import answering, found
from tests.support.command import qtask
from tests.support.gateway_process import Gateway
from tests.support.installation import Installation
from tests.support.live import ProcessGroup
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def config_of(url: str, folder: Path, **settings: Any) -> Config:
    ports = {"port": free_port(), "http_port": free_port(), **settings}
    return Config(redis_url=url, data_dir=str(folder / "data"), pipe_dir=str(folder), **ports)


@pytest.fixture
def config(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> Config:
    return config_of(redis_server.url, tmp_path)


@pytest.fixture
def group(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> Iterator[ProcessGroup]:
    with ProcessGroup(redis_server.url, redis_server.client(), tmp_path) as one:
        yield one


def task(port: int, **settings: Any) -> dict[str, Any]:
    address = {"type": "http", "link": f"http://127.0.0.1:{port}/"}
    return {"title": "t", "address": address, "settings": {"time": 0, "retry": {"attempts": 1}, **settings}}


def fine(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "fine"]


# --- Redis -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words", "advice"),
    [
        ("wrong", "rejects the user or the password", "Check both in QTASK_REDIS_URL"),
        ("", "requires a password", "redis://USER:PASSWORD@HOST:PORT/0"),
    ],
)
def test_redis_with_another_password(tmp_path: Path, given: str, words: str, advice: str) -> None:
    server = RedisServer(tmp_path, password="S3cret-word")
    try:
        url = f"redis://{f':{given}@' if given else ''}127.0.0.1:{server.port}/0"
        finding = found(config_of(url, tmp_path), words)
        listed = qtask("list", "--redis", url)
    finally:
        server.kill()
    assert finding.level == "wrong" and advice in finding.advice
    assert words in listed.stderr and listed.returncode == 1
    assert "S3cret" not in finding.what + listed.stderr


def test_hanging_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "REDIS_SECONDS", 1.0)
    server = RedisServer(tmp_path)
    with Gateway(server.url, tmp_path) as gateway:
        hanging = config_of(server.url, tmp_path, port=gateway.port, http_port=gateway.http_port)
        server.signal(signal.SIGSTOP)
        try:
            findings = {finding.what: finding for finding in examine(hanging)}
        finally:
            server.signal(signal.SIGCONT)
            server.kill()
    (what,) = [what for what in findings if what.startswith(f"the server at redis://127.0.0.1:{server.port}/0 accepts")]
    assert findings[what].level == "wrong" and "it hangs: check its log" in findings[what].advice
    (what,) = [what for what in findings if "is not healthy: Redis does not answer" in what]
    assert findings[what].level == "wrong"
    assert not any("something other" in what for what in findings)


def test_redis_that_starts_to_hang_during_the_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "REDIS_SECONDS", 1.0)
    server = RedisServer(tmp_path)

    def stop(here: Examined) -> Finding:
        server.signal(signal.SIGSTOP)
        return redis_server.memory(here)

    checks = [stop if check is redis_server.memory else check for check in examination.REDIS_CHECKS]
    monkeypatch.setattr(examination, "REDIS_CHECKS", checks)
    try:
        findings = examine(config_of(server.url, tmp_path))
    finally:
        server.kill()
    assert findings[-1].what == "Redis has stopped answering, so the rest was not checked"
    assert not any("worker" in what or "clock" in what for what in fine(findings))


def test_server_that_is_not_redis(config: Config) -> None:
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        finding = found(
            replace(config, redis_url=f"redis://127.0.0.1:{port}/0"), f"at redis://127.0.0.1:{port}/0 is not a Redis"
        )
    assert (finding.level, finding.advice) == ("wrong", "Name the right port with --redis")


def test_redis_that_loads_its_data(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "no")
    with server.client().pipeline() as pipeline:
        for number in range(3_000):
            pipeline.set(f"key-{number}", b"x" * 3_000)
        pipeline.execute()
    server.client().save()
    server.stop()
    server.begin("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    try:
        until(lambda: _says(server, "LOADING") or _says(server, "loading"), 30, "a Redis that loads")
        finding = found(config_of(server.url, tmp_path), "is still loading its data")
    finally:
        server.kill()
    assert finding.level == "wrong" and finding.advice.startswith("Wait until it has")


def _says(server: RedisServer, words: str) -> bool:
    try:
        server.client().ping()
    except Exception as error:
        return words in str(error)
    return False


def test_replica(tmp_path: Path, redis_server: RedisServer, redis: Redis) -> None:
    server = RedisServer(tmp_path, "--replicaof", f"127.0.0.1 {redis_server.port}")
    try:
        finding = found(config_of(server.url, tmp_path), "this Redis is a replica of")
    finally:
        server.kill()
    assert finding.level == "wrong" and f"(127.0.0.1:{redis_server.port})" in finding.advice


def test_cluster(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    try:
        assert (
            found(config_of(server.url, tmp_path), "runs in cluster mode, which QTask does not support").level
            == "wrong"
        )
    finally:
        server.kill()


def test_user_without_a_right(config: Config, redis: Redis, redis_server: RedisServer) -> None:
    redis.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">word", "+@all", "~*", "resetchannels")
    try:
        poor = replace(config, redis_url=f"redis://poor:word@127.0.0.1:{redis_server.port}/0")
        findings = [
            one for one in examine(poor) if "may not PUBLISH on qtask:wake: grant +publish &qtask:*" in one.what
        ]
    finally:
        redis.execute_command("ACL", "DELUSER", "poor")
    assert {(one.what.partition(":")[0], one.level) for one in findings} >= {
        ("for a gateway", "wrong"),
        ("for a scheduler", "wrong"),
        ("for a worker", "wrong"),
    }
    assert found(config, "has all rights in Redis that QTask needs").level == "fine"


# --- data ------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """A disk of a few MiB, in memory."""
    place = folder / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_and_redis_that_cannot_write(tmp_path: Path) -> None:
    with small_disk(tmp_path, 8) as disk:
        server = RedisServer(disk, "--appendonly", "yes", "--appendfsync", "everysec")
        config = config_of(server.url, tmp_path)
        try:
            with suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4_096)
            with suppress(Exception):
                for _ in range(200):
                    server.client().set("key", b"x" * 10_000)
            until(lambda: server.client().info("persistence")["aof_last_write_status"] == "err", 30, "the failed write")
            full = found(config, f"the disk of {disk} is full")
            refusing = found(config, "cannot write its append-only file, so it accepts no tasks (MISCONF)")
        finally:
            server.kill()
    assert full.level == refusing.level == "wrong"
    assert "free some space" in full.advice and "free some space" in refusing.advice


def test_nearly_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path, 100) as disk:
        assert data_folder.disk_space(disk).level == "fine"
        (disk / "fill").write_bytes(b"x" * 98 * 1_048_576)
        finding = data_folder.disk_space(disk)
    assert finding.level == "wrong" and "it is nearly full" in finding.what


def folder_findings(folder: Path, **settings: Any) -> list[Finding]:
    return list(data_folder.data_folder(Config(data_dir=str(folder), **settings)))


def test_missing_or_foreign_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (finding,) = data_folder.data_folder(Config())
    assert finding.what == f"there is no data folder qtask-data in {tmp_path}: no `qtask up` has run on it"
    assert finding.level == "note" and "--data-dir" in finding.advice
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    (finding,) = folder_findings(tmp_path / "photos")
    assert (finding.level, finding.what) == ("wrong", f"{tmp_path / 'photos'} is not the data folder of a QTask")
    (finding,) = folder_findings(tmp_path / "photos" / "one.jpg")
    assert finding.level == "wrong" and "is not a folder" in finding.what


def test_data_folder_of_a_running_and_of_a_stopped_up(tmp_path: Path) -> None:
    with Installation(tmp_path) as running:
        assert [finding.level for finding in folder_findings(running.data_dir)] == ["fine", "fine"]
    first, _ = folder_findings(running.data_dir)
    assert first.level == "note" and "has ended" in first.what


def test_gateway_of_another_redis(
    config: Config, group: ProcessGroup, redis_server: RedisServer, tmp_path: Path
) -> None:
    group.send("qtask", task(1, time=3_600))
    other = RedisServer(tmp_path)
    try:
        with Gateway(redis_server.url, tmp_path) as gateway, Gateway(other.url, tmp_path) as wrong:
            mine = replace(config, port=gateway.port, http_port=gateway.http_port)
            assert found(mine, "the gateway uses this Redis").level == "fine"
            theirs = replace(config, port=wrong.port, http_port=wrong.http_port)
            finding = found(theirs, "uses another Redis than the one checked here")
    finally:
        other.kill()
    assert finding.level == "wrong" and "--data-dir" in finding.advice


def test_data_folder_of_another_user(request: pytest.FixtureRequest) -> None:
    if os.getuid():
        pytest.skip("becoming another user needs root")
    parent = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    request.addfinalizer(lambda: shutil.rmtree(parent))
    parent.chmod(0o755)
    folder = parent / "data"
    folder.mkdir(mode=0o700)
    code = f"""
import os
from qtask.run.doctor.data_folder import data_folder
from qtask.config import Config
os.setgid(65534); os.setuid(65534)
for finding in data_folder(Config(data_dir={str(folder)!r})):
    print(finding.level, finding.what, finding.advice)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"wrong this user may not read the data folder {folder} run this as root" in result.stdout


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_dead_letters_are_counted_by_error(config: Config, group: ProcessGroup) -> None:
    assert found(config, "no dead letters").level == "fine"
    group.start("scheduler")
    group.start("worker")
    ids = group.send("qtask", *[task(1) for _ in range(3)])
    ids += group.send("qtask", {**task(1), "address": {"type": "http", "link": "http://never.invalid/"}})
    group.ended(ids)
    finding = found(config, "dead letters in the queue qtask")
    assert finding.what == "4 dead letters in the queue qtask: 3 by connect, 1 by dns"
    assert finding.level == "note" and "qtask list --state dead" in finding.advice and "qtask retry" in finding.advice


def test_refused_inbox_entries(config: Config, redis: Redis, redis_server: RedisServer, tmp_path: Path) -> None:
    assert found(config, "no entries of the inbox were refused").level == "fine"
    with Gateway(redis_server.url, tmp_path):
        for _ in range(2):
            redis.xadd(keys.INBOX, {"task": json.dumps({"title": "t"}), "reply": "reply"})
            assert redis.blpop(["reply"], 30)
    finding = found(config, "of the inbox refused")
    assert finding.what == "2 entries of the inbox refused, the newest for: missing_field address"
    assert finding.level == "note" and "XREVRANGE qtask:refused" in finding.advice


def test_queue_without_workers(config: Config, group: ProcessGroup) -> None:
    group.start("scheduler")
    group.start("worker", queue="elsewhere")
    group.send("qtask", task(1))
    group.wait_queued("qtask", 1)
    finding = found(config, "the queue qtask holds 1 tasks, and no worker takes from it")
    assert (finding.level, finding.advice) == ("wrong", "start one with `qtask worker --queue qtask`")


def test_queue_that_workers_cannot_keep_up_with(
    config: Config, group: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "WAITED_SECONDS", 0.5)
    group.start("scheduler")
    worker = group.start("worker")
    assert found(config, "no queue waits for workers").level == "fine"
    group.command("rq", "suspend", "-u", group.url)
    group.heartbeats(worker, 3)
    group.send("qtask", task(1), task(1))
    group.wait_queued("qtask", 2)
    time.sleep(1.6)
    finding = found(config, "the queue qtask holds 2 tasks, the first of which waits for")
    assert finding.level == "wrong" and "rq resume" in finding.advice
    group.command("rq", "resume", "-u", group.url)


# --- processes -------------------------------------------------------------------------------------------------------


def test_frozen_worker_and_killed_worker(config: Config, group: ProcessGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 2.0)
    frozen = group.start("worker")
    killed = group.start("worker")
    group.heartbeats(frozen, 2)
    frozen.signal(signal.SIGSTOP)
    killed.kill()
    host = socket.gethostname()
    time.sleep(3.5)
    finding = found(config, f"the worker with pid {frozen.pid} on {host}")
    assert finding.level == "wrong" and "but its process exists" in finding.what
    assert f"kill -9 {frozen.pid}" in finding.advice
    finding = found(config, f"the worker with pid {killed.pid} on {host}")
    assert finding.level == "note" and "it was killed, or cannot reach Redis" in finding.what
    frozen.signal(signal.SIGCONT)


def test_stock_rqscheduler_instead_of_ours(config: Config, group: ProcessGroup) -> None:
    port = group.url.rpartition(":")[2].partition("/")[0]
    stock = group.program("rqscheduler", "-p", port, "-i", "1", "-j", "qtask.store.rq_job.TaskJob")
    until(lambda: group.redis.get(keys.SCHEDULER_LOCK), 30, "its lock")
    finding = found(config, "a stock rqscheduler is running, and no scheduler of QTask")
    assert finding.level == "note" and "start `qtask scheduler`" in finding.advice
    stock.kill()
    stock.wait()


def test_hanging_gateway(
    config: Config, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "HTTP_SECONDS", 1.0)
    with Gateway(redis_server.url, tmp_path) as hanging:
        hanging.process.signal(signal.SIGSTOP)
        finding = found(
            replace(config, port=hanging.port, http_port=hanging.http_port), "and does not answer within 1 s"
        )
        hanging.process.signal(signal.SIGCONT)
    assert finding.level == "wrong" and "its process hangs: restart it" in finding.advice


def test_unchecked_items_are_not_reported_as_fine(config: Config, redis: Redis, redis_server: RedisServer) -> None:
    redis.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">word", "~*", "+ping", "+hello", "+auth")
    try:
        findings = examine(replace(config, redis_url=f"redis://guest:word@127.0.0.1:{redis_server.port}/0"))
    finally:
        redis.execute_command("ACL", "DELUSER", "guest")
    assert all(what.startswith(("Python", "the pipe folder")) or "packages" in what for what in fine(findings)), (
        findings
    )
