"""`http` tasks with requests: the transport of a stock `rq worker`, one delivery at a time."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection

from qtask.delivery.http_answer import REDIRECTS, answer_of, header, judge
from qtask.delivery.http_request import MAX_REDIRECTS, HttpRequest, follow
from qtask.outcome import READ_LIMIT_BYTES, Answer, Failure

_CHUNK_BYTES = 8_192
_kept: list[requests.Session] = []  # the one session, while no thread uses it


class _FinalResponse(http.client.HTTPResponse):
    """Passes over interim answers (RFC 9110, section 15.2); http.client does so for 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]  # typeshed hides it
            if not 100 < status < 200 or status == http.client.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _Connection(HTTPConnection):
    response_class = _FinalResponse


class _TlsConnection(HTTPSConnection):
    response_class = _FinalResponse


class _UnixConnection(_Connection):
    """To a unix socket, whatever the URL says of host and port."""

    path = ""

    def _new_conn(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection


class _UnixAdapter(HTTPAdapter):
    """requests' adapter, to a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool: Any = urllib3.HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = type("UnixConnection", (_UnixConnection,), {"path": path})

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._pool


class _Adapter(HTTPAdapter):
    """requests' adapter, on connections that pass over interim answers."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _TlsConnection if pool.scheme == "https" else _Connection
        pool.host = pool.host.replace("%25", "%")  # the zone of an IPv6 address, which is looked up as it stands
        return pool


def _new_session() -> requests.Session:
    session = requests.Session()
    session.mount("http://", _Adapter())
    session.mount("https://", _Adapter())
    return session


def deliver(request: HttpRequest) -> Answer:
    """Sends a request, follows redirects, and returns the answer of a receiver that took it.

    Raises `Failure`, also when `request.timeout` seconds have passed in all: requests bounds single reads only, so
    the exchange runs in a thread of its own, which is left behind when its time is over.
    """
    session = _kept.pop() if _kept else _new_session()
    results: SimpleQueue[Answer | Failure] = SimpleQueue()
    threading.Thread(target=_exchange, args=(session, request, results.put), daemon=True).start()
    try:
        result = results.get(timeout=request.timeout)
    except Empty:
        raise _timeout(request) from None  # the session goes with the thread that still uses it
    _kept.append(session)
    if isinstance(result, Failure):
        raise result
    return result


def _exchange(session: requests.Session, request: HttpRequest, report: Callable[[Answer | Failure], None]) -> None:
    deadline = monotonic() + request.timeout
    try:
        report(_follow_redirects(session, request, deadline))
    except Failure as failure:
        report(failure)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        report(_failure(request, error))
    except Exception as error:  # a thread that dies in silence would be taken for a slow receiver
        report(Failure("internal", f"{type(error).__name__}: {error}"))


def _follow_redirects(session: requests.Session, request: HttpRequest, deadline: float) -> Answer:
    for _ in range(MAX_REDIRECTS + 1):
        status, headers, body = _send(session, request, deadline)
        answer = answer_of(status, headers, body)
        target = header(headers, "location") if status in REDIRECTS else ""
        if not target:
            judge(status, headers, answer)
            return answer
        request = follow(request, status, target)
    raise Failure("redirect", f"more than {MAX_REDIRECTS} redirects, the last to {target[:200]}", answer)


def _send(session: requests.Session, request: HttpRequest, deadline: float) -> tuple[int, list[tuple[str, str]], bytes]:
    prepared = requests.PreparedRequest()
    prepared.method = request.method
    prepared.url = request.url
    prepared.headers = CaseInsensitiveDict(request.headers)
    prepared.body = request.body
    if request.body is not None or request.method not in ("GET", "HEAD"):
        prepared.headers["Content-Length"] = str(len(request.body or b""))
    left = max(0.001, deadline - monotonic())
    # The adapter and not the session sends: a session would follow redirects, and keep cookies from task to task.
    adapter: BaseAdapter
    settings: Any
    if request.unix_socket:
        adapter, settings = _UnixAdapter(request.unix_socket), {}
    else:
        adapter = session.get_adapter(request.url)
        settings = session.merge_environment_settings(request.url, {}, True, None, None)
    with adapter.send(prepared, timeout=(left, left), **settings) as response:
        body = b""
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            body += chunk
            if len(body) > READ_LIMIT_BYTES:
                response.raw.close()  # the rest is not read, so the connection cannot be used again
                break
        headers = [(name, value.strip(" \t")) for name, value in response.raw.headers.items()]
        return response.status_code, headers, body


def _failure(request: HttpRequest, error: Exception) -> Failure:
    host = request.url.split("/", 3)[2]
    causes = _causes(error)
    if any(isinstance(cause, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)) for cause in causes):
        if not any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
            return _timeout(request)
    last = causes[-1]
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
        return Failure("dns", f"{host}: the host name cannot be resolved: {last}")
    if any(isinstance(cause, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)) for cause in causes):
        return Failure("tls", f"{host}: {last}")
    if any(isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) for cause in causes):
        return Failure("connect", f"{host}: {last}")
    if any(isinstance(cause, urllib3.exceptions.IncompleteRead) for cause in causes):
        return Failure("connect", f"{host}: the answer broke off: {last}")
    return Failure("protocol", f"{host}: {last}")


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what lies under it, outermost first: requests wraps urllib3's errors, which wrap others."""
    found: list[BaseException] = []
    below: BaseException | None = error
    while below is not None and below not in found:
        found.append(below)
        inner = [part for part in (getattr(below, "reason", None), *below.args) if isinstance(part, BaseException)]
        below = inner[0] if inner else below.__cause__ or below.__context__
    return found


def _timeout(request: HttpRequest) -> Failure:
    return Failure("timeout", f"{request.url.split('/', 3)[2]}: no complete answer within {request.timeout:g} s")
