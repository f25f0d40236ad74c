"""What both clients share: dicts out, answers in, and the dicts that their shorthands make. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from qtask.errors import ConfigError, Refused, Unavailable
from qtask.task import Task, encode

if TYPE_CHECKING:
    from qtask.store.submit import Place

DEFAULT_URL = "socket://127.0.0.1:5123"
URL_VARIABLE = "QTASK_URL"
BATCH = 500  # tasks a round trip
WINDOW = 2_000  # tasks that may be unanswered on a connection

TaskLike = Task | Mapping[str, Any]
Delay = float | timedelta
Instant = float | datetime


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task that Redis holds.

    Attributes:
        id: of the task.
        due: Unix seconds.
        duplicate: whether a task with this id, which the client chose, was accepted before; then this is that one.
    """

    id: str
    due: float
    duplicate: bool = False


Answer = Accepted | Refused


class _Answer(msgspec.Struct):
    ok: bool
    id: str = ""
    due: float = 0.0
    duplicate: bool = False
    error: dict[str, str] = {}


_DECODER = msgspec.json.Decoder(_Answer)


def choose_url(url: str | None) -> str:
    """The address given, else that of the environment, else the gateway on this host."""
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def is_redis(url: str) -> bool:
    """Whether an address is a Redis; else it must be a socket. Raises `ConfigError` for anything else."""
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss", "unix", "redis+sentinel"):
        return True
    if scheme == "socket":
        return False
    raise ConfigError(f"{url!r} is no address for a client; socket://HOST:PORT or redis://HOST:PORT/DB is")


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port of a `socket://` address. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "127.0.0.1", parts.port or 5123
    except ValueError as error:
        raise ConfigError(f"{url!r} is no socket://HOST:PORT: {error}") from None


def line_of(task: TaskLike) -> bytes:
    """A task as one line for the socket. Raises `Refused` when it cannot be written as JSON."""
    return encode(task) + b"\n"


def read_answer(line: bytes) -> Answer:
    """Reads one answer line of the gateway. Raises `Unavailable` when it is none."""
    try:
        answer = _DECODER.decode(line)
    except msgspec.DecodeError:
        raise Unavailable(f"the answer is not QTask's: {line[:80]!r}; is another service on this port?") from None
    if answer.ok:
        return Accepted(answer.id, answer.due, answer.duplicate)
    error = answer.error
    return Refused(error.get("code", ""), error.get("field", ""), error.get("message", ""))


def accepted(ids: Iterable[str], places: Iterable[Place | None]) -> Iterator[Accepted]:
    """The answers to tasks that went straight into Redis."""
    for task_id, place in zip(ids, places, strict=True):
        assert place is not None  # only an entry of the inbox may be somebody else's by now
        yield Accepted(task_id, place.due, place.duplicate)


def batches(tasks: Iterable[TaskLike], size: int) -> Iterable[list[TaskLike]]:
    """Cuts an iterable into lists of at most `size`."""
    batch: list[TaskLike] = []
    for task in tasks:
        batch.append(task)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def build(
    kind: str, link: str, data: Any, delay: Delay | None, at: Instant | None, title: str, timeout: float | None
) -> dict[str, Any]:
    """A dict from the arguments of a shorthand. Raises `Refused` for both `delay` and `at`, or a naive datetime."""
    settings: dict[str, Any] = {}
    if delay is not None and at is not None:
        raise Refused("invalid_value", "settings.at", "either delay or at says when, not both")
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise Refused(
                "invalid_value", "settings.at", "a datetime needs its zone: datetime.now(UTC) + …, for example"
            )
        settings["at"] = at.timestamp()
    elif at is not None:
        settings["at"] = at
    else:
        settings["time"] = delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0
    if data is not None:
        settings["data"] = data
    if timeout is not None:
        settings["timeout"] = timeout
    address = {"type": kind, "link": link} if link else {"type": kind}
    return {"title": title or f"{kind} {link}".strip()[:500], "address": address, "settings": settings}


def http_data(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an `http` task; what was not given is left out."""
    return {"method": method, **{key: value for key, value in given.items() if value is not None}}
