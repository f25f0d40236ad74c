"""`http` tasks with requests: the transport of a stock `rq worker`, one delivery at a time."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

import requests
import urllib3
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPSConnection

from qtask.config import Config
from qtask.delivery import staggered
from qtask.delivery.authorities import ca_bundle
from qtask.delivery.causes import causes_of
from qtask.delivery.claim import Claim
from qtask.destinations.http.message import (
    BROKEN_HEADERS,
    BROKEN_KEPT_CONNECTION,
    HEADERS_LIMIT_BYTES,
    MAX_REDIRECTS,
    HttpRequest,
    answer_of,
    follow,
    header,
    host_of,
    judge,
    lost,
    prepare,
    redirect_target,
    timed_out,
)
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, Failure
from qtask.private.urllib3 import Connection, Response, allow_header_fields

_CHUNK_BYTES = 8_192
allow_header_fields(5_000)  # like libcurl; some receivers send more than 100
_kept: list[requests.Session] = []  # the session, while no thread uses it


class _KeptConnectionBroke(ConnectionError):
    """A kept connection broke before any answer."""


class _BrokenHeaders(OSError):
    """The connection broke within the headers of an answer."""


class _Head:
    """Reads the lines of headers, at most `HEADERS_LIMIT_BYTES`, and notes whether their end was reached."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.ended = False
        self._left = HEADERS_LIMIT_BYTES

    def readline(self, limit: int) -> bytes:
        """As of a file."""
        line: bytes = self.file.readline(limit)
        self.ended = not line.strip() and line != b""
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException(f"the headers of the answer are larger than {HEADERS_LIMIT_BYTES} bytes")
        return line

    def close(self) -> None:
        """As of a file."""
        self.file.close()


class _FinalResponse(Response):
    """Accepts only complete headers, and skips interim answers (RFC 9110, section 15.2).

    http.client accepts incomplete headers when the connection breaks, and skips only the interim answer 100.
    """

    def begin(self) -> None:
        """Reads status and headers."""
        head: Any = _Head(self.fp)
        self.fp = head  # while lines are read
        try:
            super().begin()
        finally:
            if self.fp is head:
                self.fp = self.fp.file
        if not head.ended:
            raise _BrokenHeaders(BROKEN_HEADERS)

    def read_status(self) -> tuple[str, int, str]:
        """Reads status lines, and the headers of interim answers, up to the status of the final one."""
        while True:
            version, status, reason = super().read_status()
            if not 100 < status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _Connection(Connection):
    """A connection to the first address of the host that answers; notes whether it has served a request before."""

    response_class = _FinalResponse
    _served = False

    def open_socket(self) -> socket.socket:
        """A socket that is connected to the first address of the host that answers. Raises `OSError`."""
        self._served = False
        assert isinstance(self.timeout, int | float), "deliveries have a timeout"
        return staggered.connect(self.name_to_resolve, self.port, self.timeout, self.socket_options or ())

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as urllib3 has it
        """As urllib3's, but raises `_KeptConnectionBroke` if a kept connection broke."""
        try:
            response = super().getresponse()
        except ConnectionError as error:
            if self._served:
                raise _KeptConnectionBroke(BROKEN_KEPT_CONNECTION) from error
            raise
        self._served = True
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _UnixConnection(_Connection):
    """A connection to a unix socket; the host and port of the URL are not used."""

    path = ""

    def open_socket(self) -> socket.socket:
        """A socket that is connected to `path`. Raises `OSError`."""
        self._served = False
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout if isinstance(self.timeout, int | float) else None)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection


class _UnixAdapter(HTTPAdapter):
    """The adapter of requests for a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._pool: Any = urllib3.HTTPConnectionPool("localhost")
        self._pool.ConnectionCls = type("UnixConnection", (_UnixConnection,), {"path": path})

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._pool


class _Adapter(HTTPAdapter):
    """The adapter of requests with connections that skip interim answers."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _TlsConnection if pool.scheme == "https" else _Connection
        pool.host = pool.host.replace("%25", "%")  # the zone of an IPv6 address is not encoded in a look-up
        return pool


def _new_session() -> requests.Session:
    session = requests.Session()
    session.mount("http://", _Adapter())
    session.mount("https://", _Adapter())
    return session


