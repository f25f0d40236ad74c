"""The host names that the HTTP API serves: the defence against DNS rebinding. Pure.

A web page of `evil.example` may have its own name resolve to 127.0.0.1. Its requests to the gateway then count as
requests to the page's own origin, so the browser sends no preflight and shows the page the answers. Only the name in
`Host` reveals them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from qtask.model.errors import ConfigError, Refused

_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)
# uri-host and port of RFC 3986; a userinfo is an error in http (RFC 9110, section 4.2.4).
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?", re.ASCII)


class Hosts:
    """Checks the authority of each request.

    Args:
        bound: the addresses on which the gateway listens.
        host: the setting of this name; it is an allowed name, too.
        allowed: the setting `allowed_hosts`: names separated by commas, `*.NAME` for all names below one, `*` for all.

    On loopback addresses only loopback names (localhost, names below it, 127.0.0.0/8, ::1) and allowed names are
    served. On other addresses all names are served if `allowed` is empty, otherwise loopback names, allowed names and
    IP addresses, which rebinding cannot put into `Host`. Raises `ConfigError` when `allowed` is not such a list.
    """

    def __init__(self, bound: Iterable[str], host: str, allowed: str) -> None:
        entries = {entry.strip().lower() for entry in allowed.split(",")} - {""}
        for entry in entries - {"*"}:
            if not _is_address(entry) and not _NAME.fullmatch(entry.removeprefix("*.")):
                raise ConfigError(
                    "allowed_hosts must be host names without ports, separated by commas, such as "
                    f"qtask.example.org,*.internal, got {entry!r}"
                )
        self._on_loopback = all(map(_is_loopback, bound))
        self._all = "*" in entries or not (entries or self._on_loopback)
        self._names = {entry for entry in entries if not entry.startswith("*")} | {host.lower()}
        self._suffixes = tuple(entry[1:] for entry in entries if entry.startswith("*."))

    def check(self, authority: str) -> None:
        """Raises `Refused` for a request to another name: code `wrong_host`, or `wrong_protocol` for an invalid name.

        Args:
            authority: host and optional port, of the request's target or of `Host`. An empty one is served, because
                browsers always send one.
        """
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            raise Refused("wrong_protocol", "Host", f"HOST or HOST:PORT is needed, got {authority[:100]!r}")
        name = match[1].lower().removesuffix(".").strip("[]")
        if self._all or not name or name == "localhost" or name.endswith(".localhost"):
            return
        if name in self._names or name.endswith(self._suffixes) or _is_loopback(name):
            return
        if not self._on_loopback and _is_address(name):
            return
        raise Refused(
            "wrong_host",
            "Host",
            f"this gateway does not serve the name {name[:100]!r}; use localhost, or add the name to the setting "
            "allowed_hosts (QTASK_ALLOWED_HOSTS) of the gateway",
        )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str) -> bool:
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
