"""The embedded Redis: how it is started, its data and address, and exclusive use of its folder."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from qtask.config import Config
from qtask.model.errors import QTaskError
from qtask.run.embedded import ADDRESS_FILE, EmbeddedRedis, embedded_url, machine_memory_mib, reachable_url
from tests.support.documents import ROOT
from tests.support.embedded_redis import running
from tests.support.installation import kill, processes
from tests.support.waiting import until


def server_pid(folder: Path) -> int:
    (pid,) = [pid for pid, (_, line) in processes().items() if "-server" in line and _listens_in(pid, folder)]
    return pid


def _listens_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
    except OSError:
        return False


# --- operation ---------------------------------------------------------------------------------------------------


def test_data_survives_a_stop(tmp_path: Path) -> None:
    with running(tmp_path / "new" / "data") as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
        first = embedded.url
    with running(tmp_path / "new" / "data") as embedded:
        assert embedded.url == first
        assert Redis.from_url(embedded.url).get("kept") == b"yes"


def test_data_and_address_survive_a_crash(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        url = embedded.url
        Redis.from_url(url).set("kept", "yes")
        kill(server_pid(tmp_path))
        until(lambda: not embedded.running)
        assert embedded_url(tmp_path) == ""
        embedded.start()
        assert embedded.running
        assert (embedded.url, embedded_url(tmp_path)) == (url, url)
        assert Redis.from_url(url).get("kept") == b"yes"


def fill(client: Redis, mib: int) -> None:
    for number in range(mib):
        client.set(f"number {number}", b"x" * 1_048_576)


def test_memory_is_bounded(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        bound: Any = Redis.from_url(embedded.url).config_get("maxmemory")
        assert 0 < int(bound["maxmemory"]) <= machine_memory_mib() * 1_048_576 // 2
    embedded = EmbeddedRedis(tmp_path, memory_mib=64)
    embedded.start()
    try:
        with pytest.raises(OutOfMemoryError):
            fill(Redis.from_url(embedded.url), 65)
    finally:
        embedded.stop()


def test_embedded_redis_persists_evicts_nothing_and_opens_no_port(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        client = Redis.from_url(embedded.url)
        set_to: Any = client.config_get("*")
        assert set_to["appendonly"] == "yes"
        assert set_to["maxmemory-policy"] == "noeviction"
        assert set_to["hash-max-ziplist-value"] == "4096"
        assert set_to["port"] == "0"
        assert stat.S_IMODE((tmp_path / "redis.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["with a space", "100%25", "what?#", "größer", "long" * 50])
def test_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    with running(folder) as embedded:
        assert Redis.from_url(embedded_url(folder)).set("a", "b")
        url = embedded.url
        assert len(url) < 300
    assert embedded_url(folder) == ""
    assert not Path(url.removeprefix("unix://")).exists()


def test_other_commands_find_it_unless_another_redis_is_named(tmp_path: Path) -> None:
    here = Config(data_dir=str(tmp_path))
    assert reachable_url(here) == "redis://127.0.0.1:6379/0"
    with running(tmp_path) as embedded:
        assert reachable_url(here) == embedded.url
        assert reachable_url(Config(data_dir=str(tmp_path), redis_url="redis://other/1")) == "redis://other/1"
    (tmp_path / ADDRESS_FILE).write_text("unix:///left/behind/by/a/killed/one")
    assert reachable_url(here) == "redis://127.0.0.1:6379/0"


# --- errors ------------------------------------------------------------------------------------------------------


def test_folder_cannot_be_used_twice(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        words = r"another qtask already uses the folder .*; choose another with --data-dir"
        with pytest.raises(QTaskError, match=words):
            EmbeddedRedis(tmp_path).start()
        assert Redis.from_url(first.url).ping()


def test_folder_stays_locked_until_redis_itself_has_ended(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom qtask.run.embedded import EmbeddedRedis\n"
        "embedded = EmbeddedRedis(pathlib.Path(sys.argv[1])); embedded.start(); print(embedded.url, flush=True)\n"
        "sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdin is not None and parent.stdout is not None
    with parent.stdin, parent.stdout:
        Redis.from_url(parent.stdout.readline().decode().strip()).set("kept", "yes")
        old = server_pid(tmp_path)
        parent.kill()
        parent.wait()
        with running(tmp_path) as embedded:  # waits for the old one, which ends with its parent
            assert server_pid(tmp_path) != old
            assert Redis.from_url(embedded.url).get("kept") == b"yes"


def test_unusable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QTaskError, match=r"the folder .*file cannot be used: File exists"):
        EmbeddedRedis(tmp_path / "file").start()


def test_error_quotes_the_log_of_a_redis_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest")
    embedded = EmbeddedRedis(tmp_path)
    words = r"the embedded Redis did not start \(exit code 1, \d+ MiB free .*; the end of .*redis\.log says: .*manifest"
    with pytest.raises(QTaskError, match=words):
        embedded.start()
    assert not embedded.running
