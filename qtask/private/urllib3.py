"""urllib3, requests and http.client: how a connection is made, how headers are read, and why a request failed."""

from __future__ import annotations

import http.client
import socket
from abc import ABC, abstractmethod
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection


def allow_header_fields(count: int) -> None:
    """Sets how many header fields a response may have, for all of http.client; the default is 100."""
    http.client._MAXHEADERS = count  # type: ignore[attr-defined]


class Response(http.client.HTTPResponse):
    """A response whose subclass may look at the status line before the headers are read."""

    def read_status(self) -> tuple[str, int, str]:
        """Reads a status line: version, status, reason. May be called again for the response after an interim one."""
        version, status, reason = super()._read_status()  # type: ignore[misc]  # typeshed hides it
        return version, status, reason

    def _read_status(self) -> tuple[str, int, str]:
        return self.read_status()


class Connection(HTTPConnection, ABC):
    """A connection whose socket is made by a subclass."""

    response_class = Response

    @abstractmethod
    def open_socket(self) -> socket.socket:
        """A connected socket. Raises `OSError`."""

    @property
    def name_to_resolve(self) -> str:
        """The host as it is resolved, with a trailing dot if it has one."""
        return self._dns_host

    def _new_conn(self) -> socket.socket:
        try:
            return self.open_socket()
        except socket.gaierror as error:
            raise urllib3.exceptions.NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(self, str(error)) from error
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(self, f"no connection: {error}") from error


def cause_of(error: Exception) -> Any:
    """The urllib3 error behind an error of requests: the `reason` of its first argument."""
    first: Any = error.args[0] if error.args else error
    return getattr(first, "reason", first)


def was_not_sent(cause: Any) -> bool:
    """Whether no part of a request was sent, judging by the cause that `cause_of` returned."""
    return isinstance(
        cause,
        urllib3.exceptions.NewConnectionError  # also when the host name is not resolved
        | urllib3.exceptions.SSLError
        | urllib3.exceptions.ProxyError,
    )
