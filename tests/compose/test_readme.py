"""The section "With Docker" of README.md, run unchanged on a terminal except for the ports."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.deployment import Deployment
from tests.support.command import on_terminal
from tests.support.documents import ROOT, Block, blocks_under, with_ports
from tests.support.receiver import Receiver
from tests.support.waiting import until

BLOCKS = blocks_under(ROOT / "README.md", "### With Docker")
UP, *OTHERS = BLOCKS


class Reader:
    """Runs the commands of the README, with a receiver on this host."""

    def __init__(self, deployment: Deployment, receiver: Receiver, folder: Path) -> None:
        self.receiver = receiver
        self._deployment = deployment
        self._folder = folder

    def types(self, block: Block) -> str:
        """Runs a block and returns the output on the terminal."""
        ports = {"5123": self._deployment.port, "5124": self._deployment.http_port, "8000": self.receiver.port}
        # The README runs in the folder of the compose file. The test must not write into that folder.
        environment = self._deployment.environment | {"COMPOSE_FILE": str(ROOT / "docker-compose.yml")}
        text = with_ports(block.text, ports)
        code, shown = on_terminal(
            "sh", "-euc", text, environment=environment, columns=140, cwd=self._folder, with_input=True
        )
        assert code == 0, f"line {block.line}:\n{text}\n{shown}"
        return shown


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    if shutil.which("curl") is None:
        pytest.fail("curl is needed")
    deployment = Deployment(f"qtask-readme-{os.getpid()}")
    bridge = deployment.docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}").strip()
    try:
        deployment.compose("build", "--quiet")
        with Receiver(host=bridge) as receiver:
            typing = Reader(deployment, receiver, tmp_path_factory.mktemp("reader"))
            typing.types(UP)
            # This does not wait for the health checks: each of them starts a Python, which is slow on a busy machine.
            until(lambda: is_served(deployment.http_port), 120, "the gateway", every=0.5)
            workers = ("exec", "-T", "redis", "redis-cli", "zcard", "qtask:workers")
            until(lambda: deployment.compose(*workers).strip() == "4", 120, "four workers", every=0.5)
            yield typing
    finally:
        deployment.down("-v")


def is_served(port: int) -> bool:
    """Whether the gateway and its Redis answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_tasks_sent_from_this_host_reach_a_receiver_on_it(reader: Reader) -> None:
    senders = [block for block in OTHERS if "hello" in block.text]
    assert [block.text.split()[0] for block in senders] == ["curl", "docker-compose"]
    over_http, into_redis = (reader.types(block) for block in senders)
    assert json.loads(over_http)["ok"] is True
    assert "-" in into_redis, "the id of an entry"
    requests = reader.receiver.wait_for(2)
    assert [(request.method, request.target) for request in requests] == [("GET", "/")] * 2


def test_every_documented_command_works(reader: Reader) -> None:
    (looking,) = [block for block in OTHERS if "hello" not in block.text]
    shown = reader.types(looking)
    assert shown.count("delivered 200") == 2
    assert "lateness" in shown
    assert "4 workers are alive" in shown and "BAD" not in shown
