"""Child processes that never outlive their parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1
_SHIELDED_FROM = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | int | None = None,
    keep_open: Sequence[int] = (),
    shielded: bool = False,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Starts a process in its own session, so that signals of the terminal reach only the parent.

    When the parent dies, the kernel sends the child SIGTERM.

    Args:
        command: program and arguments.
        environment: variables to add to ours.
        output: target of its output and errors; None shares ours.
        keep_open: descriptors that the child inherits.
        shielded: for a child that only the parent may end. It blocks the signals that ask a process to stop, even if
            they are sent to all processes of a service or session, as systemd does. When the parent dies, the kernel
            sends it SIGKILL.
        umask: of the child; -1 keeps ours.
    """
    parent = os.getpid()

    def bind() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if shielded else signal.SIGTERM)
        if shielded:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED_FROM)
        if os.getppid() != parent:  # it died between fork and here
            os._exit(1)

    return subprocess.Popen(  # the command is ours
        command,
        env=None if environment is None else {**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=keep_open,
        umask=umask,
        preexec_fn=bind,  # noqa: PLW1509  # called before any thread is started
    )


def stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Asks a child to end and waits; kills it after `seconds`."""
    if child.poll() is None:
        child.terminate()
    wait(child, seconds)


def wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Waits until a child has ended; kills it after `seconds`."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def ending(code: int) -> str:
    """How a process ended, for a log: `exit code 1`, or the signal that killed it, such as `SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"


class Backoff:
    """Pauses before a process that died is started again, each twice as long as the one before.

    Args:
        first: seconds of the first pause.
        longest: seconds of the longest.
        steady: after a run of this many seconds, the pauses begin with the first again.
    """

    def __init__(self, first: float = 0.2, longest: float = 10.0, steady: float = 30.0) -> None:
        self._first = first
        self._longest = longest
        self._steady = steady
        self._next = first

    def pause(self, ran: float) -> float:
        """Seconds to wait now, after the process has run for `ran` seconds."""
        if ran > self._steady:
            self._next = self._first
        pause, self._next = self._next, min(self._next * 2, self._longest)
        return pause
