"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from redis import Redis

from tests.redis_server import RedisServer

# How long an example takes depends on what else the machine does, and is nothing to fail a test for.
settings.register_profile("qtask", deadline=None, max_examples=100)
settings.load_profile("qtask")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis for the whole run."""
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of an empty database."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()
