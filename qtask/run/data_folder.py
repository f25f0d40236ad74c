"""The data folder of the embedded Redis: its permissions, and which servers wrote it and can open it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qtask.model.errors import QTaskError
from qtask.run.server_binary import Version

VERSION_FILE = "redis.version"  # product and version of the last server that opened the folder
PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600

_LOG_BYTES = 1_048_576  # a longer log is renamed at the next start
_HEADER_BYTES = 512
_AUX = 0xFA  # marks a named field at the head of an RDB file
_VERSION_FIELDS = {b"valkey-ver": "Valkey", b"redis-ver": "Redis"}


def write_private(path: Path, text: str) -> None:
    """Writes a small file that only this user can read, atomically. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "w") as file:
            file.write(text)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


class Opened(NamedTuple):
    """Paths that other users had rights to: those that are now private, and those that could not be made private."""

    closed: list[str]
    left: list[str]


def make_private(folder: Path, leave: Path) -> Opened:
    """Removes the rights of other users to a folder and everything in it.

    Args:
        folder: created if it does not exist.
        leave: a folder in it that is not changed, because other users may have access on purpose.

    Raises `QTaskError` if others can change something in it and this user cannot prevent that, and OSError.
    """
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    opened = Opened([], [])
    for path in (folder.resolve(), *_inside(folder, leave)):
        state = path.lstat()
        if stat.S_ISLNK(state.st_mode) or not state.st_mode & 0o077:
            continue
        with suppress(PermissionError):  # it belongs to another user
            path.chmod(stat.S_IMODE(state.st_mode) & PRIVATE_FOLDER)
        mode = path.lstat().st_mode  # not every file system keeps permissions
        if mode & 0o002:
            raise QTaskError(f"any user of this host can change {path}; run `chmod go-rwx {path}` as its owner")
        (opened.left if mode & 0o077 else opened.closed).append(str(path))
    return opened


def _inside(folder: Path, leave: Path) -> Iterator[Path]:
    kept = leave.resolve()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if (Path(place) / name).resolve() != kept]
        yield from (Path(place) / name for name in (*folders, *files))


def tidy(folder: Path, log: Path) -> None:
    """Removes unfinished files of a killed server, and renames a long log. The server must not be running.

    An interrupted rewrite of the append-only file leaves a copy that can be as large as the data.
    """
    for pattern in ("temp-*", "appendonlydir/temp-*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_name(log.name + ".1"))


def require_readable(folder: Path, servers: list[Version]) -> None:
    """Raises `QTaskError` if a folder has data that no server can open, or that a server would not find.

    Args:
        folder: the data folder.
        servers: versions of the available servers.
    """
    single = folder / "appendonly.aof"
    if (folder / "appendonlydir").is_dir():
        if single.is_file() and single.stat().st_size:
            raise QTaskError(
                f"{folder} holds two sets of data: {single.name}, written by Redis 6, and appendonlydir, written by "
                "Redis 7 or newer. Move the one that you do not need out of the folder"
            )
    elif not single.exists() and (folder / "dump.rdb").exists():
        raise QTaskError(
            f"{folder} holds a dump.rdb and no append-only file: Redis would start empty. Load the dump into a Redis "
            "with appendonly yes, or move it out of the folder"
        )
    written = writers(folder)
    if not any(readable(folder, server) for server in servers):
        wanted = " and ".join(map(str, written)) or "Redis 7 or newer"
        raise QTaskError(
            f"the data in {folder} was written by {wanted}, which {' and '.join(map(str, servers))} cannot read: put a "
            "server at least as new as that, and of the same kind, on the PATH, or choose another folder with "
            "--data-dir"
        )


def readable(folder: Path, server: Version) -> bool:
    """Whether a server would find all data in a folder."""
    if (folder / "appendonlydir").is_dir() and server.number < (7,):
        return False  # it would look for appendonly.aof, find nothing, and start empty
    return all(server.reads(writer) for writer in writers(folder))


def writers(folder: Path) -> list[Version]:
    """The versions that wrote the data in a folder, as recorded by QTask and in the files themselves."""
    found = [_recorded(folder), *(_header_version(path) for path in _base_files(folder))]
    return list(dict.fromkeys(version for version in found if version is not None))


def _recorded(folder: Path) -> Version | None:
    try:
        product, _, number = (folder / VERSION_FILE).read_text().strip().partition(" ")
    except (OSError, UnicodeDecodeError):
        return None
    return Version.parse(product, number)


def _base_files(folder: Path) -> list[Path]:
    return [*sorted((folder / "appendonlydir").glob("*.base.rdb")), folder / "appendonly.aof"]


def _header_version(path: Path) -> Version | None:
    """The version in the header of an RDB file (or of an append-only file that begins with one).

    The header is `REDIS` or `VALKEY` and a format number, followed by named fields such as the server's version.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError:
        return None
    if not head.startswith((b"REDIS", b"VALKEY")):
        return None
    place = 9  # both headers have this length
    while place + 1 < len(head) and head[place] == _AUX:
        name, place = _short_string(head, place + 1)
        value, place = _short_string(head, place)
        if name in _VERSION_FIELDS:
            return Version.parse(_VERSION_FIELDS[name], value.decode("ascii", "replace"))
    return None


def _short_string(head: bytes, place: int) -> tuple[bytes, int]:
    """The RDB string at an offset, and the offset after it; empty for an integer, which is not needed."""
    kind, size = head[place] >> 6, head[place] & 0x3F
    if kind == 0:
        return head[place + 1 : place + 1 + size], place + 1 + size
    if kind == 3 and size < 3:
        return b"", place + 1 + (1 << size)
    return b"", len(head)
