"""One HTTP request on a libcurl handle: the options of the handle, and what became of the request.

`curl_transport` runs thousands of these at once.
"""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pycurl

from qtask.delivery.claim import Done
from qtask.destinations.http.closed_connections import ClosedConnections
from qtask.destinations.http.message import (
    BROKEN_HEADERS,
    BROKEN_KEPT_CONNECTION,
    DEFAULT_HEADERS,
    HttpRequest,
    answer_of,
    host_of,
    lost,
    timed_out,
)
from qtask.model.outcome import READ_LIMIT_BYTES, Answer, ErrorKind, Failure

_BUFFER_BYTES = 16_384  # libcurl's default, four times as much, makes 280 MB of 5,000 transfers in flight
_KEPT_BODY_BYTES = 16_384  # a handle keeps the body that it sent last, so after a larger one it is closed
_SUPPRESS_CONNECT_HEADERS = 265  # CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl has no name for
_SEND: int = pycurl.PREREQFUNC_OK
_ABORT: int = pycurl.PREREQFUNC_ABORT
_TOO_LARGE = 100  # CURLE_TOO_LARGE, which pycurl has no name for

_ERROR_KINDS: dict[int, ErrorKind] = {
    pycurl.E_COULDNT_RESOLVE_HOST: "dns",
    pycurl.E_COULDNT_RESOLVE_PROXY: "dns",
    pycurl.E_COULDNT_CONNECT: "connect",
    pycurl.E_GOT_NOTHING: "connect",
    pycurl.E_SEND_ERROR: "connect",
    pycurl.E_RECV_ERROR: "connect",
    pycurl.E_PARTIAL_FILE: "connect",
    pycurl.E_OPERATION_TIMEDOUT: "timeout",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CERTPROBLEM: "tls",
    pycurl.E_SSL_CIPHER: "tls",
    pycurl.E_SSL_CACERT_BADFILE: "tls",
    pycurl.E_SSL_ENGINE_INITFAILED: "tls",
}

# Headers that libcurl sets if they are not given.
_LOOKED_FOR = frozenset({"accept", "content-type", "host"})
_DEFAULT_ENTRY = "\r\n".join(f"{name}: {value}" for name, value in DEFAULT_HEADERS)  # begins with Accept
_ASKED_FOR_BYTES = 1_000_000  # just below the size of body for which libcurl sends `Expect` and waits up to a second

Shape = tuple[str, bool, str]
"""Of a request: its method, whether it has a body, its unix socket. The options of a handle depend on it."""


