"""The compose files, checked without docker; `make compose-test` runs them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qtask.run.embedded import OPTIONS_FILE
from tests.support.documents import ROOT


def redis_service(file: str) -> dict[str, Any]:
    """The Redis service of a compose file."""
    service: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]["redis"]
    return service


def redis_command(file: str) -> list[str]:
    """The command of the Redis service of a compose file."""
    command: list[str] = redis_service(file)["command"]
    return command


def options(command: list[str]) -> dict[str, str]:
    """The options after the program and its configuration file, by name."""
    given = command[2:]
    assert len(given) % 2 == 0 and all(name.startswith("--") for name in given[::2]), given
    return dict(zip(given[::2], given[1::2], strict=True))


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.multi-host.yml"])
def test_redis_runs_with_the_shipped_persistence_options(file: str) -> None:
    assert (
        f"./{OPTIONS_FILE.relative_to(ROOT)}:/etc/qtask-redis.conf:ro" in redis_service("docker-compose.yml")["volumes"]
    )
    command = redis_command(file)
    assert command[:2] == ["redis-server", "/etc/qtask-redis.conf"]
    assert not any(name.startswith("--append") or name == "--save" for name in options(command))


def test_multi_host_redis_has_the_same_options_and_a_password() -> None:
    """Compose replaces a command as a whole, so an option that is not repeated (such as maxmemory) is lost."""
    alone, shared = redis_command("docker-compose.yml"), redis_command("docker-compose.multi-host.yml")
    assert shared[:2] == alone[:2]
    assert "--maxmemory" in options(alone)
    assert options(shared) == {**options(alone), "--requirepass": "${QTASK_REDIS_PASSWORD}"}
