"""What is submitted often, in few words: the same for both clients."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from msgspec import UNSET

from qtask.client.protocol import TaskLike, client_mask
from qtask.client.words import known_words
from qtask.model.errors import Refused
from qtask.model.task import MAX_TITLE_CHARACTERS, Kind

Delay = float | timedelta
Instant = float | datetime
Sent = TypeVar("Sent")


class Options(TypedDict, total=False):
    """What any task may be told.

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


_OPTIONS = tuple(Options.__annotations__)


class Shorthands(Generic[Sent]):
    """A method for each kind of address. `Sent` is what `send` returns: an answer, or one to be awaited."""

    @abstractmethod
    def send(self, task: TaskLike) -> Sent:
        """Submits one task."""

    @known_words(*_OPTIONS)
    def http(
        self,
        url: str,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | str | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: str | bytes | Mapping[str, Any] | None = None,
        **options: Unpack[Options],
    ) -> Sent:
        """Submits an HTTP request, in the words of requests.

        Args:
            method: by default POST with a body (`json` or `data`), else GET.
        """
        given = {"headers": headers, "params": params, "json": json}
        if isinstance(data, bytes | bytearray):
            given["body_base64"] = base64.b64encode(data).decode()
        else:
            given["data"] = data
        body = {key: value for key, value in given.items() if value is not None}
        if method is None and (json is not None or data is not None):
            method = "POST"
        if method is not None and method != "GET":
            body["method"] = method
        return self.send(_build("http", url, body or UNSET, options))

    @known_words(*_OPTIONS)
    def socket(
        self,
        address: str,
        data: Any,
        **options: Unpack[Options],
    ) -> Sent:
        """Submits `data` (any JSON) for a socket: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""
        return self.send(_build("socket", address, data, options))

    @known_words(*_OPTIONS)
    def pipe(
        self,
        name: str,
        data: Any,
        **options: Unpack[Options],
    ) -> Sent:
        """Submits `data` (any JSON) for a named pipe."""
        return self.send(_build("pipe", name, {"data": data}, options))

    @known_words(*_OPTIONS)
    def udp(self, address: str, data: Any, **options: Unpack[Options]) -> Sent:
        """Submits `data` (any JSON) as a datagram to `HOST:PORT` or `[IPv6]:PORT`."""
        return self.send(_build("udp", address, data, options))

    @known_words()
    def graph(self, *, title: str = "graph") -> Sent:
        """Asks for a graph of how punctual deliveries were; its id fetches the picture."""
        return self.send(_build("__graph__", "", UNSET, {"title": title}))


def _build(kind: Kind, link: str, data: Any, options: Options) -> dict[str, Any]:
    settings = _when(options.get("delay"), options.get("at"))
    if data is not UNSET:
        settings["data"] = data
    expires = options.get("expires")
    given = {
        "timeout": options.get("timeout"),
        "retry": options.get("retry"),
        "expires": expires.total_seconds() if isinstance(expires, timedelta) else expires,
        "id": options.get("id"),
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    address = {"type": kind, "link": link} if link else {"type": kind}
    title = options.get("title") or client_mask().text(f"{kind} {link}")[:MAX_TITLE_CHARACTERS]
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
