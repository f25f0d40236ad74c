"""The description of a destination, which the parser, the clients, the command line and the workers share.

A description does no I/O and is imported wherever tasks are read. It names its deliverer as text; that module is
imported for the first task that needs it, so that clients and workers load nothing that they do not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar, overload

from msgspec import UNSET, Raw

from qtask.model.task import Address, Task

Delay = float | timedelta
Instant = float | datetime

_Arguments = ParamSpec("_Arguments")
_Sent = TypeVar("_Sent")
_Sent_co = TypeVar("_Sent_co", covariant=True)


class Options(TypedDict, total=False):
    """Options that every shorthand of a client accepts.

    Attributes:
        delay, at: when the task is due; at once if neither is given. A `datetime` must have a time zone.
        title: name of the task.
        timeout: seconds that one delivery may take; `auto`: as many as the destination has needed lately.
        retry: how failed deliveries are retried; see docs/retries.md.
        expires: seconds or a `timedelta` after due, after which no delivery begins.
        flow: the flow of the task: its key, or an object with limits as in `settings.flow`.
        queue: name of the queue of the task; by default the one that is configured.
        id: idempotency key: a second task with the same id changes nothing and gets the answer of the first.
    """

    delay: Delay | None
    at: Instant | None
    title: str
    timeout: float | Literal["auto"] | None
    retry: Mapping[str, Any] | None
    expires: Delay | str | None
    flow: str | Mapping[str, Any] | None
    queue: str | None
    id: str | None


class Parts(NamedTuple):
    """What a shorthand makes from its arguments: `address.link`, and `settings.data` (or `UNSET`)."""

    link: str
    data: Any = UNSET


class Flag(NamedTuple):
    """A flag of `qtask send`.

    Attributes:
        name: such as `--http`.
        metavar: placeholder for its value in the help; empty for a flag without a value.
        about: its line in the help.
        many: whether it may be given more than once; its value is then a tuple.
    """

    name: str
    metavar: str
    about: str
    many: bool = False

    @property
    def key(self) -> str:
        """The name of its value: `--body-file` → `body_file`."""
        return self.name.removeprefix("--").replace("-", "_")


class Submits(Protocol[_Sent_co]):
    """A client, as a destination sees it."""

    def _shorthand_of(self, destination: Destination[_Arguments]) -> Callable[_Arguments, _Sent_co]:
        """A function that submits a task to the destination."""


def data_as_given(flags: Mapping[str, Any], data: Raw | None) -> Any:
    """`settings.data` of a destination that accepts any JSON: the value of `--data`, or `UNSET`."""
    return UNSET if data is None else data


@dataclass(frozen=True, eq=False)
class Destination(Generic[_Arguments]):
    """A type of destination.

    As an attribute of a client class it is a shorthand of that client: `client.udp(…)`.

    Attributes:
        name: `address.type`.
        address: struct of `address`; its tag is `name`.
        check: raises `Refused` for an invalid link or invalid data of a task of this type.
        shorthand: takes the arguments of the client's method and returns the parts of the task; ignores `options`.
        flag: flag of `qtask send`; its value is the link.
        deliverer: `MODULE:CLASS` of the deliverer; see `qtask.delivery.deliverer.Deliverer`.
        place: maps a link to its target, for logs: a host and its port, never a path or credentials; `unknown` for a
            link that cannot be parsed. It must not raise.
        flow: from a valid link to the name of the flow of a task that names none, if it is not `place`: one for all
            spellings of a target, different from those of all other targets, without credentials.
        link_words: describes a link in a few words; empty if the destination needs no link.
        flags: further flags of `qtask send`.
        data_of_flags: makes `settings.data` from the values of `flags` and the JSON of `--data`; `UNSET` for none.
            Raises `QTaskError`.
        at_once: whether a task without `time` and `at` is due at once.
        blocking: `MODULE:FUNCTION` that delivers a `Claim` with a `Config` in a stock `rq worker` and returns the
            `Answer` or raises the `Failure`; if empty, the deliverer runs there as well, on a loop that it starts.
    """

    name: str
    address: type[Address]
    check: Callable[[Task], None]
    shorthand: Callable[_Arguments, Parts]
    flag: Flag
    deliverer: str
    place: Callable[[str], str]
    flow: Callable[[str], str] | None = None
    link_words: str = ""
    flags: tuple[Flag, ...] = ()
    data_of_flags: Callable[[Mapping[str, Any], Raw | None], Any] = data_as_given
    at_once: bool = False
    blocking: str = ""

    def __post_init__(self) -> None:
        if self.address.__struct_config__.tag != self.name:
            raise TypeError(f"the tag of {self.address.__name__} must be {self.name!r}, the name of its destination")

    @property
    def word(self) -> str:
        """The name of the method of a client: `address.type` without the underscores around it."""
        return self.name.strip("_")

    def title_of(self, link: str) -> str:
        """The default title of a task; it may contain credentials from the link."""
        return f"{self.word} {link}".strip()

    @overload
    def __get__(self, client: None, owner: type) -> Callable[_Arguments, Parts]: ...

    @overload
    def __get__(self, client: Submits[_Sent], owner: type) -> Callable[_Arguments, _Sent]: ...

    def __get__(self, client: Submits[_Sent] | None, owner: type) -> Callable[_Arguments, Any]:
        return self.shorthand if client is None else client._shorthand_of(self)
