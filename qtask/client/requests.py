"""What both clients share: dicts out, answers in, what they say of a lost connection. No I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from qtask.errors import ConfigError, Refused, Unavailable
from qtask.retry import Retry
from qtask.task import MAX_TITLE_CHARACTERS, Task, check_task, encode

if TYPE_CHECKING:
    from qtask.ids import IdSource
    from qtask.store.submit import Place, Submission

DEFAULT_URL = "socket://127.0.0.1:5123"
URL_VARIABLE = "QTASK_URL"
BATCH = 500  # tasks a round trip
WINDOW = 2_000  # tasks that may be unanswered on a connection
WINDOW_BYTES = 8_388_608  # of their dicts
GATHER_SECONDS = 0.05  # tasks of a slow source go out after so long, however few they are

TaskLike = Task | Mapping[str, Any]
Delay = float | timedelta
Instant = float | datetime

_Value = TypeVar("_Value")


class TaskArguments(TypedDict, total=False):
    """What the method for each type of address takes, beside what is sent and where to.

    Attributes:
        delay: seconds from now, or a timedelta.
        at: the due instant instead: Unix seconds, or a datetime with its zone.
        title: name of the task; made of its type and link when left out.
        timeout: seconds that one delivery may take in all.
        retry: how a failed delivery is tried again: a dict as in `settings.retry`, or a `Retry`.
        expires: seconds after due (or a timedelta), or a datetime with its zone, from which on no delivery begins.
        id: of your choosing; a second task with it is answered with the first, and does nothing.
    """

    delay: Delay | None
    at: Instant | None
    title: str
    timeout: float | None
    retry: Retry | Mapping[str, Any] | None
    expires: Delay | datetime | None
    id: str | None


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


class Ended(Unavailable):
    """The gateway has ended a connection on which nothing came; what has no answer was not taken."""


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
    """A task as one line for the socket. Raises `Refused` when it is no dict, or cannot be written as JSON."""
    if not isinstance(task, Task | Mapping):  # a list would be a batch to the gateway, with an answer of its own kind
        what = f"a task is a dict or a qtask.Task, got {type(task).__name__}; send_many takes several"
        raise Refused("wrong_type", "", what)
    return encode(task) + b"\n"


def read_answer(line: bytes) -> Answer:
    """Reads one answer line of the gateway. Raises `Unavailable` when it is none, `Ended` when it says goodbye."""
    try:
        answer = _DECODER.decode(line)
    except msgspec.DecodeError:
        raise Unavailable(f"the answer is not QTask's: {line[:80]!r}; is another service on this port?") from None
    if answer.ok:
        return Accepted(answer.id, answer.due, answer.duplicate)
    code, field, message = (answer.error.get(part, "") for part in ("code", "field", "message"))
    if code == "idle":
        raise Ended(message)
    if code == "too_many":
        raise Unavailable(f"the gateway took none of the tasks that have no answer: {message}")
    return Refused(code, field, message)


def only(answer: Answer) -> Accepted:
    """The answer to a task that was sent alone. Raises `Refused`, or `Unavailable` where nothing is wrong with it."""
    if not isinstance(answer, Refused):
        return answer
    if answer.code == "unavailable":
        raise Unavailable(answer.message)
    raise answer


def accepted(ids: Iterable[str], places: Iterable[Place | None]) -> Iterator[Accepted]:
    """The answers to tasks that went straight into Redis."""
    for task_id, place in zip(ids, places, strict=True):
        assert place is not None  # only an entry of the inbox may be somebody else's by now
        yield Accepted(task_id, place.due, place.duplicate)


def prepare(batch: Iterable[TaskLike], step: Callable[[TaskLike], _Value]) -> tuple[list[_Value], list[Refused | None]]:
    """Takes a step with each task of a batch; returns what came of those that passed, and of all who was refused."""
    passed: list[_Value] = []
    known: list[Refused | None] = []
    for task in batch:
        try:
            passed.append(step(task))
            known.append(None)
        except Refused as refused:
            known.append(refused)
    return passed, known


def submissions(batch: Iterable[TaskLike], ids: IdSource) -> tuple[list[Submission], list[Refused | None]]:
    """Those of a batch that may go straight into Redis, as `prepare` returns them."""
    from qtask.store.submit import Submission, id_of

    def submission(task: TaskLike) -> Submission:
        checked = check_task(task)
        return Submission(id_of(checked, ids), checked)

    return prepare(batch, submission)


def batches(tasks: Iterable[TaskLike], size: int) -> Iterable[list[TaskLike]]:
    """Cuts an iterable into lists of at most `size`; those of a slow one are shorter."""
    batch: list[TaskLike] = []
    begun = monotonic()
    for task in tasks:
        batch.append(task)
        if len(batch) == size or monotonic() - begun > GATHER_SECONDS:
            yield batch
            batch = []
            begun = monotonic()
    if batch:
        yield batch


def no_gateway(host: str, port: int, error: OSError) -> Unavailable:
    """What is said when there is no connection to be had."""
    return Unavailable(
        f"no gateway answers on {host}:{port}: {error or 'it takes too long'}. Start one with `qtask up`, "
        f"or name another with {URL_VARIABLE}"
    )


def lost(host: str, port: int, why: str, unanswered: int) -> Unavailable:
    """What is said when a connection ends, or falls silent, before all answers have come."""
    return Unavailable(f"the connection to the gateway at {host}:{port} is lost: {why}; {_unknown(unanswered)}")


def no_redis(url: str, error: Exception) -> Unavailable:
    """What is said when Redis is asked something and does not answer."""
    from qtask.store.connect import without_password

    return Unavailable(f"no Redis answers at {without_password(url)}: {error}")


def lost_redis(url: str, error: Exception, unanswered: int) -> Unavailable:
    """What is said when tasks are on their way into Redis and it does not answer."""
    return Unavailable(f"{no_redis(url, error)}; {_unknown(unanswered)}")


def _unknown(unanswered: int) -> str:
    tasks, were = ("1 task has", "it was") if unanswered == 1 else (f"{unanswered} tasks have", "they were")
    return f"{tasks} no answer: whether {were} accepted is not known, and nothing is sent again"


def build(
    kind: str,
    link: str,
    data: Any = UNSET,
    *,
    delay: Delay | None = None,
    at: Instant | None = None,
    title: str = "",
    timeout: float | None = None,
    retry: Retry | Mapping[str, Any] | None = None,
    expires: Delay | datetime | None = None,
    id: str | None = None,
) -> dict[str, Any]:
    """A dict from the arguments of a shorthand. Raises `Refused` for both `delay` and `at`, or a naive datetime."""
    if delay is not None and at is not None:
        raise Refused("invalid_value", "settings.at", "either delay or at says when, not both")
    settings: dict[str, Any] = {} if data is UNSET else {"data": data}
    if at is not None:
        settings["at"] = _zoned(at, "settings.at").timestamp() if isinstance(at, datetime) else at
    else:
        settings["time"] = 0.0 if delay is None else _seconds(delay)
    if isinstance(expires, datetime):  # as text: a number counts from due
        settings["expires"] = _zoned(expires, "settings.expires").astimezone(UTC).isoformat()
    elif expires is not None:
        settings["expires"] = _seconds(expires)
    settings |= _given({"timeout": timeout, "retry": retry, "id": id})
    address = {"type": kind, "link": link} if link else {"type": kind}
    default_title = f"{kind.strip('_')} {link}".strip()[:MAX_TITLE_CHARACTERS]
    return {"title": title or default_title, "address": address, "settings": settings}


def _seconds(span: Delay) -> float:
    return span.total_seconds() if isinstance(span, timedelta) else span


def _zoned(instant: datetime, field: str) -> datetime:
    if instant.utcoffset() is None:
        raise Refused("invalid_value", field, "a datetime needs its zone: datetime.now(UTC) + …, for example")
    return instant


def http_data(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an `http` task; what was not given is left out."""
    return {"method": method, **_given(options)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
