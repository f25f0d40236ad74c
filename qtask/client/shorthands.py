"""Shorthands such as `client.http(…)`, for both clients. Each destination defines its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from msgspec import UNSET

from qtask.client.protocol import TaskLike, client_mask
from qtask.client.words import check_words, named_parameters
from qtask.destinations.registry import REGISTRY, BuiltIn
from qtask.model.destination import Delay, Destination, Instant, Options, Parts
from qtask.model.errors import Refused
from qtask.model.task import MAX_TITLE_CHARACTERS

Sent = TypeVar("Sent")
_Arguments = ParamSpec("_Arguments")

_OPTIONS = tuple(Options.__annotations__)


class Shorthands(BuiltIn, Generic[Sent]):
    """A method for each destination. `Sent` is the type that `send` returns: an answer, or an awaitable of one."""

    @abstractmethod
    def send(self, task: TaskLike) -> Sent:
        """Submits one task."""

    def _shorthand_of(self, destination: Destination[_Arguments]) -> Callable[_Arguments, Sent]:
        """The method for a destination; see `qtask.model.destination.Submits`."""

        @wraps(destination.shorthand)
        def submit(*arguments: _Arguments.args, **words: _Arguments.kwargs) -> Sent:
            check_words(f"{type(self).__name__}.{destination.word}", words, _words(destination))
            parts = destination.shorthand(*arguments, **words)
            options: Any = {name: value for name, value in words.items() if name in _OPTIONS}
            return self.send(_build(destination, parts, options))

        submit.__name__ = destination.word
        submit.__qualname__ = f"{type(self).__name__}.{destination.word}"
        return submit

    if not TYPE_CHECKING:  # a type checker should say that `client.htp` is a mistake

        def __getattr__(self, name: str) -> Any:
            """The method for a destination of an installed package."""
            if not name.startswith("_"):
                REGISTRY.look_for_more()
                for destination in REGISTRY.known():
                    if destination.word == name:
                        return self._shorthand_of(destination)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@cache
def _words(destination: Destination[...]) -> frozenset[str]:
    """The keyword arguments that a shorthand takes."""
    parameters = signature(destination.shorthand).parameters.values()
    more = _OPTIONS if any(one.kind is one.VAR_KEYWORD for one in parameters) else ()
    return frozenset((*named_parameters(destination.shorthand), *more))


def _build(destination: Destination[...], parts: Parts, options: Options) -> dict[str, Any]:
    link, data = parts
    settings = _when(options.get("delay"), options.get("at"))
    if data is not UNSET:
        settings["data"] = data
    expires = options.get("expires")
    given = {
        "timeout": options.get("timeout"),
        "retry": options.get("retry"),
        "expires": expires.total_seconds() if isinstance(expires, timedelta) else expires,
        "flow": options.get("flow"),
        "queue": options.get("queue"),
        "id": options.get("id"),
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    address = {"type": destination.name, "link": link} if link else {"type": destination.name}
    title = options.get("title") or client_mask().text(destination.title_of(link))[:MAX_TITLE_CHARACTERS]
    return {"title": title, "address": address, "settings": settings}


def _when(delay: Delay | None, at: Instant | None) -> dict[str, Any]:
    """`settings.time` or `settings.at`. Raises `Refused` for both, or for a datetime without its zone."""
    if delay is not None and at is not None:
        raise Refused("invalid_value", "settings.at", "either delay or at says when, not both")
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise Refused(
                "invalid_value", "settings.at", "a datetime needs its zone: datetime.now(UTC) + …, for example"
            )
        return {"at": at.timestamp()}
    if at is not None:
        return {"at": at}
    return {"time": delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0}
