"""Delivers `pipe` tasks: opens the FIFO, locks it, writes one line."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from time import monotonic

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import WRITE, Loop
from qtask.destinations.pipe import check_pipe, pipe_data
from qtask.model.outcome import Answer, Failure
from qtask.model.task import json_text

_LOCK_RETRY_SECONDS = 0.002


class PipeDeliverer:
    """Delivers to named pipes. A pipe without a reader fails at once, a full one at the timeout."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop
        self._folder = config.pipes

    def start(self, claim: Claim, done: Done) -> None:
        """Begins a delivery; see `Deliverer.start`."""
        name = check_pipe(claim.task.address.link)
        line = json_text(pipe_data(claim.task).data) + b"\n"
        try:
            descriptor = self._open(name)
        except Failure as failure:
            done(failure)
            return
        _Line(self._loop, descriptor, name, line, claim, done).start()

    def close(self) -> None:
        """Nothing is kept open."""

    def _open(self, name: str) -> int:
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise Failure(
                    "no_reader", f"nobody reads the pipe {name!r}; start its reader, then send again"
                ) from None
            if error.errno == errno.ENOENT:
                raise Failure(
                    "no_reader", f"there is no pipe {name!r}; make it in the pipe folder with mkfifo"
                ) from None
            raise Failure("connect", f"the pipe {name!r} cannot be opened: {error.strerror}") from None
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise Failure("protocol", f"{name!r} in the pipe folder is no pipe; make it with mkfifo")
        return descriptor


class _Line(Exchange):
    """The delivery of one line. A lock keeps lines whole, because writes above 4 KiB are not atomic on a pipe."""

    def __init__(self, loop: Loop, descriptor: int, name: str, line: bytes, claim: Claim, done: Done) -> None:
        super().__init__(loop, claim, done)
        self._descriptor = descriptor
        self._name = name
        self._unsent = memoryview(line)

    def begin(self) -> None:
        """Takes the lock, or tries again soon, and writes as far as the pipe has room."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() < self.deadline:
                self.set_timer(monotonic() + _LOCK_RETRY_SECONDS, self.begin)
            else:
                self._on_timeout()
            return
        self.set_timer(self.deadline, self._on_timeout)
        self._on_writable(WRITE)

    def release(self) -> None:
        """See `Exchange`."""
        self.loop.unwatch(self._descriptor)
        os.close(self._descriptor)

    def _on_writable(self, events: int) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._descriptor, self._unsent) :]
        except BlockingIOError:
            self.loop.watch(self._descriptor, WRITE, self._on_writable, self.on_error)
        except OSError as error:
            self.end(Failure("no_reader", f"the reader of the pipe {self._name!r} went away: {error.strerror}"))
        else:
            self.end(Answer())

    def _on_timeout(self) -> None:
        self.end(Failure("timeout", f"the pipe {self._name!r} is full and its reader does not read"))
