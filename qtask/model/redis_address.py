"""Parses the address of a Redis, and shows it without passwords. Pure.

QTask parses it itself, because the errors of the standard library and of redis-py quote parts of an invalid address,
and the usual reason why an address is invalid is a password with special characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from qtask.model.errors import ConfigError
from qtask.model.mask import MASKED

SENTINEL_SCHEME = "redis+sentinel"
SCHEMES = ("redis", "rediss", "unix", SENTINEL_SCHEME)

_SENTINEL_PORT = 26_379
_LEAST_SECRET = 4  # characters; replacing a shorter one would garble unrelated words
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20})://")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]*))(?::([0-9]{1,5}))?")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BLANK = re.compile(r"[\x00-\x20\x7f-\xa0]")
_ENCODE = "percent-encode the user and the password (/ as %2F, ? as %3F, # as %23, @ as %40, % as %25)"


class Address(NamedTuple):
    """A parsed address.

    Attributes:
        scheme: one of `SCHEMES`.
        user, password: decoded; empty when there is none.
        hosts: host and port of each server; the port is 0 if none is given. Empty for `unix://`.
        path: the part after the hosts: `/0`, the path of a unix socket, or `/SERVICE/0` for sentinels.
        query: name and value of each option, decoded.
    """

    scheme: str
    user: str
    password: str
    hosts: list[tuple[str, int]]
    path: str
    query: list[tuple[str, str]]

    @property
    def plain(self) -> str:
        """The address without user, password and options."""
        hosts = ",".join(f"{_bracketed(host)}:{port}" if port else _bracketed(host) for host, port in self.hosts)
        return f"{self.scheme}://{hosts}{self.path}"

    @property
    def url(self) -> str:
        """The address for redis-py, with everything percent-encoded that it could misread."""
        credentials = ""
        if self.user or self.password:
            credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@"
        options = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in self.query)
        scheme, _, rest = self.plain.partition("://")
        return f"{scheme}://{credentials}{rest}{'?' if options else ''}{options}"


class SentinelAddress(NamedTuple):
    """The parts of a `redis+sentinel://` address.

    Attributes:
        sentinels: host and port of each.
        service: name of the master.
        database: its number.
        options: of the connections to the sentinels, such as `password`.
    """

    sentinels: list[tuple[str, int]]
    service: str
    database: int
    options: dict[str, str]


def parse(url: str) -> Address:
    """Parses an address. Raises `ConfigError` with a reason that contains no part of a password."""
    try:
        return _parse(url)
    except ValueError as error:
        raise not_an_address(url, str(error)) from None


def parse_sentinel(url: str) -> SentinelAddress:
    """Parses `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],…/SERVICE[/DB][?sentinel_password=…]`.

    User and password are those of Redis; the sentinels have theirs after the question mark. Raises `ConfigError`.
    """
    example = "redis+sentinel://HOST:26379,HOST:26379/SERVICE/0"
    address = parse(url)
    if not all(host for host, _ in address.hosts):
        raise not_an_address(url, f"it names no sentinels; {example} does")
    service, _, database = address.path.strip("/").partition("/")
    if not service:
        raise not_an_address(url, f"it does not name the service; {example} does")
    for name, _ in address.query:
        if name not in ("sentinel_username", "sentinel_password"):
            raise not_an_address(url, f"the option {name[:40]!r} is unknown; sentinel_password is known")
    options = {name.removeprefix("sentinel_"): value for name, value in address.query}
    sentinels = [(host, port or _SENTINEL_PORT) for host, port in address.hosts]
    return SentinelAddress(sentinels, unquote(service), int(database or 0), options)


def not_an_address(url: str, reason: str) -> ConfigError:
    """The error for an address that cannot be used. `reason` must not quote the address."""
    return ConfigError(f"{without_password(url)!r} is not the address of a Redis: {reason}")


def without_password(url: str) -> str:
    """An address without credentials. An invalid one may have a password anywhere, so only its scheme is shown."""
    try:
        return _parse(url).plain
    except ValueError:
        scheme = _SCHEME.match(url)
        return f"{scheme[0]}…" if scheme else "…"


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """A text, such as an error of redis-py, without the secrets of an address."""
    for secret in secrets:
        text = text.replace(secret, MASKED)
    return text


def secrets_of(url: str) -> list[str]:
    """The secrets in an address, as written and decoded, the longest first."""
    try:
        address = _parse(url)
    except ValueError:
        found = [url.partition("://")[2].rpartition("@")[0]]
    else:
        found = [address.password, *(value for name, value in address.query if name.endswith("password"))]
    forms = {form for secret in found for form in (secret, quote(secret, safe=""), unquote(secret))}
    return sorted((form for form in forms if len(form) >= _LEAST_SECRET), key=len, reverse=True)


def _parse(url: str) -> Address:
    """As `parse`, but raises ValueError with the reason."""
    scheme = _SCHEME.match(url)
    if scheme is None or scheme[1] not in SCHEMES:
        raise ValueError(f"it must begin with {', '.join(f'{known}://' for known in SCHEMES)}")
    if _BLANK.search(url):
        raise ValueError("it contains blanks, line breaks or control characters; remove or percent-encode them")
    if "#" in url:
        raise ValueError(f"it contains a #; {_ENCODE}")
    rest = url[scheme.end() :]
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    credentials, _, hosts = authority.rpartition("@")
    # The path of a unix socket may contain an @. Elsewhere it belongs before the host, and the password has a / or ?.
    if "@" in query or ("@" in path and (scheme[1] != "unix" or authority)):
        raise ValueError(f"there is an @ after the host; {_ENCODE}")
    if _ESCAPE.search(rest):
        raise ValueError(f"it contains a % that is not followed by two hexadecimal digits; {_ENCODE}")
    user, _, password = credentials.partition(":")
    options = parse_qsl(query, keep_blank_values=True)
    if scheme[1] == "unix":
        if hosts or not path.strip("/"):
            raise ValueError("unix:// is followed by an absolute path, as in unix:///run/redis.sock")
        return Address(scheme[1], unquote(user), unquote(password), [], path, options)
    database = path.strip("/")
    if scheme[1] == SENTINEL_SCHEME:
        database = database.partition("/")[2]
    if database and not database.isdecimal():
        raise ValueError(f"the database must be a number, as in redis://HOST:6379/0; {_ENCODE}")
    names = hosts.split(",") if scheme[1] == SENTINEL_SCHEME else [hosts]
    return Address(scheme[1], unquote(user), unquote(password), [_host(name) for name in names], path, options)


def _host(text: str) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or int(match[3] or 1) not in range(1, 65_536):
        raise ValueError(f"host and port must be HOST:PORT, with a port from 1 to 65535; {_ENCODE}")
    return unquote(match[1] or match[2]), int(match[3] or 0)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")
