"""The errors that QTask raises on purpose. Their messages are written for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class QTaskError(Exception):
    """Base class of all errors that QTask raises on purpose."""


class ConfigError(QTaskError):
    """A setting has an invalid value; the message names the setting and its source."""


class Refused(QTaskError):
    """A dict (or a connection) was refused.

    Attributes:
        code: one of `CODES`, for programs.
        field: path of the invalid field, such as `settings.time`; empty for the dict as a whole.
        message: what is wrong and what is expected, for people.
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
        answers: if several tasks were sent at once, the answers received before the error, in order.
    """

    answers: Sequence[Any] = ()


class NotFound(QTaskError):
    """No task (or graph) has this id: it never existed, was removed, or has left the bounded history."""


class WrongState(QTaskError):
    """The operation is not possible in the present state of the task.

    Attributes:
        state: state of the task: `scheduled`, `queued`, `started`, `delivered` or `dead`.
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
