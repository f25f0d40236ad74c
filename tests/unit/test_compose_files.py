"""The compose files as they are written, without docker; `make compose-test` runs them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from qtask.run.embedded import OPTIONS_FILE
from tests.support.documents import ROOT


def redis_service(file: str) -> dict[str, Any]:
    """How Redis is run, by one compose file."""
    service: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())["services"]["redis"]
    return service


def redis_command(file: str) -> list[str]:
    """What starts Redis, by one compose file."""
    command: list[str] = redis_service(file)["command"]
    return command


def options(command: list[str]) -> dict[str, str]:
    """The options behind the program and its file, by their names."""
    given = command[2:]
    assert len(given) % 2 == 0 and all(name.startswith("--") for name in given[::2]), given
    return dict(zip(given[::2], given[1::2], strict=True))


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.multi-host.yml"])
def test_redis_keeps_tasks_as_the_shipped_file_says(file: str) -> None:
    assert (
        f"./{OPTIONS_FILE.relative_to(ROOT)}:/etc/qtask-redis.conf:ro" in redis_service("docker-compose.yml")["volumes"]
    )
    command = redis_command(file)
    assert command[:2] == ["redis-server", "/etc/qtask-redis.conf"]
    assert not any(name.startswith("--append") or name == "--save" for name in options(command))


def test_a_redis_of_many_hosts_has_every_option_of_the_one_of_one_host_and_a_password() -> None:
    """Compose replaces a command as a whole: what is not said again, such as the bound on its memory, is gone."""
    alone, shared = redis_command("docker-compose.yml"), redis_command("docker-compose.multi-host.yml")
    assert shared[:2] == alone[:2]
    assert "--maxmemory" in options(alone)
    assert options(shared) == {**options(alone), "--requirepass": "${QTASK_REDIS_PASSWORD}"}
