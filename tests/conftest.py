"""Fixtures that every test may use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from redis import Redis

from tests.gateway_process import Gateway
from tests.live import Live
from tests.redis_server import RedisServer

# How long an example takes depends on what else the machine does, and is nothing to fail a test for.
settings.register_profile("qtask", deadline=None, max_examples=100)
settings.load_profile("qtask")

_numbers = count()


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


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of a file."""
    return tmp_path_factory.mktemp(request.path.stem)


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """One Redis and one scheduler for all tests of a file; each test has a queue and workers of its own."""
    with Live(folder) as one:
        one.start("scheduler")
        yield one


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test has."""
    return f"queue-{next(_numbers)}"


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """One for all tests of a file, with the limits that it has by default."""
    with Gateway(redis_server.url, folder) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(params=["socket", "http", "redis"])
def url(request: pytest.FixtureRequest, gateway: Gateway, redis_server: RedisServer, redis: Redis) -> str:
    """Every way of a client, one after the other, on an empty Redis."""
    return {"socket": gateway.url, "http": gateway.http_url, "redis": redis_server.url}[request.param]
