"""Commands of `qtask` as separate processes: with pipes, as programs run them, or on a terminal, as people do."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping
from pathlib import Path

from tests.support.warm import WarmProcess, can_be_forked

SECONDS = 60.0  # for a command that hangs


def qtask(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    input: str = "",
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `qtask …` and returns its exit code and output."""
    whole = _environment(environment)
    if can_be_forked(whole):
        return _forked(arguments, whole, input, cwd or Path.cwd())
    return subprocess.run(
        [sys.executable, "-m", "qtask", *arguments],
        env=whole,
        input=input,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def _forked(
    arguments: tuple[str, ...], environment: Mapping[str, str], input: str, cwd: Path
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        given, output, errors = (Path(folder) / name for name in ("input", "output", "errors"))
        given.write_bytes(input.encode("utf-8", "surrogateescape"))
        process = WarmProcess(arguments, environment, cwd, (given, output, errors))
        try:
            code = process.wait(SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, output.read_text(), errors.read_text())


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error of a command that exited with 1, as for every foreseen error."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def on_terminal(
    *command: str,
    environment: Mapping[str, str] | None = None,
    columns: int = 100,
    stdout: int | None = None,
    cwd: Path | None = None,
    with_input: bool = False,
) -> tuple[int, str]:
    """Runs a command with its output and errors on a terminal; returns its exit code and the text on the terminal.

    Args:
        command: program and arguments.
        environment: added to our own.
        columns: width of the terminal.
        stdout: a descriptor for its output, if only errors go to the terminal.
        cwd: its working directory.
        with_input: whether its input is the terminal, too, on which nothing is typed; else there is none.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        env={**_environment(environment), "TERM": "xterm-256color"},
        cwd=cwd,
        stdin=theirs if with_input else subprocess.DEVNULL,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65_536):
            shown += chunk
    except OSError:  # Linux reports the closed other side like this
        pass
    finally:
        os.close(ours)
    return process.wait(SECONDS), shown.decode()


def _environment(given: Mapping[str, str] | None) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("QTASK_") and name != "NO_COLOR"}
    return {**own, **(given or {})}
