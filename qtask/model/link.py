"""Parses `address.link`, with one function for each kind of link. Pure: nothing is resolved or opened here."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import idna

from qtask.model.errors import Refused
from qtask.model.mask import MASKED, Mask

FIELD = "address.link"
MAX_LENGTH = 8_192  # characters; receivers refuse longer URLs themselves
MAX_HOST_LENGTH = 253  # characters; DNS allows no longer names

_NAME = r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"
_HOST = re.compile(_NAME, re.ASCII)
_PLAIN_URL = re.compile(rf"([a-z]+)://({_NAME})(?::([0-9]{{1,5}}))?(?:[/?][!-~]*)?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
_UNIX_URL = "http://unix:/"
_BRACKETED = re.compile(r"\[[^]]*\](?::[0-9]*)?", re.ASCII)
_AUTHORITY = re.compile(r"[a-z]+://([^/?#]*)")
# The common forms: no capitals, no user, no dot at the end, and a port that is not the default one.
_PLAIN_ORIGIN = re.compile(r"[a-z]+://[a-z0-9._-]*[a-z0-9_-](?::(?!80\b|443\b|0)[0-9]{1,5})?(?=[/?#]|$)", re.ASCII)
_PLAIN_SOCKET = re.compile(r"[a-z0-9._-]*[a-z0-9_-]:[1-9][0-9]{0,4}", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PLACE = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[^\s:/?#@\[\]]{1,253})(?::[0-9]{1,5})?")
_UNPRINTABLE = re.compile(r"[^!-~]|%")
_UNSAFE = re.compile(r"[\x00-\x20\x7f]")
_ENCODE = "percent-encode special characters in the user and the password"
_MASK = Mask()


@dataclass(frozen=True, slots=True)
class SocketLink:
    """The target of a socket delivery: `host` and `port`, or the `path` of a unix socket."""

    host: str
    port: int
    path: str = ""


def check_http(link: str) -> str:
    """Returns an http or https URL unchanged. Raises `Refused` if it is not one.

    `http://unix:/run/app.sock:/path` is nginx's notation for the URL `http://localhost/path` of a receiver on a unix
    socket.
    """
    check_length(link)
    if link.startswith(_UNIX_URL):
        path, url = split_unix(link)
        _check_unix_path(path, link)
        check_http(url)
    else:
        check_url(link)
    return link


def check_url(link: str, schemes: tuple[str, str] = ("http", "https")) -> None:
    """Checks a URL of any length. Raises `Refused` if it is not one.

    Args:
        link: the URL; its scheme may be in capitals (RFC 3986, section 3.1).
        schemes: the one without TLS and the one with it.
    """
    match = _PLAIN_URL.fullmatch(link)
    if match and match[1] in schemes and len(match[2]) <= MAX_HOST_LENGTH:
        if match[3]:
            _check_port(match[3], link)
        return
    plain, secure = schemes
    if not link[: len(secure) + 3].lower().startswith((f"{plain}://", f"{secure}://")):
        words = f"a link that begins with {plain}:// or {secure}:// is needed, got {shown(link)}"
        raise Refused("invalid_value", FIELD, words)
    if _UNSAFE.search(link):
        raise Refused(
            "invalid_value", FIELD, "a link must not contain blanks or control characters; percent-encode them"
        )
    try:
        parts = urlsplit(link)
        host, port = parts.hostname, parts.port
    except ValueError:  # its message may contain a password that is not percent-encoded
        hint = _ENCODE if "@" in link else f"{plain}://example.org:8080/path is one"
        raise Refused("invalid_value", FIELD, f"{shown(link)} is not a URL; {hint}") from None
    if not host:
        raise Refused("invalid_value", FIELD, f"{shown(link)} names no host; {plain}://example.org/path does")
    if "[" in parts.netloc:
        if not _BRACKETED.fullmatch(parts.netloc.rpartition("@")[2]):
            raise Refused("invalid_value", FIELD, f"only a port may follow […], got {shown(link)}")
        _check_ipv6(host, link)
    else:
        _host_name(host, link)
    if port is not None:
        _check_port(str(port), link)


def place_of_url(link: str) -> str:
    """Host and port of a URL, or `unix:` and the path of its unix socket, for logs; `unknown` if it has neither.

    Args:
        link: may be invalid in any way.
    """
    if link.startswith(_UNIX_URL):
        return f"unix:{split_unix(link)[0]}"[:MAX_HOST_LENGTH]
    match = _AUTHORITY.match(link)
    return place_of_socket(match[1].rpartition("@")[2]) if match else "unknown"


def origin_of_url(link: str) -> str:
    """Scheme, host and port of a URL (RFC 6454), without the default port; for a unix socket its URL without the path.

    Args:
        link: as `check_url` accepts it.
    """
    match = _PLAIN_ORIGIN.match(link)
    if match:
        return match[0]
    if link.startswith(_UNIX_URL):
        return f"{_UNIX_URL}{path_in_name(split_unix(link)[0])[1:]}"
    parts = urlsplit(link)
    port = "" if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{parts.port}"
    return f"{parts.scheme}://{host_in_name(parts.hostname or '')}{port}"


def name_of_socket(link: str, scheme: str) -> str:
    """The name of the flow of a socket's address: `tcp://HOST:PORT`, or `unix:/path`; one for all its spellings.

    Args:
        link: as `parse_socket` accepts it.
        scheme: `tcp` or `udp`.
    """
    if _PLAIN_SOCKET.fullmatch(link):
        return f"{scheme}://{link}"
    target = parse_socket(link)
    return (
        f"unix:{path_in_name(target.path)}" if target.path else f"{scheme}://{host_in_name(target.host)}:{target.port}"
    )


def host_in_name(host: str) -> str:
    """A host in the name of a flow: an IPv6 address in its shortest form, in brackets; else the name in ASCII."""
    if ":" in host:
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    return _host_name(host, host).lower().removesuffix(".")


def path_in_name(path: str) -> str:
    """The path of a unix socket in the name of a flow, which is printable ASCII."""
    return quote(path) if _UNPRINTABLE.search(path) else path


def place_of_socket(link: str) -> str:
    """`HOST:PORT` or `unix:/path`, for logs; `unknown` for a link that is neither, which may hold credentials."""
    if link.startswith("unix:/"):
        return link[:MAX_HOST_LENGTH]
    return link if _PLACE.fullmatch(link) else "unknown"


def split_unix(link: str) -> tuple[str, str]:
    """Splits `http://unix:/run/app.sock:/path` into the socket's path and the URL; for other URLs the path is empty."""
    if not link.startswith(_UNIX_URL):
        return "", link
    path, _, target = link[len(_UNIX_URL) - 1 :].partition(":")
    return path, f"http://localhost{target or '/'}"


