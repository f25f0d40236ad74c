"""Child processes that never outlive their parent, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | int | None = None,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own, so that Ctrl-C on the terminal reaches only the parent.

    When the parent dies, the kernel sends the child SIGTERM.

    Args:
        command: program and arguments.
        environment: set on top of our own.
        output: where its output and errors go; None shares ours.
        keep_open: descriptors that the child inherits.
    """
    parent = os.getpid()

    def bind() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
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
        preexec_fn=bind,  # noqa: PLW1509  # called before any thread is started
    )


def stop(child: subprocess.Popen[bytes], seconds: float) -> None:
    """Asks a child to end and waits; after `seconds` it is killed."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
