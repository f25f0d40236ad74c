"""A method for each type of address, written once for both clients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, Unpack

from msgspec import UNSET

from qtask.client import requests
from qtask.client.requests import TaskArguments

Submitted = TypeVar("Submitted")


class Shorthands(ABC, Generic[Submitted]):
    """What is to be sent and where to, as arguments; when and how often, as `TaskArguments`.

    Each raises what `send` raises; also `Refused` for both `delay` and `at`, and for a datetime without its zone.
    """

    @abstractmethod
    def _submit(self, kind: str, link: str, data: Any, arguments: TaskArguments) -> Submitted:
        """Submits the task that `requests.build` makes of these."""

    def http(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | str | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        data: str | Mapping[str, Any] | None = None,
        **arguments: Unpack[TaskArguments],
    ) -> Submitted:
        """Submits an HTTP request, in the words of requests."""
        body = requests.http_data(method, {"headers": headers, "params": params, "json": json, "data": data})
        return self._submit("http", url, body, arguments)

    def socket(self, address: str, data: Any, **arguments: Unpack[TaskArguments]) -> Submitted:
        """Submits `data` (any JSON) for a socket: `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`."""
        return self._submit("socket", address, data, arguments)

    def udp(self, address: str, data: Any, **arguments: Unpack[TaskArguments]) -> Submitted:
        """Submits `data` (any JSON) for one datagram to `HOST:PORT` or `[IPv6]:PORT`."""
        return self._submit("udp", address, data, arguments)

    def pipe(self, name: str, data: Any, **arguments: Unpack[TaskArguments]) -> Submitted:
        """Submits `data` (any JSON) for a named pipe."""
        return self._submit("pipe", name, {"data": data}, arguments)

    def graph(self, **arguments: Unpack[TaskArguments]) -> Submitted:
        """Asks for a graph of how punctual deliveries were; its id fetches the picture."""
        return self._submit("__graph__", "", UNSET, arguments)