def http_place(link: str) -> str:
    """The target of the connections for an http or https URL: the same text for all URLs of one host and port.

    Args:
        link: as `check_http` accepts it.
    """
    path, url = split_unix(link)
    if path:
        return path
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def parse_socket(link: str) -> SocketLink:
    """Parses `HOST:PORT`, `[IPv6]:PORT` or `unix:/path`. Raises `Refused` if it is none of them."""
    check_length(link)
    if link.startswith("unix:"):
        _check_unix_path(link[5:], link)
        return SocketLink("", 0, link[5:])
    host, colon, port = link.rpartition(":")
    if not colon:
        raise Refused("invalid_value", FIELD, f"HOST:PORT is needed, such as 127.0.0.1:5000, got {shown(link)}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        _check_ipv6(host, link)
    else:
        host = _host_name(host, link)
    return SocketLink(host, _check_port(port, link))


def check_length(link: str) -> None:
    """Raises `Refused` for a link that is too long."""
    if len(link) > MAX_LENGTH:
        raise Refused("too_large", FIELD, f"a link has at most {MAX_LENGTH} characters, got {len(link)}")


def _check_unix_path(path: str, link: str) -> None:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
        raise Refused(
            "invalid_value",
            FIELD,
            f"unix: must be followed by an absolute path of at most 107 bytes, got {shown(link)}",
        )


def _host_name(host: str, link: str) -> str:
    """Returns a host name in ASCII, as DNS knows it."""
    try:
        name = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except UnicodeError as error:
        raise Refused("invalid_value", FIELD, f"{shown(link)} has an invalid host name: {error}") from None
    if not _HOST.fullmatch(name) or len(name) > MAX_HOST_LENGTH:
        raise Refused(
            "invalid_value", FIELD, f"a host name, an address, or an IPv6 address in […] is needed, got {shown(link)}"
        )
    return name


def _check_ipv6(host: str, link: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise Refused(
            "invalid_value", FIELD, f"[…] must contain an IPv6 address, such as [::1]:5000, got {shown(link)}"
        ) from None


def _check_port(port: str, link: str) -> int:
    number = int(port) if _PORT.fullmatch(port) else 0
    if not 0 < number < 65_536:
        raise Refused("invalid_value", FIELD, f"a port is a number from 1 to 65535, got {shown(link)}")
    return number


def shown(link: str) -> str:
    """A link for an error message, without credentials. In an invalid link they may be anywhere before the @."""
    before, at, rest = link.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    shown = _MASK.text(f"{scheme}{slashes}{MASKED}@{rest}" if slashes else f"{MASKED}@{rest}") if at else link
    shown = _MASK.text(shown)
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")
