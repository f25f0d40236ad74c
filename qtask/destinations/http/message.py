"""The HTTP message of both transports: the request that a task becomes, and what the answer to it means.

Both transports send the request as it stands, so receivers cannot tell them apart. The status decides as soon as all
headers of the answer have arrived: a receiver that answers 200 has accepted the request, even if the rest of its answer
is lost. What is lost of the body is noted.
"""

from __future__ import annotations

import base64
import re
import sys
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit, urlunsplit

import brotli
import idna
from msgspec import UNSET, Struct
from msgspec.structs import replace

from qtask.destinations.http import FormValue, HttpData, Scalar, http_data
from qtask.destinations.http.browsers import random_browser
from qtask.model.errors import Refused
from qtask.model.ids import client_id
from qtask.model.link import check_url, split_unix
from qtask.model.outcome import ANSWER_LIMIT_BYTES, Answer, Failure, excerpt
from qtask.model.task import Task, decode_base64, is_given, json_text
from qtask.model.timing import format_instant
from qtask.version import VERSION

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

MAX_REDIRECTS = 5
USER_AGENT = f"qtask/{VERSION}"

_Headers = list[tuple[str, str]]

DEFAULT_HEADERS = (("Accept", "*/*"), ("Accept-Encoding", "gzip, deflate, br, zstd"), ("User-Agent", USER_AGENT))
# They speak of one connection, not of the message, and the connection is the transport's.
_CONNECTION_HEADERS = frozenset({"connection", "keep-alive", "proxy-connection", "proxy-authorization"})
_BODY_HEADERS = frozenset({"content-type", "content-encoding", "content-language"})
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
_CLEAN_URL = re.compile(  # possessive, which takes less than half the time: there is one way only to match
    r"https?://[a-zA-Z0-9.-]+(?::[0-9]+)?/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]++|%[0-9A-F]{2})*+", re.ASCII
)
_SAFE_IN_URL = "!$%&'()*+,/:;=?@~"  # as requests puts it on the wire: RFC 3986's path and query, and the percent sign

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Of a connection that was used before: the receiver may have closed it just then, or read the request and died.
BROKEN_KEPT_CONNECTION = "the kept connection broke before any answer; whether the request was read is not known"

# RFC 9112, section 8: then nothing can be said of what the receiver did.
BROKEN_HEADERS = "the connection broke within the headers of the answer"
HEADERS_LIMIT_BYTES = 307_200  # libcurl's, and so the other transport's, of all headers of an answer together

# Decoded no further than this, however much a small body swells to.
_DECODE_LIMIT_BYTES = ANSWER_LIMIT_BYTES

# --- the request --------------------------------------------------------------------------------------------------


