"""What describes a destination: one object, from which the parser, the clients, the command line and the workers work.

A description is pure, and is imported wherever tasks are read. What delivers is named as text and imported when the
first task needs it, so that a client or a worker loads nothing that it does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypedDict, TypeVar, overload

from msgspec import UNSET, Raw

from qtask.model.task import Address, Task

Delay = float | timedelta
Instant = float | datetime

_Arguments = ParamSpec("_Arguments")
_Sent = TypeVar("_Sent")
_Sent_co = TypeVar("_Sent_co", covariant=True)


class Options(TypedDict, total=False):
    """What a shorthand of a client takes for any destination.

    Attributes:
        delay, at: when; with neither the task is due at once. A `datetime` needs its zone.
        title: name of the task.
        timeout: seconds that one delivery may take.
        retry: how a failed delivery is tried again; see docs/retries.md.
        expires: seconds or a `timedelta` after due, from which on no delivery begins.
        id: of your choosing: a second task with it is answered with the first, and does nothing.
    """

    delay: Delay | None
    at: Instant | None
    title: str
    timeout: float | None
    retry: Mapping[str, Any] | None
    expires: Delay | str | None
    id: str | None


class Parts(NamedTuple):
    """What a shorthand makes of its own arguments: `address.link`, and `settings.data`, which may be `UNSET`."""

    link: str
    data: Any = UNSET


class Flag(NamedTuple):
    """A flag of `qtask send`.

    Attributes:
        name: such as `--http`.
        metavar: what stands for its value in the help; empty for a flag without a value.
        about: its line in the help.
        many: whether it may be given more than once; its value is then a tuple.
    """

    name: str
    metavar: str
    about: str
    many: bool = False

    @property
    def key(self) -> str:
        """By which its value is found: `--body-file` → `body_file`."""
        return self.name.removeprefix("--").replace("-", "_")


class Submits(Protocol[_Sent_co]):
    """A client, as a destination sees it."""

    def _shorthand_of(self, destination: Destination[_Arguments]) -> Callable[_Arguments, _Sent_co]:
        """A function that submits a task to the destination."""


def data_as_given(flags: Mapping[str, Any], data: Raw | None) -> Any:
    """`settings.data` of a destination that sends any JSON: that of `--data`; `UNSET` without it."""
    return UNSET if data is None else data


@dataclass(frozen=True, eq=False)
class Destination(Generic[_Arguments]):
    """One kind of place that tasks go to.

    As an attribute of a class of clients it is that client's shorthand: `client.udp(…)`.

    Attributes:
        name: `address.type`.
        address: struct of `address`; its tag is `name`.
        check: raises `Refused` for a link or data that is wrong; gets a task whose address is of this kind.
        shorthand: takes what a client's method takes, and returns the parts of the task; it leaves `options` alone.
        flag: of `qtask send`, whose value is the link.
        deliverer: `MODULE:CLASS` of the deliverer; see `qtask.delivery.deliverer.Deliverer`.
        place: from a link to where it leads, for logs: a host and its port, never a path or credentials; `unknown` for
            a link that cannot be read. It must not raise.
        link_words: what a link is, in a few words; empty where none is needed.
        flags: further flags of `qtask send`.
        data_of_flags: makes `settings.data` of the values of `flags` and the JSON of `--data`; `UNSET` for none. Raises
            `QTaskError`.
        at_once: whether a task without `time` and `at` is due at once.
        blocking: `MODULE:FUNCTION` that delivers a `Claim` with a `Config` in a stock `rq worker` and returns the
            `Answer` or raises the `Failure`; empty: there, too, the deliverer does, on a loop of its own.
    """

    name: str
    address: type[Address]
    check: Callable[[Task], None]
    shorthand: Callable[_Arguments, Parts]
    flag: Flag
    deliverer: str
    place: Callable[[str], str]
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
        """The title of a task that is given none; it may hold the credentials of the link."""
        return f"{self.word} {link}".strip()

    @overload
    def __get__(self, client: None, owner: type) -> Callable[_Arguments, Parts]: ...

    @overload
    def __get__(self, client: Submits[_Sent], owner: type) -> Callable[_Arguments, _Sent]: ...

    def __get__(self, client: Submits[_Sent] | None, owner: type) -> Callable[_Arguments, Any]:
        return self.shorthand if client is None else client._shorthand_of(self)
