"""Commands with standard streams that are closed, full, or in another encoding than UTF-8."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.installation import Installation
from tests.support.receiver import Receiver
from tests.support.waiting import until

TITLE = "é☃😀"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as Python was before it defaulted to UTF-8


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("streams")) as running:
        yield running


def shell(installation: Installation, arguments: str, redirections: str = "", **environment: str) -> Any:
    """Runs `qtask ARGUMENTS` with a shell, which can close and redirect streams."""
    command = f"exec {shlex.quote(sys.executable)} -m qtask {arguments} {redirections}"
    told = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        ["sh", "-c", command],
        env={**told, **installation.environment, **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def sent(installation: Installation, **environment: str) -> str:
    done = shell(installation, f"send --udp 127.0.0.1:9 --in 3600 --title {TITLE} --data 1 --json", **environment)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


@pytest.mark.parametrize("redirections", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_command_with_closed_streams_works(installation: Installation, redirections: str) -> None:
    done = shell(installation, "list --limit 1", redirections)
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_input_counts_as_empty(installation: Installation) -> None:
    done = shell(installation, "send -", "<&-")
    assert (done.returncode, done.stderr.decode()) == (1, "qtask: there is nothing to send: the file is empty\n")


@pytest.mark.parametrize("arguments", ["list", "list --json", "stats", "doctor", "--help"])
@pytest.mark.slow
def test_full_output_is_reported_in_one_line(installation: Installation, arguments: str) -> None:
    sent(installation)
    done = shell(installation, arguments, "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode() == "qtask: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    "environment", [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C"}]
)
@pytest.mark.slow
def test_characters_missing_in_the_output_encoding_are_escaped(
    installation: Installation, environment: dict[str, str]
) -> None:
    task_id = sent(installation, **environment)
    shown = shell(installation, f"show {task_id}", **environment)
    assert (shown.returncode, shown.stderr) == (0, b"")
    told = shell(installation, f"show --json {task_id}", **environment)
    assert told.returncode == 0
    written = told.stdout.decode("latin-1" if "latin-1" in environment.values() else "utf-8")
    assert json.loads(written)["title"] == TITLE


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_argument_that_is_not_utf_8_is_reported_in_one_line(installation: Installation, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qtask", command, b"a\xff"],
        env={**os.environ, **installation.environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"qtask: no task has the id 'a\\udcff'") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", "2>&1 | head -n 1", "> /dev/full 2>&1"])
@pytest.mark.slow
def test_up_runs_when_nobody_reads_its_output(tmp_path: Path, redirections: str) -> None:
    flags = f"--data-dir {shlex.quote(str(tmp_path / 'data'))} --port 0 --http-port 0"
    # With a pipe, the shell is the parent, so it writes the process id to a file.
    program = f"sh -c 'echo $$ > {tmp_path}/pid; exec {sys.executable} -m qtask up {flags}' {redirections}"
    process = subprocess.Popen(["sh", "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pid_file = tmp_path / "pid"
        until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), what="the process")
        folder = tmp_path / "data"
        until((folder / "redis.url").exists, 30, "its Redis")
        with Receiver() as receiver:
            arguments = ["send", "--http", receiver.url, "--redis", (folder / "redis.url").read_text()]
            subprocess.run([sys.executable, "-m", "qtask", *arguments], timeout=60, check=True, capture_output=True)
            receiver.wait_for(1)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        process.wait(30)
