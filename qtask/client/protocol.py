"""What all transports share: addresses, tasks as lines, answers, and errors when no answer comes. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from qtask.model.accepted import Accepted as Accepted  # exported: clients and their users take it from here
from qtask.model.errors import ConfigError, QTaskError, Refused, Unavailable
from qtask.model.flow import Changes
from qtask.model.flow_changes import changes_of
from qtask.model.mask import Mask, mask_of
from qtask.model.redis_address import without_password
from qtask.model.task import Task
from qtask.model.validation import encode

DEFAULT_URL = "socket://127.0.0.1:5123"
URL_VARIABLE = "QTASK_URL"
MASK_VARIABLE = "QTASK_MASK_HEADERS"
WINDOW = 2_000  # tasks that may be unanswered on a connection

TaskLike = Task | Mapping[str, Any]

# The gateway sends these when it ends a connection; they are no answers to tasks.
_CONNECTION_CODES = ("idle", "too_many")


Answer = Accepted | Refused


class _Answer(msgspec.Struct):
    ok: bool
    id: str = ""
    due: float = 0.0
    duplicate: bool = False
    error: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Answer)
_ARRAY_DECODER = msgspec.json.Decoder(list[_Answer])


def choose_url(url: str | None) -> str:
    """The given address, else the one in the environment, else the gateway on this host."""
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def client_mask() -> Mask:
    """Which headers and query parameters are credentials: the usual ones, and those named in the environment."""
    return mask_of(os.environ.get(MASK_VARIABLE, ""))


def transport_of(url: str) -> Literal["socket", "http", "redis"]:
    """The transport that an address selects. Raises `ConfigError` for an address that no client can use."""
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "unix", "redis+sentinel"):
        return "redis"
    if scheme in ("http", "https"):
        return "http"
    if scheme == "socket":
        return "socket"
    raise ConfigError(
        f"{without_password(url)!r} is not an address for a client; "
        "socket://HOST:PORT, http://HOST:PORT or redis://HOST:PORT/DB is"
    )


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port of a `socket://` address. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "127.0.0.1", parts.port or 5123
    except ValueError:  # its message may contain a password
        shown = without_password(url)
        raise ConfigError(f"{shown!r} is not the address of a gateway; socket://127.0.0.1:5123 is one") from None


def line_of(task: TaskLike) -> bytes:
    """A task as one line for the socket. Raises `Refused` when it is not a task."""
    line = encode(task)
    if not line.startswith(b"{"):  # the gateway would take an array for many tasks
        raise Refused("wrong_type", "", f"a task is a dict or a Task, got {type(task).__name__}")
    return line + b"\n"


def read_answer(line: bytes) -> Answer:
    """Reads one answer line of the gateway. Raises `Unavailable` when it is not an answer to a task."""
    try:
        answer = _DECODER.decode(line)
    except msgspec.DecodeError:
        raise not_ours(line) from None
    return _answer_of(answer)


def read_answers(body: bytes) -> list[Answer]:
    """Reads an array of answers. Raises `Unavailable` when it is not one."""
    try:
        answers = _ARRAY_DECODER.decode(body)
    except msgspec.DecodeError:
        raise not_ours(body) from None
    return [_answer_of(answer) for answer in answers]


def not_ours(answer: bytes) -> Unavailable:
    """The error when something other than a gateway answers."""
    return Unavailable(f"the answer is not QTask's: {answer[:80]!r}; is another service on this port?")


def _answer_of(answer: _Answer) -> Answer:
    if answer.ok:
        return Accepted(answer.id, answer.due, answer.duplicate)
    code, message = answer.error.get("code", ""), answer.error.get("message", "")
    if code in _CONNECTION_CODES:
        raise Unavailable(message)
    return Refused(code, answer.error.get("field", ""), message)


def changes(*values: object) -> Changes:
    """Changes to a flow from the arguments of `set_flow`, in their order. Raises `Refused`."""
    given = dict(zip(Changes.__struct_fields__, values, strict=True))
    return changes_of({name: value for name, value in given.items() if value is not UNSET})


def accepted(answer: Answer) -> Accepted:
    """The answer to a single task, if it was accepted. Raises `Unavailable` or the `Refused` otherwise."""
    if isinstance(answer, Accepted):
        return answer
    if answer.code == "unavailable":
        raise Unavailable(answer.message)
    raise answer


def only_with(needed: str, url: str) -> QTaskError:
    """The error when the transport of a client does not support a call.

    Args:
        needed: the addresses that support it.
        url: the address of the client.
    """
    return QTaskError(f"a client of {without_credentials(url)} cannot do this; it needs {needed}")


def without_credentials(url: str) -> str:
    """An address of a gateway without credentials, to be shown."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


def no_gateway(place: str, why: str) -> Unavailable:
    """The error when there is no connection to a gateway."""
    return Unavailable(
        f"no gateway answers on {place}: {why}. Start one with `qtask up`, or name another with {URL_VARIABLE}"
    )


def lost(place: str, why: str, unknown: int) -> Unavailable:
    """The error when `unknown` tasks were sent and their answers will not come."""
    tasks = "the task" if unknown == 1 else f"the {unknown} tasks"
    was = "was" if unknown == 1 else "were"
    return Unavailable(
        f"{place} does not answer: {why}; whether {tasks} without an answer {was} accepted is not known, and "
        "nothing was sent again"
    )
