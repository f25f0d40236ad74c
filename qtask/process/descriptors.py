"""Raises the limit of open files, which is 1,024 in a shell, to allow thousands of connections."""

from __future__ import annotations

import logging
import resource
import sys
from dataclasses import replace
from typing import Literal

from qtask.config import Config

OWN_DESCRIPTORS = 48  # of an idle process: logs, Redis, epolls, DNS queries, files opened by libraries

logger = logging.getLogger("qtask")


def allow_all() -> int:
    """Raises the limit of descriptors to the hard limit of this process, and returns it."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def fit(config: Config, setting: Literal["concurrency", "max_connections"]) -> Config:
    """Calls `allow_all`, and returns the settings, with the given one reduced if it needs more descriptors than that.

    Each unit of the setting may use two descriptors: a delivery in flight and a kept connection, or a connection of the
    gateway's socket and one of its HTTP.
    """
    limit = allow_all()
    room, wanted = max(1, (limit - OWN_DESCRIPTORS) // 2), getattr(config, setting)
    if wanted <= room:
        return config
    about = {"setting": setting, "reduced_to": room, "wanted": wanted, "descriptors": limit}
    logger.warning("setting_reduced", extra={**about, "advice": "raise the hard limit of open files (ulimit -Hn)"})
    return replace(config, concurrency=room) if setting == "concurrency" else replace(config, max_connections=room)
