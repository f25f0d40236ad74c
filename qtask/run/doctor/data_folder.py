"""The data folder of `qtask up`, and the disk that holds the data of Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from redis.exceptions import ResponseError

from qtask.config import Config
from qtask.run.doctor.finding import Examined, Finding
from qtask.run.embedded import ADDRESS_FILE, embedded_url

DISK_SHARE, DISK_MIB = 0.05, 200  # free on the disk of the data; below both it is nearly full


def data_folder(config: Config) -> Iterator[Finding]:
    """Whether `qtask up` runs on the data folder; no finding if the settings name a Redis."""
    if config.redis_url:
        return
    folder = Path(config.data_dir)
    where = f"{folder}" if folder.is_absolute() else f"{folder} in {Path.cwd()}"
    elsewhere = "name the folder of the `qtask up` that you mean with --data-dir, or run this where it runs"
    try:
        inside = sorted(entry.name for entry in folder.iterdir())
        (folder / ADDRESS_FILE).read_bytes()
    except NotADirectoryError:
        yield Finding("wrong", f"the data folder {where} is not a folder", elsewhere)
    except FileNotFoundError:
        if not folder.is_dir():
            yield Finding("note", f"there is no data folder {where}: no `qtask up` has run on it", elsewhere)
        elif inside and "appendonlydir" not in inside:
            yield Finding("wrong", f"{where} is not the data folder of a QTask", elsewhere)
        else:
            yield Finding("note", f"no `qtask up` has started its Redis on the data folder {where}", elsewhere)
    except PermissionError:
        yield Finding("wrong", f"this user may not read the data folder {where}", _run_as(folder))
    else:
        if not os.access(folder, os.W_OK):
            yield Finding("wrong", f"this user may not write to the data folder {where}", _run_as(folder))
        if not embedded_url(folder):
            yield Finding("note", f"the `qtask up` of the data folder {where} has ended", f"start it; or {elsewhere}")
        else:
            yield Finding("fine", f"a `qtask up` runs on the data folder {where}")
        yield disk_space(folder)


def _run_as(folder: Path) -> str:
    try:
        owner = folder.owner()
    except (KeyError, OSError):  # a user without a name
        owner = "its owner"
    return f"run this as {owner}, or choose another folder with --data-dir"


def disk_space(folder: Path) -> Finding:
    """How much space is left on the disk of a folder."""
    disk = os.statvfs(folder)
    free, share = disk.f_bavail * disk.f_frsize // 1_048_576, disk.f_bavail / max(1, disk.f_blocks)
    words = f"the disk of {folder} has {free} MiB left ({share:.0%})"
    advice = "free some space: when the disk is full, no task is accepted and no outcome is kept"
    if not disk.f_bavail:
        return Finding("wrong", f"the disk of {folder} is full", advice)
    if (share < DISK_SHARE and free < DISK_MIB * 10) or (free < DISK_MIB and share < 0.5):
        return Finding("wrong", f"{words}: it is nearly full", advice)
    return Finding("fine", words)


def redis_disk(here: Examined) -> list[Finding]:
    """The disk of Redis, if it runs on this host."""
    kwargs = here.redis.connection_pool.connection_kwargs
    if "path" not in kwargs and kwargs.get("host") not in ("127.0.0.1", "::1", "localhost"):
        return [Finding("note", "Redis runs on another host, whose disk was not checked")]
    try:
        return [disk_space(Path(str(here.redis.config_get("dir")["dir"])))]
    except (ResponseError, KeyError, OSError):
        return [Finding("note", "the disk of Redis was not checked: its folder is not known, or does not exist here")]