class HttpRequest(Struct, frozen=True):
    """One request, ready to be put on the wire as it stands.

    Attributes:
        method: as sent.
        url: absolute, percent-encoded, ASCII, without fragment or user.
        headers: in the order in which they are sent; Host, Content-Length and Connection are the transport's.
        body: None when there is none.
        timeout: seconds for all of it, redirects included.
        unix_socket: path of the unix socket on which the receiver listens; empty for the host and port of `url`.
        own_connection: whether it is sent over a new connection that is closed afterwards.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None
    timeout: float
    unix_socket: str = ""
    own_connection: bool = False


def prepare(task: Task, task_id: str, attempt: int, due: float) -> HttpRequest:
    """The request of an `http` task.

    Args:
        task: the dict.
        task_id: as it is stored; the client's form of it is sent as `QTask-Id`, the same on every attempt, so that a
            receiver can tell duplicates.
        attempt: sent as `QTask-Attempt`, from 1.
        due: Unix seconds, sent as `QTask-Due` in ISO 8601.

    A retry gets a connection of its own: the connections that are kept may all be dead, and a task must not use up its
    attempts on them.

    Raises `Refused` when the data is not that of an `http` task.
    """
    data = http_data(task)
    url, unix_socket, authorization = task.address.link, "", ""
    if not _CLEAN_URL.fullmatch(url):
        unix_socket, url = split_unix(url)
        url, authorization = _url(url)
    if data.params:
        url = _with_params(url, data.params)
    body, content_type = _body(data)
    headers, names = _headers(data)
    if content_type and "content-type" not in names:
        headers.append(("Content-Type", content_type))
    if authorization and "authorization" not in names:
        headers.append(("Authorization", authorization))
    headers += (
        ("QTask-Id", client_id(task_id)),
        ("QTask-Attempt", str(attempt)),
        ("QTask-Due", format_instant(due)),
    )
    return HttpRequest(data.method.upper(), url, tuple(headers), body, task.timeout, unix_socket, attempt > 1)


def _headers(data: HttpData) -> tuple[_Headers, Collection[str]]:
    """What the task says, with the defaults for what it does not; and the names that it says, in lower case."""
    if not data.headers:
        return list(DEFAULT_HEADERS), ()
    if isinstance(data.headers, dict):
        headers = [pair for pair in data.headers.items() if pair[0].lower() not in _CONNECTION_HEADERS]
    else:
        headers = random_browser()
    names = {name.lower() for name, _ in headers}
    return headers + [pair for pair in DEFAULT_HEADERS if pair[0].lower() not in names], names


def follow(request: HttpRequest, status: int, location: str) -> HttpRequest:
    """The request that a redirect asks for, by the rules of RFC 9110, section 15.4, and of browsers.

    303 becomes a GET, and so do 301 and 302 after a POST; the body and its headers go with it. 307 and 308 repeat
    the request. Credentials are not shown to another origin. Raises `Failure` when `location` leads nowhere.
    """
    try:
        target, _ = _url(urljoin(request.url, location))
    except (ValueError, UnicodeError) as error:
        raise Failure("redirect", f"the receiver redirects to {location[:200]!r}, which is no URL: {error}") from None
    if not target.startswith(("http://", "https://")):
        raise Failure("redirect", f"the receiver redirects to {location[:200]!r}, which is no http or https URL")
    try:
        check_url(target)
    except Refused as refused:
        raise Failure("redirect", f"the receiver redirects to {location[:200]!r}: {refused.message}") from None
    headers = request.headers
    if _origin(target) != _origin(request.url):
        headers = tuple(pair for pair in headers if pair[0].lower() not in _SECRET_HEADERS | {"host"})
        request = replace(request, unix_socket="")
    to_get = (status == 303 and request.method != "HEAD") or (status in (301, 302) and request.method == "POST")
    if not to_get:
        return replace(request, url=target, headers=headers)
    headers = tuple(pair for pair in headers if pair[0].lower() not in _BODY_HEADERS)
    return replace(request, method="GET", url=target, headers=headers, body=None)


def _origin(url: str) -> tuple[str, str | None, int]:
    """Scheme, host and port by which two URLs have one origin, however they are spelled (RFC 6454, section 4)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def host_of(request: HttpRequest) -> str:
    """The host of a request, and its port where the URL has one, as messages name it."""
    return request.url.split("/", 3)[2]


def timed_out(request: HttpRequest) -> Failure:
    """The failure of a request that was not answered in time."""
    return Failure("timeout", f"{host_of(request)}: no complete answer within {request.timeout:g} s")


def _url(link: str) -> tuple[str, str]:
    """Returns the URL as it goes on the wire, and the Authorization header that its user part stands for."""
    if _CLEAN_URL.fullmatch(link):
        return link, ""
    parts = urlsplit(link)
    host = parts.hostname or ""
    if not host.isascii():
        host = idna.encode(host, uts46=True).decode("ascii")
    if ":" in host:
        address, percent, zone = host.partition("%")
        host = f"[{address}{percent and '%25'}{zone.removeprefix('25')}]"  # RFC 6874; curl takes a bare % as well
    authorization = ""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode("ascii")
    place = host if parts.port is None else f"{host}:{parts.port}"
    # Lone surrogates are bytes of a redirect that are not UTF-8; they stay the bytes that they are.
    path = quote(_requote(parts.path or "/"), _SAFE_IN_URL, errors="surrogateescape")
    query = quote(_requote(parts.query), _SAFE_IN_URL, errors="surrogateescape")
    return urlunsplit((parts.scheme, place, path, query, "")), authorization