class Transfer:
    """A libcurl handle that is made for a shape and used again, with the state of one request.

    Attributes:
        unsent: whether the transfer was ended because its connection had been closed before anything was sent.
    """

    def __init__(self, shape: Shape, ca_bundle: Path, closed: ClosedConnections) -> None:
        self.shape = shape
        self.handle = handle = pycurl.Curl()
        self.headers: list[bytes] = []
        self._body: list[bytes] = []
        self._size = 0
        self._milliseconds = 0
        self._own_connection = False
        self._closed = closed
        self._closed_ports = closed.ports
        self._sent = self.unsent = False
        method, with_body, unix_socket = shape
        handle.setopt(pycurl.NOSIGNAL, 1)
        _trust(handle, ca_bundle)
        handle.setopt(_SUPPRESS_CONNECT_HEADERS, 1)  # they would look like an answer of the receiver
        handle.setopt(pycurl.BUFFERSIZE, _BUFFER_BYTES)
        handle.setopt(pycurl.UPLOAD_BUFFERSIZE, _BUFFER_BYTES)
        handle.setopt(pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS)
        handle.setopt(pycurl.USERAGENT, "")  # a request has its own header
        handle.setopt(pycurl.PATH_AS_IS, 1)
        handle.setopt(pycurl.WRITEFUNCTION, self._on_body)
        handle.setopt(pycurl.HEADERFUNCTION, self.headers.append)
        handle.setopt(pycurl.PREREQFUNCTION, self._on_request)
        if with_body or method not in ("GET", "HEAD"):
            handle.setopt(pycurl.POST, 1)  # also without a body: then it says Content-Length: 0, as requests does
            handle.setopt(pycurl.POSTFIELDS, b"")
            if method == "HEAD":  # with NOBODY libcurl sends no body; without, it waits for one in the answer
                handle.setopt(pycurl.HEADERFUNCTION, self._on_header_of_head)
        elif method == "HEAD":
            handle.setopt(pycurl.NOBODY, 1)
        handle.setopt(pycurl.CUSTOMREQUEST, method)
        if unix_socket:
            handle.setopt(pycurl.UNIX_SOCKET_PATH, unix_socket)
            handle.setopt(pycurl.PROXY, "")

    def prepare(self, request: HttpRequest, deadline: float, redirects: int, done: Done) -> None:
        """Sets the options that differ from request to request."""
        self.request = request
        self.deadline = deadline
        self.redirects = redirects
        self.done = done
        self._size = 0
        self._sent = self.unsent = False
        handle = self.handle
        handle.setopt(pycurl.URL, request.url)
        handle.setopt(pycurl.HTTPHEADER, _header_lines(request))
        seconds = deadline - monotonic() if redirects else request.timeout
        milliseconds = max(1, int(seconds * 1000))
        if milliseconds != self._milliseconds:
            handle.setopt(pycurl.TIMEOUT_MS, milliseconds)
            self._milliseconds = milliseconds
        if request.own_connection != self._own_connection:
            self._own_connection = request.own_connection
            handle.setopt(pycurl.FRESH_CONNECT, int(request.own_connection))
            handle.setopt(pycurl.FORBID_REUSE, int(request.own_connection))
        if request.body is not None:
            handle.setopt(pycurl.POSTFIELDS, request.body)

    def result(self, code: int, words: str) -> tuple[int, list[tuple[str, str]], Answer]:
        """Returns status, headers and answer. Raises `Failure` if there is no answer."""
        note = ""
        if not code:
            if (not self.headers or self.headers[-1] != b"\r\n") and not self._is_answered():
                raise Failure("connect", f"{host_of(self.request)}: {BROKEN_HEADERS}")
        else:
            if not self._is_answered():
                raise self._failure(code, words)
            ended = code == pycurl.E_WRITE_ERROR and (self._size > READ_LIMIT_BYTES or self.request.method == "HEAD")
            if not ended:
                note = lost("" if code == pycurl.E_OPERATION_TIMEDOUT else _reason(code, words), self.request.timeout)
        status = self.handle.getinfo(pycurl.RESPONSE_CODE)
        headers = self._final_headers(status)
        return status, headers, answer_of(status, headers, b"".join(self._body), note)

    def _failure(self, code: int, words: str) -> Failure:
        host = host_of(self.request)
        if code == pycurl.E_ABORTED_BY_CALLBACK and self._sent:
            if self.request.own_connection:  # libcurl repeats such a request only after a refusal in HTTP/2
                return Failure(
                    "connect", f"{host}: the receiver refused the HTTP/2 stream; it read nothing of the request"
                )
            return Failure("connect", f"{host}: {BROKEN_KEPT_CONNECTION}", at_once=True)
        kind = _ERROR_KINDS.get(code, "protocol")
        if kind == "timeout":
            return timed_out(self.request)
        if code == pycurl.E_RECV_ERROR and words.startswith("Too large"):
            kind = "protocol"  # libcurl has no code for headers that are too large in total
        return Failure(kind, f"{host}: {_reason(code, words)}")

    def forget(self) -> bool:
        """Drops the request and its answer; returns whether the memory that the handle still holds is small."""
        body = self.request.body
        self.headers.clear()
        self._body.clear()
        del self.request, self.done
        return body is None or len(body) <= _KEPT_BODY_BYTES

    def _on_request(self, remote_ip: str, local_ip: str, remote_port: int, local_port: int) -> int:
        """Called by libcurl right before it sends the request; stops it from sending the request twice.

        If a kept connection breaks before any byte of an answer, libcurl sends the request again over another one, and
        no option prevents that. The receiver may have read the first one. A connection that is known to be closed is
        not used at all.
        """
        if self._sent:
            return _ABORT
        if self._closed_ports and not self._own_connection and self._closed.has(local_port):
            self.unsent = True
            return _ABORT
        self._sent = True
        return _SEND

    def _on_header_of_head(self, line: bytes) -> int | None:
        """Ends the transfer after the headers: an answer to HEAD has no body, whatever its headers say."""
        self.headers.append(line)
        return 0 if self._is_answered() else None

    def _is_answered(self) -> bool:
        """Whether all headers of the final answer have arrived."""
        answered = final = False
        for line in self.headers:
            if line.startswith(b"HTTP/"):
                final = not line.partition(b" ")[2].lstrip().startswith(b"1")  # 1xx is an interim answer
            elif not line.strip():
                answered = final
        return answered

    def _on_body(self, chunk: bytes) -> int | None:
        self._size += len(chunk)
        self._body.append(chunk)
        return 0 if self._size > READ_LIMIT_BYTES else None

    def _final_headers(self, status: int) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        if status == 200 and b"\ncontent-encoding" not in b"".join(self.headers).lower():
            return found  # nobody uses the other headers of such an answer
        for line in self.headers:
            if line.startswith(b"HTTP/"):
                found.clear()  # earlier headers belong to an interim answer, such as 103
            else:
                name, colon, value = line.decode("latin-1").partition(":")
                if colon:
                    found.append((name, value.strip()))
        return found