class _Exchange:
    """A request and its redirects, in a thread.

    Attributes:
        seen: status, headers and the body so far of the answer that is being read; None until its headers are complete.
    """

    def __init__(self, session: requests.Session, request: HttpRequest, authorities: Path) -> None:
        self._session = session
        self._request = request
        self._authorities = authorities
        self._deadline = monotonic() + request.timeout
        self.seen: tuple[int, list[tuple[str, str]], bytes] | None = None

    def run(self, report: Callable[[Answer | Failure], None]) -> None:
        """Reports the result, once."""
        try:
            report(self._follow_redirects())
        except Failure as failure:
            report(failure)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            found = _failure(self._request, error)
            if any(isinstance(cause, ssl.SSLError) and cause.library == "X509" for cause in causes_of(error)):
                found = Failure("tls", f"{found.message}: {self._authorities}")
            report(found)
        except Exception as error:  # a thread that ends without a report would look like a slow receiver
            report(Failure("internal", f"{type(error).__name__}: {error}"))

    def result_at_timeout(self) -> Answer:
        """The incomplete answer, if its headers are complete. Raises `Failure` if they are not, or by its status."""
        seen = self.seen
        if seen is None or redirect_target(*seen[:2]):
            raise timed_out(self._request)
        status, headers, body = seen
        answer = answer_of(status, headers, body, lost("", self._request.timeout))
        judge(status, headers, answer)
        return answer

    def _follow_redirects(self) -> Answer:
        request = self._request
        for _ in range(MAX_REDIRECTS + 1):
            status, headers, answer = self._send(request)
            target = redirect_target(status, headers)
            if not target:
                judge(status, headers, answer)
                return answer
            request = follow(request, status, target)
        raise Failure("redirect", f"more than {MAX_REDIRECTS} redirects, the last to {target[:200]!r}", answer)

    def _send(self, request: HttpRequest) -> tuple[int, list[tuple[str, str]], Answer]:
        self.seen = None
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = request.url
        prepared.headers = CaseInsensitiveDict(request.headers)
        prepared.body = request.body
        if request.body is not None or request.method not in ("GET", "HEAD"):
            prepared.headers["Content-Length"] = str(len(request.body or b""))
        left = max(0.001, self._deadline - monotonic())
        # The adapter sends and not the session: a session would follow redirects, and keep cookies between tasks.
        adapter: BaseAdapter
        settings: Any
        if request.unix_socket:
            adapter, settings = _UnixAdapter(request.unix_socket), {}
        else:
            if request.url.startswith("https:") and not self._authorities.exists():
                raise Failure(
                    "tls", f"{host_of(request)}: the certificates to trust, {self._authorities}, do not exist"
                )
            adapter = self._session.get_adapter(request.url)
            trusted = str(self._authorities)
            settings = self._session.merge_environment_settings(request.url, {}, True, trusted, None)
        with adapter.send(prepared, timeout=(left, left), **settings) as response:
            status = response.status_code
            headers = [(name, value.strip(" \t")) for name, value in response.raw.headers.items()]
            return status, headers, self._read(request, status, headers, response.raw)

    def _read(self, request: HttpRequest, status: int, headers: list[tuple[str, str]], raw: Any) -> Answer:
        """Reads the body, up to a limit. The status has decided already; a note says what was lost."""
        if not (length := header(headers, "content-length")).isdigit() and length:
            raise Failure("protocol", f"{host_of(request)}: an invalid Content-Length: {length[:100]!r}")
        body, note = b"", ""
        self.seen = status, headers, body
        try:
            for chunk in _chunks(raw):
                body += chunk
                self.seen = status, headers, body
                if len(body) > READ_LIMIT_BYTES:
                    raw.close()  # the rest is not read, so the connection cannot be used again
                    break
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raw.close()
            causes = causes_of(error)
            is_late = any(isinstance(cause, TimeoutError) for cause in causes)
            if is_late and redirect_target(status, headers):
                raise timed_out(self._request) from None
            note = lost("" if is_late else _words(causes[-1]), self._request.timeout)
        return answer_of(status, headers, body, note)


def deliver_claim(claim: Claim, config: Config) -> Answer:
    """Delivers an `http` task. Raises `Failure`, or `Refused` when its data is not that of one."""
    return deliver(prepare(claim.task, claim.id, claim.attempt, claim.due), config.ca_file)


def deliver(request: HttpRequest, ca_file: str = "") -> Answer:
    """Sends a request, follows redirects, and returns the answer of a receiver that accepted it.

    Args:
        request: what to send.
        ca_file: the setting, which names the authorities to trust.

    Raises `Failure`, also when `request.timeout` seconds have passed in total. requests limits only single reads, so
    the exchange runs in a thread, which is abandoned at the timeout.
    """
    session = _kept.pop() if _kept and not request.own_connection else _new_session()
    results: SimpleQueue[Answer | Failure] = SimpleQueue()
    exchange = _Exchange(session, request, ca_bundle(ca_file))
    threading.Thread(target=exchange.run, args=(results.put,), daemon=True).start()
    try:
        result = results.get(timeout=request.timeout)
    except Empty:
        return exchange.result_at_timeout()  # the session is dropped with the thread that still uses it
    if request.own_connection:
        session.close()
    else:
        _kept.append(session)
    if isinstance(result, Failure):
        raise result
    return result


def _chunks(raw: Any) -> Iterator[bytes]:
    """The body as it arrives, still compressed, without waiting for full chunks."""
    if raw.chunked:
        yield from raw.read_chunked(_CHUNK_BYTES, decode_content=False)
    else:
        while chunk := raw.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk


def _failure(request: HttpRequest, error: Exception) -> Failure:
    host = host_of(request)
    causes = causes_of(error)
    if any(isinstance(cause, _KeptConnectionBroke) for cause in causes):
        return Failure("connect", f"{host}: {BROKEN_KEPT_CONNECTION}", at_once=True)
    if any(isinstance(cause, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)) for cause in causes):
        if not any(isinstance(cause, urllib3.exceptions.NewConnectionError) for cause in causes):
            return timed_out(request)
    last = _words(causes[-1])
    if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
        return Failure("dns", f"{host}: the host name cannot be resolved: {last}")
    if any(isinstance(cause, (requests.exceptions.SSLError, urllib3.exceptions.SSLError)) for cause in causes):
        return Failure("tls", f"{host}: {last}")
    if any(isinstance(cause, OSError) and not isinstance(cause, requests.RequestException) for cause in causes):
        return Failure("connect", f"{host}: {last}")
    return Failure("protocol", f"{host}: {last}")


def _words(error: BaseException) -> str:
    """The message of an error, or its type if it has none."""
    return str(error).strip() or type(error).__name__
