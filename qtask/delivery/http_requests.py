"""`http` tasks with requests: the transport of a stock `rq worker`, one delivery at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from time import monotonic

import requests
import urllib3
from requests.structures import CaseInsensitiveDict

from qtask.delivery.http_answer import REDIRECTS, answer_of, header, judge
from qtask.delivery.http_request import MAX_REDIRECTS, HttpRequest, follow
from qtask.outcome import READ_LIMIT_BYTES, Answer, Failure

_CHUNK_BYTES = 8_192
_kept: list[requests.Session] = []  # the one session, while no thread uses it


def deliver(request: HttpRequest) -> Answer:
    """Sends a request, follows redirects, and returns the answer of a receiver that took it.

    Raises `Failure`, also when `request.timeout` seconds have passed in all: requests bounds single reads only, so
    the exchange runs in a thread of its own, which is left behind when its time is over.
    """
    session = _kept.pop() if _kept else requests.Session()
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


def _follow_redirects(session: requests.Session, request: HttpRequest, deadline: float) -> Answer:
    for _ in range(MAX_REDIRECTS + 1):
        status, headers, body = _send(session, request, deadline)
        answer = answer_of(status, headers, body)
        target = header(headers, "location") if status in REDIRECTS else ""
        if not target:
            judge(status, answer)
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
    settings = session.merge_environment_settings(request.url, {}, True, None, None)
    left = max(0.001, deadline - monotonic())
    with session.send(prepared, timeout=(left, left), allow_redirects=False, **settings) as response:
        body = b""
        for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
            body += chunk
            if len(body) > READ_LIMIT_BYTES:
                response.raw.close()  # the rest is not read, so the connection cannot be used again
                break
        return response.status_code, list(response.raw.headers.items()), body


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
