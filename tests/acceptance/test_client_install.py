"""The package without its extra `server`: small, a complete client, and clear errors about what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtask.cli.main import cli
from tests.support.documents import ROOT
from tests.support.installation import Installation
from tests.support.redis_server import free_port

# Building and installing take long on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MOST_BYTES = 15_000_000
MISSING = "is not installed, which the service needs and the client alone does not: run pip install 'qtask[server]'"


@dataclass(frozen=True)
class ClientAlone:
    """A virtual environment with only what `pip install qtask` installs."""

    folder: Path
    bytes: int

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs code in it."""
        return self._run("python", "-c", code, **environment)

    def qtask(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it."""
        return self._run("qtask", *arguments, **environment)

    def _run(self, program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QTASK_", "PYTHON"))}
        command = [str(self.folder / "bin" / program), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=kept | environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="module")
def alone(folder: Path) -> ClientAlone:
    source = folder / "source"  # a build leaves files next to its source
    shutil.copytree(ROOT / "qtask", source / "qtask", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE", *(path.name for path in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / file, source)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet"]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ClientAlone(environment, size(environment))


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="module")
def installation(folder: Path) -> Iterator[Installation]:
    with Installation(folder) as running:
        yield running


def test_client_installation_is_small(alone: ClientAlone) -> None:
    assert alone.bytes < MOST_BYTES


def test_client_requirements_are_also_server_requirements() -> None:
    def wanted(file: str) -> set[str]:
        return {line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")}

    assert wanted("requirements-client.txt") < wanted("requirements.txt")


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
@pytest.mark.parametrize("way", ["socket", "http", "redis"])
def test_every_transport_of_the_client_works(
    alone: ClientAlone, installation: Installation, kind: str, way: str
) -> None:
    http = f"http://127.0.0.1:{installation.environment['QTASK_HTTP_PORT']}"
    url = {"socket": installation.url, "http": http, "redis": f"unix://{installation.data_dir}/redis.sock"}[way]
    plain = "with qtask.Client() as client: print(client.http('http://127.0.0.1:9/', delay=3600).id)"
    of_asyncio = (
        "import asyncio\n"
        "async def main():\n"
        "    async with qtask.AsyncClient() as client:\n"
        "        print((await client.http('http://127.0.0.1:9/', delay=3600)).id)\n"
        "asyncio.run(main())"
    )
    done = alone.python(f"import qtask\n{plain if kind == 'Client' else of_asyncio}", QTASK_URL=url)
    assert (done.returncode, done.stderr) == (0, "")
    shown = alone.qtask("show", done.stdout.strip(), "--json", **installation.environment)
    assert json.loads(shown.stdout)["state"] == "scheduled"


def test_each_command_works_or_names_the_missing_extra(alone: ClientAlone, installation: Installation) -> None:
    def ran(*arguments: str) -> str:
        done = alone.qtask(*arguments, **installation.environment)
        assert (done.returncode, done.stderr) == (0, ""), arguments
        return done.stdout

    ids = [ran("send", "--http", "http://127.0.0.1:9/", "--in", "1h").split()[0] for _ in range(2)]
    assert ids[0] in ran("list", "--state", "all", "--json")
    assert json.loads(ran("show", ids[0], "--json"))["id"] == ids[0]
    assert json.loads(ran("stats", "--json"))["tasks"]["scheduled"] >= 2
    assert ran("retry", "--all") == ran("remove", "--all") == ""
    assert ran("cancel", *ids).count("cancelled") == 2
    assert ran("health", "gateway").startswith("ok")
    assert MISSING in ran("doctor")
    assert json.loads(ran("audit", "--json"))["balances"]
    assert json.loads(ran("flow", "set", "k", "--parallel", "2", "--json"))["parallel"] == 2
    assert json.loads(ran("flow", "list", "--json"))["key"] == "k"
    assert ran("flow", "remove", "k").startswith("k ")
    assert json.loads(ran("queue", "list", "--json"))["name"] == "qtask"
    unknown = alone.qtask("forget", ids[0], **installation.environment)
    assert (unknown.returncode, unknown.stderr.count("no task has the id")) == (1, 1)
    works = {"send", "show", "list", "stats", "retry", "remove", "cancel", "forget", "audit", "health", "doctor"}
    works |= {"flow", "queue"}

    lacking = {
        "up": ["--redis", f"redis://127.0.0.1:{free_port()}/0"],
        "gateway": [],
        "scheduler": [],
        "worker": [],
        "graph": ["-o", "punctual.png"],
        "demo": [],
    }
    assert works | set(lacking) == set(cli.commands)
    tables = [("list", []), ("show", [ids[0]]), ("stats", [])]
    tables += [("flow", ["list"]), ("queue", ["list"])]
    ran("send", "--http", "http://127.0.0.1:9/", "--in", "1h", "--id", ids[0])
    for command, arguments in [*lacking.items(), *tables]:
        done = alone.qtask(command, *arguments, **installation.environment)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), (command, done.stderr)
        assert done.stderr.startswith("qtask: the package ") and MISSING in done.stderr, command


def test_job_function_names_the_missing_extra(alone: ClientAlone) -> None:
    done = alone.python("from qtask import do")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: qtask.do: the package ")
    assert MISSING in done.stderr


def test_missing_module_of_qtask_is_not_reported_as_a_missing_extra(alone: ClientAlone) -> None:
    done = alone.python(
        "import qtask.model.errors, sys; sys.modules['qtask.model.validation'] = None; import qtask; qtask.Client"
    )
    assert done.returncode == 1 and "server" not in done.stderr
