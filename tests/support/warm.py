"""`qtask …` as a process forked from one with all modules loaded, as loading them takes 0.4 s of the processor.

It is a process like any other, with its own environment, folder and streams. The tests start hundreds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import TimeoutExpired

# Variables that the interpreter, the loader or a library reads only at its start. With one of these, no fork is used.
_READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "OPENSSL_", "MALLOC_")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("qtask.cli.main", "qtask.cli.sending", "qtask.cli.task_files", "qtask.observe.tables", "qtask.observe.stats"),
        *("qtask.worker.process", "qtask.destinations.http.curl_transport", "qtask.scheduler.process"),
        *("qtask.gateway.process", "qtask.api.server", "qtask.run.up", "qtask.store.audit"),
        *("qtask.run.doctor.examination", "qtask.run.doctor.health"),
        *("redis", "rq.worker", "rq_scheduler", "uvicorn", "starlette.applications"),
    ]
)


def can_be_forked(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment may be forked from one with ours; not if it inherits `nohup`."""
    if signal.getsignal(signal.SIGHUP) != signal.SIG_DFL:
        return False
    names = {name for name in {*environment, *os.environ} if name.startswith(_READ_AT_START)}
    return all(environment.get(name) == os.environ.get(name) for name in names)


class WarmProcess:
    """A process that runs `qtask ARGUMENTS`; its methods are those of `subprocess.Popen`.

    Args:
        arguments: after `qtask`.
        environment: the whole of it.
        folder: its working directory.
        streams: files for its input, output and errors; the last two are appended to and may be the same.
    """

    def __init__(
        self, arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path, streams: tuple[Path, Path, Path]
    ) -> None:
        given = (arguments, dict(environment), folder.absolute(), [path.absolute() for path in streams])
        self._process = _CONTEXT.Process(target=_run, args=given, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end and returns the exit code; raises `TimeoutExpired` after this many seconds."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise TimeoutExpired("qtask", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has exited."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it."""
        self.send_signal(signal.SIGKILL)


def _run(arguments: tuple[str, ...], environment: dict[str, str], folder: Path, streams: list[Path]) -> None:
    for number, path in enumerate(streams):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT if number else os.O_RDONLY, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["qtask", *arguments]
    from qtask.cli.main import main

    try:
        main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
