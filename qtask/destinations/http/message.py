"""The HTTP message of both transports: the request that a task becomes, and what the answer to it means.

Both transports send the request as it stands, so receivers cannot tell them apart. The status decides as soon as all
headers of the answer have arrived: a receiver that answers 200 has accepted the request, even if the rest of its answer
is lost. A note says what was lost of the body.
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
from msgspec import UNSET, Struct
from msgspec.structs import replace

from qtask.destinations.http import FormValue, HttpData, Scalar, http_data
from qtask.destinations.http.browsers import random_browser
from qtask.destinations.urls import SAFE, ascii_host
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
# They are about the connection and not the message, and the transport decides about the connection.
_CONNECTION_HEADERS = frozenset({"connection", "keep-alive", "proxy-connection", "proxy-authorization"})
_BODY_HEADERS = frozenset({"content-type", "content-encoding", "content-language"})
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization"})
_CLEAN_URL = re.compile(  # possessive, which takes less than half the time; there is only one way to match
    r"https?://[a-zA-Z0-9.-]+(?::[0-9]+)?/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]++|%[0-9A-F]{2})*+", re.ASCII
)

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# For a connection that was used before: the receiver may have closed it, or read the request and then failed.
BROKEN_KEPT_CONNECTION = "the kept connection broke before any answer; whether the request was read is not known"

# Then it is not known what the receiver did (RFC 9112, section 8).
BROKEN_HEADERS = "the connection broke within the headers of the answer"
HEADERS_LIMIT_BYTES = 307_200  # for all headers of an answer in total; the limit of libcurl, applied by both transports

# A small body may decompress to a very large one, so decoding stops here.
_DECODE_LIMIT_BYTES = ANSWER_LIMIT_BYTES

# --- the request --------------------------------------------------------------------------------------------------


class HttpRequest(Struct, frozen=True):
    """One request, complete, as it is sent.

    Attributes:
        method: as sent.
        url: absolute, percent-encoded, ASCII, without fragment or user.
        headers: in the order in which they are sent; the transport adds Host, Content-Length and Connection.
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
        task: what was submitted.
        task_id: as it is stored; the client's form of it is sent as `QTask-Id`. It is the same in every attempt, so a
            receiver can recognize duplicates.
        attempt: sent as `QTask-Attempt`, from 1.
        due: Unix seconds, sent as `QTask-Due` in ISO 8601.

    A retry gets a new connection: the kept connections may all be dead, and a task must not use up its attempts on
    them.

    Raises `Refused` if the data is not that of an `http` task.
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
    """The headers of the task, completed with the defaults; and the names that the task gives, in lower case."""
    if not data.headers:
        return list(DEFAULT_HEADERS), ()
    if isinstance(data.headers, dict):
        headers = [pair for pair in data.headers.items() if pair[0].lower() not in _CONNECTION_HEADERS]
    else:
        headers = random_browser()
    names = {name.lower() for name, _ in headers}
    return headers + [pair for pair in DEFAULT_HEADERS if pair[0].lower() not in names], names


def follow(request: HttpRequest, status: int, location: str) -> HttpRequest:
    """The request after a redirect, by the rules of RFC 9110, section 15.4, and of browsers.

    303 becomes a GET, and so do 301 and 302 after a POST; the body and its headers are dropped. 307 and 308 repeat the
    request. Credentials are not sent to another origin. Raises `Failure` if `location` is not usable.
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
    """Scheme, host and port, which are equal for two URLs of the same origin (RFC 6454, section 4)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def host_of(request: HttpRequest) -> str:
    """The host of a request, and its port if the URL has one, for messages."""
    return request.url.split("/", 3)[2]


def timed_out(request: HttpRequest) -> Failure:
    """The failure of a request that was not answered in time."""
    return Failure("timeout", f"{host_of(request)}: no complete answer within {request.timeout:g} s")


def _url(link: str) -> tuple[str, str]:
    """Returns the URL as it is sent, and the Authorization header for its user and password."""
    if _CLEAN_URL.fullmatch(link):
        return link, ""
    parts = urlsplit(link)
    host = ascii_host(parts.hostname or "")
    if ":" in host:
        address, percent, zone = host.partition("%")
        host = f"[{address}{percent and '%25'}{zone.removeprefix('25')}]"  # RFC 6874; curl takes a bare % as well
    authorization = ""
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(user.encode()).decode("ascii")
    place = host if parts.port is None else f"{host}:{parts.port}"
    # Lone surrogates are bytes of a redirect that are not UTF-8; they are sent as these bytes.
    path = quote(_requote(parts.path or "/"), SAFE, errors="surrogateescape")
    query = quote(_requote(parts.query), SAFE, errors="surrogateescape")
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
    """The value of a header by its lower-case name: the last of several, or an empty text if there is none."""
    found = ""
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def redirect_target(status: int, headers: Sequence[tuple[str, str]]) -> str:
    """The target of a redirect; empty if the answer is not one.

    Args:
        status: the HTTP status.
        headers: of the final answer, decoded as Latin-1.

    Receivers send a `Location` that is not ASCII in UTF-8. Bytes that are not UTF-8 become lone surrogates (PEP 383).
    """
    target = header(headers, "location") if status in REDIRECTS else ""
    return target if target.isascii() else target.encode("latin-1").decode("utf-8", "surrogateescape")


def answer_of(status: int, headers: Sequence[tuple[str, str]], body: bytes, note: str = "") -> Answer:
    """The answer, decompressed and shortened.

    Args:
        status: the HTTP status.
        headers: of the final answer.
        body: its beginning as it was received, still compressed; it may be cut anywhere.
        note: what was lost of the answer; empty if nothing was.
    """
    codings = header(headers, "content-encoding") if headers else ""
    if codings:
        for coding in reversed(codings.lower().split(",")):
            decode = _DECODERS.get(coding.strip())
            if decode is not None:
                with suppress(zlib.error, brotli.error, ZstdError, EOFError):
                    body = decode(body) or body  # if the header is wrong, the body is kept as it was received
    return Answer(status, excerpt(body), note)


def lost(reason: str, timeout: float) -> str:
    """The note about an answer whose body is incomplete.

    Args:
        reason: why; empty for a timeout.
        timeout: seconds of the task.
    """
    return f"the rest of the answer was lost: {reason or f'it did not come within {timeout:g} s'}"


def judge(status: int, headers: Sequence[tuple[str, str]], answer: Answer) -> None:
    """Raises `Failure` unless the status means that the receiver accepted the delivery: 2xx or 304."""
    if 200 <= status < 300 or status == 304:
        return
    if status in REDIRECTS:
        raise Failure("redirect", f"the receiver answered {status}, a redirect without a target", answer)
    message = f"the receiver answered {status}" + (f"; {answer.note}" if answer.note else "")
    raise Failure("status", message, answer, header(headers, "retry-after"))


def _gzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(body, _DECODE_LIMIT_BYTES)  # 47: gzip or zlib


def _deflate(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, _DECODE_LIMIT_BYTES)
    except zlib.error:  # some receivers send the raw stream without the zlib header
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