def _trust(handle: Any, ca_bundle: Path) -> None:
    """Makes a handle trust the authorities of a file or a folder, for receivers and for proxies."""
    folder = ca_bundle.is_dir()
    handle.setopt(pycurl.CAPATH if folder else pycurl.CAINFO, str(ca_bundle))
    handle.setopt(pycurl.PROXY_CAPATH if folder else pycurl.PROXY_CAINFO, str(ca_bundle))


def _reason(code: int, words: str) -> str:
    """The reason why libcurl failed; for some errors it has no message."""
    if not words.strip() and code == _TOO_LARGE:
        return "the headers of the answer are too large; 100 kB a line and 300 kB in all are read"
    return words.strip() or f"libcurl failed with error {code}"


def _header_lines(request: HttpRequest) -> list[bytes]:
    """The headers as libcurl takes them: a list of entries, each with one header or several.

    libcurl copies and frees each entry, and compares it with each name that it looks for. Three entries in place of
    eight take a tenth less processor time for a request. A header that it looks for must begin an entry.
    """
    entries: list[bytes] = []
    headers, body = request.headers, request.body
    entry = ""  # the last one, if more headers may be added to it
    if headers[: len(DEFAULT_HEADERS)] == DEFAULT_HEADERS:  # nearly always
        headers = headers[len(DEFAULT_HEADERS) :]
        entry = _DEFAULT_ENTRY
    typed = False
    for name, value in headers:
        lower = name.lower()
        if entry:
            if value and lower not in _LOOKED_FOR:
                entry += f"\r\n{name}: {value}"
                continue
            entries.append(entry.encode("latin-1"))
        if value:
            entry = f"{name}: {value}"
        else:
            entry = ""
            entries.append(f"{name};".encode("latin-1"))
        typed = typed or lower == "content-type"
    if entry:
        entries.append(entry.encode("latin-1"))
    if not typed or body is None:
        entries.append(b"Content-Type:")  # libcurl would declare any body a form
    if body is not None and len(body) > _ASKED_FOR_BYTES:
        entries.append(b"Expect:")
    return entries
