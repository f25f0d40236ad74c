"""The types of the dict that QTask accepts (title, address and settings), and their limits.

The forms of the address and of `settings.data` depend on `address.type`: each destination (`qtask.destinations`)
defines its own types for both. `qtask.destinations.registry` combines them.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Generic, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from qtask.model.errors import Refused
from qtask.model.flow import Flow
from qtask.model.retry import Retry
from qtask.model.timing import parse_instant

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
MAX_DIGITS = 4_300  # of a whole number; a stock `rq worker` parses tasks with Python, which accepts no longer ones
MAX_TITLE_CHARACTERS = 500
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 600.0


class Part(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base class of all parts of a task: immutable, rejects unknown keys, omits defaults."""


class Address(Part, frozen=True):
    """Where a task goes. Each destination has a subclass, whose tag is `address.type`.

    Attributes:
        link: its form depends on the destination.
    """

    link: str


class Settings(Part, frozen=True):
    """When and what to deliver. Either `time` or `at` is required, unless the destination makes a task due at once.

    Attributes:
        time: delay in seconds before the delivery; fractions count.
        at: instant of the delivery instead: ISO 8601 with a zone, or Unix seconds.
        data: JSON of the data to send, as the client wrote it; its form depends on `address.type`.
        timeout: seconds that one delivery may take in all; 30 when left out. `auto`: as many as the destination has
            needed lately, at most 30.
        retry: how often and when a failed delivery is retried.
        expires: seconds after due, or an instant in ISO 8601 with a zone, after which no delivery begins.
        flow: the flow that the task belongs to: its key, or an object with limits; by default that of its destination.
        queue: name of the queue that the task is released to; by default the one that is configured.
        id: idempotency key, chosen by the client: a second task with it changes nothing and gets the first answer.
    """

    time: float | UnsetType = UNSET
    at: float | str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    timeout: float | Literal["auto"] | UnsetType = UNSET
    retry: Retry | UnsetType = UNSET
    expires: float | str | UnsetType = UNSET
    flow: str | Flow | UnsetType = UNSET
    queue: str | UnsetType = UNSET
    id: str | UnsetType = UNSET


if TYPE_CHECKING:
    from typing_extensions import TypeVar  # that of `typing` has defaults from Python 3.13 on

    _Address_co = TypeVar("_Address_co", bound=Address, default=Address, covariant=True)
else:
    from typing import TypeVar

    _Address_co = TypeVar("_Address_co", covariant=True)


class Task(Part, Generic[_Address_co], frozen=True):
    """One dict that QTask accepts: `{"title": …, "address": {…}, "settings": {…}}`.

    `qtask.destinations.parsing` reads it, with the union of all registered addresses in place of the parameter.
    """

    title: str
    address: _Address_co
    settings: Settings = Settings()

    @property
    def type(self) -> str:
        """`address.type`."""
        return self.address.__struct_config__.tag  # type: ignore[return-value]

    @property
    def timeout(self) -> float:
        """Seconds that one delivery may take in all; the longest for a timeout that adapts."""
        timeout = self.settings.timeout
        return DEFAULT_TIMEOUT_SECONDS if timeout is UNSET or isinstance(timeout, str) else timeout


def with_timeout(task: Task, seconds: float | None, attempt: int) -> Task:
    """A task with the timeout of one delivery in place of `auto`.

    Each retry may take twice as long as the attempt before, so that a slow delivery among many fast ones succeeds too.

    Args:
        task: its timeout is `auto`.
        seconds: the timeout that its flow has learned; None if it has not.
        attempt: number of the attempt, from 1.
    """
    longest = DEFAULT_TIMEOUT_SECONDS
    timeout = longest if seconds is None else min(longest, seconds * 2.0 ** min(attempt - 1, 16))
    return replace(task, settings=replace(task.settings, timeout=timeout))


def expiry_of(task: Task, due: float) -> float:
    """The instant after which no delivery of a task begins, in Unix seconds; infinity if it does not expire.

    Args:
        task: an accepted task.
        due: its due instant in Unix seconds.
    """
    expires = task.settings.expires
    if expires is UNSET:
        return float("inf")
    return parse_instant(expires) if isinstance(expires, str) else due + expires


_NULL = Raw(b"null")


def is_given(data: Raw | UnsetType) -> TypeGuard[Raw]:
    """Whether a value is present and not null."""
    return data is not UNSET and data != _NULL


def json_text(data: Raw | UnsetType) -> bytes:
    """The JSON that is sent for a value: the client's text, on one line.

    Numbers, escapes and keys stay as they were written. White space outside of strings is removed if the text has
    several lines, as a task written by another program may have.

    Raises `Refused` if there is no value.
    """
    if data is UNSET:
        raise Refused("missing_field", "settings.data", "there is no data to send; any JSON will do")
    text = bytes(data)
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text


def decode_base64(text: str, field: str = "settings.data.body_base64") -> bytes:
    """The bytes of a field in base64. Raises `Refused` when it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("invalid_value", field, f"base64 is needed: {error}") from None
