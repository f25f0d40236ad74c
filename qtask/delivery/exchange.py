"""One delivery on the loop: it reports its result once, and releases what it holds however it ends."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from time import monotonic

from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop, Timer
from qtask.model.ids import client_id
from qtask.model.outcome import Answer, Failure

logger = logging.getLogger("qtask.delivery")


def broken(task_id: str, error: Exception) -> Failure:
    """Logs an unexpected error with its traceback; returns the failure for it."""
    logger.error("delivery_broke", exc_info=error, extra={"task": client_id(task_id)})
    return Failure("internal", f"QTask could not deliver this: {type(error).__name__}: {error}")


class Exchange(ABC):
    """Base of one delivery.

    Its callbacks are registered with `on_error`, so an error in one of them ends this delivery and no other.

    Args:
        loop: runs its callbacks.
        claim: the task.
        done: gets the result, once.
    """

    def __init__(self, loop: Loop, claim: Claim, done: Done) -> None:
        self.loop = loop
        self.timeout = claim.task.timeout
        self.deadline = monotonic() + self.timeout
        self._task_id = claim.id
        self._done: Done | None = done
        self._timer: Timer | None = None

    @property
    def ended(self) -> bool:
        """Whether the result was reported."""
        return self._done is None

    @abstractmethod
    def begin(self) -> None:
        """Takes the first step."""

    @abstractmethod
    def release(self) -> None:
        """Closes descriptors and cancels timers other than that of `set_timer`. Called once."""

    def set_timer(self, instant: float, callback: Callable[[], None]) -> None:
        """Calls back at an instant of `time.monotonic`; replaces the call that was set before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(instant, callback, self.on_error)

    def start(self) -> None:
        """Begins the delivery; errors are reported to `done`."""
        try:
            self.begin()
        except Exception as error:
            self.on_error(error)

    def end(self, result: Answer | Failure) -> None:
        """Releases what is held and reports the result. Does nothing if a result was reported before."""
        if self._done is not None:
            done, self._done = self._done, None
            self._release()
            done(result)

    def on_error(self, error: Exception) -> None:
        """Ends the delivery as failed because one of its steps raised an error.

        Raises the error again if the delivery has ended already: then it came from the code that got the result.
        """
        if self._done is None:
            raise error
        done, self._done = self._done, None
        try:
            self._release()
        finally:
            done(broken(self._task_id, error))

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.release()