def _requote(text: str) -> str:
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return re.sub(r"%[0-9A-Fa-f]{2}", lambda escape: escape[0].upper(), text)


def _with_params(url: str, params: Mapping[str, FormValue]) -> str:
    query = _form(params)
    if not query:
        return url
    return url + ("&" if "?" in url else "?") + query


def _form(fields: Mapping[str, FormValue]) -> str:
    pairs = []
    for name, value in fields.items():
        if isinstance(value, list):
            pairs += [(name, _text(one)) for one in value]
        elif value is not None:
            pairs.append((name, _text(value)))
    return urlencode(pairs)


def _text(value: Scalar) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _body(data: HttpData) -> tuple[bytes | None, str]:
    if is_given(data.json):
        return json_text(data.json), "application/json"
    if isinstance(data.data, str):
        return data.data.encode(), "text/plain; charset=utf-8"
    if isinstance(data.data, dict):
        return _form(data.data).encode("ascii"), "application/x-www-form-urlencoded"
    if data.body_base64 is not UNSET:
        return decode_base64(data.body_base64), "application/octet-stream"
    return None, ""


# --- the answer ---------------------------------------------------------------------------------------------------


def header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """The value of a header by its lower-case name, or nothing; of several the last."""
    found = ""
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def redirect_target(status: int, headers: Sequence[tuple[str, str]]) -> str:
    """Where an answer redirects to; empty when it does not.

    Args:
        status: the HTTP status.
        headers: of the final answer, decoded as Latin-1.

    Receivers send `Location` in UTF-8 where it is not ASCII. Bytes that are not UTF-8 become lone surrogates (PEP 383).
    """
    target = header(headers, "location") if status in REDIRECTS else ""
    return target if target.isascii() else target.encode("latin-1").decode("utf-8", "surrogateescape")


def answer_of(status: int, headers: Sequence[tuple[str, str]], body: bytes, note: str = "") -> Answer:
    """Reads an answer.

    Args:
        status: the HTTP status.
        headers: of the final answer.
        body: its beginning as it came, still compressed; it may be cut anywhere.
        note: what was lost of the answer; empty when nothing was.
    """
    codings = header(headers, "content-encoding") if headers else ""
    if codings:
        for coding in reversed(codings.lower().split(",")):
            decode = _DECODERS.get(coding.strip())
            if decode is not None:
                with suppress(zlib.error, brotli.error, ZstdError, EOFError):
                    body = decode(body) or body  # where it is not what its header says, it is shown as it came
    return Answer(status, excerpt(body), note)


def lost(reason: str, timeout: float) -> str:
    """The note about an answer whose body did not come to its end.

    Args:
        reason: why; empty when time ran out.
        timeout: seconds of the task.
    """
    return f"the rest of the answer was lost: {reason or f'it did not come within {timeout:g} s'}"


def judge(status: int, headers: Sequence[tuple[str, str]], answer: Answer) -> None:
    """Raises `Failure` unless a status means that the receiver took the delivery: 2xx, or 304."""
    if 200 <= status < 300 or status == 304:
        return
    if status in REDIRECTS:
        raise Failure("redirect", f"the receiver answered {status}, a redirect without a target", answer)
    message = f"the receiver answered {status}" + (f"; {answer.note}" if answer.note else "")
    raise Failure("status", message, answer, header(headers, "retry-after"))


def _gzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(body, _DECODE_LIMIT_BYTES)  # 47: gzip or zlib, whichever it is


def _deflate(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, _DECODE_LIMIT_BYTES)
    except zlib.error:  # some receivers send the bare stream, without zlib's head
        return zlib.decompressobj(wbits=-15).decompress(body, _DECODE_LIMIT_BYTES)


def _brotli(body: bytes) -> bytes:
    return bytes(brotli.Decompressor().process(body, output_buffer_limit=_DECODE_LIMIT_BYTES))


def _zstd(body: bytes) -> bytes:
    return ZstdDecompressor().decompress(body, _DECODE_LIMIT_BYTES)


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
