"""Every error that QTask raises on purpose, worded for the person who reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class QTaskError(Exception):
    """Base of all errors below; catching it catches whatever QTask raises on purpose."""


class ConfigError(QTaskError):
    """A setting has a value that QTask cannot use; the message names the setting and where it came from."""


class Refused(QTaskError):
    """A dict (or a connection) was refused.

    Attributes:
        code: a word for programs, one of `CODES`.
        field: path of the offending part, such as `settings.time`; empty when it is the whole.
        message: what is wrong and what would be right, for a person.
    """

    CODES = (
        "invalid_json",
        "missing_field",
        "unknown_field",
        "wrong_type",
        "invalid_value",
        "too_large",
        "too_deep",
        "too_many",
        "idle",
        "unavailable",
        "wrong_protocol",
        "wrong_host",
    )

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.code = code
        self.field = field
        self.message = message

    def as_dict(self) -> dict[str, str]:
        """The `error` part of an answer: `{"code": …, "field": …, "message": …}`."""
        return {"code": self.code, "field": self.field, "message": self.message}


class Unavailable(QTaskError):
    """QTask or its Redis cannot be reached; the message names the address and says what to try.

    Attributes:
        answers: when many tasks were sent at once, the answers that had come before, in order.
    """

    answers: Sequence[Any] = ()


class NotFound(QTaskError):
    """No task (or graph) has this id: it never existed, was removed, or has left the bounded history."""


class WrongState(QTaskError):
    """What was asked for cannot be done with a task in this state.

    Attributes:
        state: of the task: `scheduled`, `queued`, `started`, `delivered` or `dead`.
    """

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


class DeliveryFailed(QTaskError):
    """Raised inside a stock `rq worker` when a delivery failed, so that RQ counts the job as failed."""


def without_extra(error: ModuleNotFoundError) -> str:
    """The message for a missing package that only the service needs. Raises the error if the module is one of ours."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "qtask"):
        raise error
    return (
        f"the package {package} is not installed, which the service needs and the client alone does not: "
        "run pip install 'qtask[server]'"
    )
