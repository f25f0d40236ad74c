"""Log lines about failed tasks, limited per destination, so that no outage floods the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import msgspec

from qtask.destinations.registry import destination_of
from qtask.model.errors import Refused

LINES = 10  # per event, destination and window
WINDOW_SECONDS = 60.0
MOST_DESTINATIONS = 1_000  # with a limit of their own, per event; all others share one
OTHERS = "(others)"

Fields = dict[str, Any]


@dataclass(slots=True)
class _Window:
    since: float
    level: int
    written: int = 0
    left_out: int = 0


class FailureLog:
    """Writes up to `LINES` lines per event, destination and minute, and then how many were left out.

    Args:
        logger: the logger to write to.
        bound_by: name of the field whose values each have their own limit.
        clock: monotonic seconds.
    """

    def __init__(
        self, logger: logging.Logger, bound_by: str = "destination", clock: Callable[[], float] = monotonic
    ) -> None:
        self._logger = logger
        self._bound_by = bound_by
        self._clock = clock
        # The oldest window comes first: one that has ended is removed, and a new one is added at the end.
        self._windows: dict[tuple[str, str], _Window] = {}
        self._counts: dict[str, int] = {}  # windows of each event

    def write(self, level: int, event: str, destination: str, fields: Callable[[], Fields]) -> None:
        """Writes a line, or counts it.

        Args:
            level: as `logging.INFO`.
            event: name of the event.
            destination: target of the task: a host, never a path or credentials.
            fields: returns the fields of the line; called only if it is written.
        """
        if not self._logger.isEnabledFor(level):
            return
        self.flush()
        window = self._window(level, event, destination)
        if window.written < LINES:
            window.written += 1
            self._logger.log(level, event, extra={**fields(), self._bound_by: destination})
        else:
            window.left_out += 1

    def flush(self, everything: bool = False) -> None:
        """Logs how many lines were left out in windows that have ended. Call it about once a second.

        Args:
            everything: include windows that have not ended, because the process ends.
        """
        ended = self._clock() - WINDOW_SECONDS
        while self._windows:
            key = next(iter(self._windows))
            window = self._windows[key]
            if window.since > ended and not everything:
                return
            del self._windows[key]
            event, destination = key
            self._counts[event] -= destination != OTHERS
            if window.left_out:
                about = {"of": event, self._bound_by: destination, "lines": window.left_out}
                self._logger.log(window.level, "lines_left_out", extra=about)

    def _window(self, level: int, event: str, destination: str) -> _Window:
        window = self._windows.get((event, destination))
        if window is not None:
            return window
        if self._counts.get(event, 0) >= MOST_DESTINATIONS:
            destination = OTHERS
            window = self._windows.get((event, destination))
            if window is not None:
                return window
        else:
            self._counts[event] = self._counts.get(event, 0) + 1
        window = self._windows[event, destination] = _Window(self._clock(), level)
        return window


class RefusedLog:
    """Log lines about tasks that a gateway refused, limited per way in, because many have no destination.

    Args:
        logger: the logger to write to.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._log = FailureLog(logger, bound_by="via")
        self.flush = self._log.flush

    def write(self, via: str, raw: bytes, refused: Refused) -> None:
        """Writes a line about a refused task, or counts it. The line has no message, which may quote the task.

        Args:
            via: the way in: `socket`, `http` or `inbox`.
            raw: the task as it was received.
            refused: the reason.
        """

        def fields() -> Fields:
            return {**_about(raw), "code": refused.code, "field": refused.field}

        self._log.write(logging.INFO, "task_refused", via, fields)


def _about(raw: bytes) -> Fields:
    """The id and the destination of a refused task, as far as they can be read."""
    found: Fields = {"task": "", "destination": ""}
    try:
        task = msgspec.json.decode(raw)
        found["task"] = str(task["settings"].get("id", ""))[:100]
        found["destination"] = destination_of(str(task["address"]["type"]), str(task["address"].get("link", "")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        pass
    return found
