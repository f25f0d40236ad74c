"""Connects a command to its Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtask.config import Config

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_SECONDS = 10.0


def connected(config: Config) -> Redis:
    """A client of the Redis in the settings, which has answered. Raises `QTaskError` if it does not answer."""
    from qtask.run.embedded import reachable_url
    from qtask.store.connect import connect, require

    url = reachable_url(config)
    redis = connect(url, timeout=TIMEOUT_SECONDS)
    require(redis, url)
    return redis
