"""`qtask demo` as a new user runs it: its output, and that it leaves only the graph."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import qtask, refused
from tests.support.documents import ROOT, blocks
from tests.support.installation import processes_of
from tests.support.waiting import until


@dataclass(frozen=True)
class Run:
    """A finished demo: its working folder, its folder for temporary files, and its output."""

    folder: Path
    scratch: Path
    shown: str


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, scratch = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("scratch")
    result = qtask("demo", environment={"TMPDIR": str(scratch)}, cwd=folder)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    return Run(folder, scratch, result.stdout)


def test_demo_submits_tasks_of_every_type_and_shows_refusals(demo: Run) -> None:
    submitted, broken, watched = demo.shown.split("\n\n")[1:4]
    assert len(re.findall(r"^  \S{12}  .* due in [\d.]+ s$", submitted, re.MULTILINE)) == 9
    for code in ("missing_field  address: ", "invalid_value  settings.time: ", "unknown_field  settings.dta: "):
        assert f"\n  {code}" in broken
    assert len(re.findall(r"^  delivered .* after it was due$", watched, re.MULTILINE)) == 7
    assert len(re.findall(r"^  dead .* after it was due$", watched, re.MULTILINE)) == 2
    assert "All 109 tasks ended as expected, none before it was due." in demo.shown


def test_demo_prints_a_table_with_id_type_lateness_and_duration(demo: Run) -> None:
    submitted, table = (demo.shown.split("\n\n")[place] for place in (1, 4))
    _, heads, *rows = table.splitlines()
    assert heads.split() == ["id", "type", "lateness", "duration", "outcome", "answer"]
    span = r"\s+[\d.]+ (?:µs|ms|s)"
    shaped = [re.match(rf"  (\S{{12}})  (http|socket|pipe) {span} {span}  \S", row) for row in rows[:-1]]
    ids = re.findall(r"^  (\S{12})  ", submitted, re.MULTILINE)
    assert sorted(match[1] for match in shaped if match) == sorted(ids)
    assert {match[2] for match in shaped if match} == {"http", "socket", "pipe"}
    assert re.match(r"  … and the crowd of 100: lateness .* \(median\), .* \(longest\)", rows[-1])


def test_demo_writes_the_graph_and_leaves_nothing_else(demo: Run) -> None:
    assert "qtask-graph.png (" in demo.shown
    assert [path.name for path in demo.folder.iterdir()] == ["qtask-graph.png"]
    assert (demo.folder / "qtask-graph.png").read_bytes().startswith(b"\x89PNG")
    assert list(demo.scratch.iterdir()) == []
    assert processes_of(demo.scratch) == set()


def test_lines_fit_a_terminal_of_100_columns(demo: Run) -> None:
    assert max(map(len, demo.shown.splitlines())) <= 100


def test_readme_shows_the_output_of_the_demo(demo: Run) -> None:
    """Line by line, except for ids and figures."""
    transcript = next(block.text for block in blocks(ROOT / "README.md") if block.text.startswith("$ make demo\n"))
    printed = {_without_figures(line) for line in demo.shown.splitlines()}
    missing = [line for line in transcript.splitlines()[1:] if _without_figures(line) not in printed]
    assert missing == []


def _without_figures(line: str) -> str:
    line = re.sub(r"^  \S{12}  ", "  ID  ", line)
    return " ".join(re.sub(r"[\d.]+ (µs|ms|s|KiB)\b", "N", line).split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.slow
def test_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    scratch, said = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    command = [sys.executable, "-m", "qtask", "demo", "-o", str(tmp_path / "graph.png")]
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "TMPDIR": str(scratch)})
    until(lambda: "Tasks wait in Redis" in said.read_text(), 30, "the middle of the demo")
    process.send_signal(number)
    assert process.wait(30) == 130
    assert said.read_text().endswith("\nstopped\n")
    assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == set()


def test_unwritable_graph_path_is_reported_at_once(tmp_path: Path) -> None:
    words = refused(qtask("demo", "-o", str(tmp_path / "absent" / "graph.png")))
    assert words == f"qtask: {tmp_path}/absent/graph.png cannot be written: there is no folder {tmp_path}/absent"


def test_redis_that_does_not_start_is_reported(tmp_path: Path) -> None:
    """A server on the PATH that can only print its version."""
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\ntest \"$1\" = --version && echo 'Redis server v=7.2.0 sha=0 malloc=libc bits=64'\n")
    server.chmod(0o755)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = refused(qtask("demo", environment={"PATH": str(tmp_path), "TMPDIR": str(scratch)}, cwd=tmp_path))
    assert words.startswith("qtask: the embedded Redis did not start (exit code ")
    assert list(scratch.iterdir()) == []
