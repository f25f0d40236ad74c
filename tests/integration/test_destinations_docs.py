"""docs/destinations.md: its tasks are accepted, its commands and Python code work with a real gateway."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from redis import Redis

from qtask.destinations.parsing import parse
from qtask.destinations.redis import RedisData
from qtask.destinations.redis.deliverer import CONNECTIONS
from qtask.destinations.registry import GROUP, built_in
from qtask.destinations.websocket import WebSocketData
from tests.support.documents import ROOT, Block, blocks, broken_links, run
from tests.support.gateway_process import Gateway, scheduled

DOCUMENT = ROOT / "docs" / "destinations.md"
BLOCKS = blocks(DOCUMENT)
TEXT = DOCUMENT.read_text()
SENDING = [block for block in BLOCKS if block.language in ("sh", "python") and "DESTINATION" not in block.text]
(EXAMPLE,) = (block for block in BLOCKS if "DESTINATION = " in block.text)


@pytest.mark.parametrize("block", SENDING, ids=lambda block: f"line {block.line}")
def test_each_block_that_sends_works(block: Block, gateway: Gateway, redis: Redis, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run(block, {}, tmp_path, {"PATH": path, "QTASK_URL": gateway.url, "QTASK_PORT": str(gateway.port)})
    sent = block.text.count("qtask send") + block.text.count("    client.")
    assert len(scheduled(redis)) == sent > 0


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=lambda block: block.line)
def test_each_task_is_accepted(block: Block) -> None:
    assert parse(block.text.encode()).task.type in built_in()


def test_every_key_of_the_data_is_documented() -> None:
    for key in (*RedisData.__struct_fields__, *WebSocketData.__struct_fields__):
        assert f"`{key}`" in TEXT
    assert CONNECTIONS == 4 and "up to four connections" in TEXT


def test_example_works_as_an_installed_package(tmp_path: Path) -> None:
    (toml,) = (block.text for block in BLOCKS if block.language == "toml")
    entries = tomllib.loads(toml)["project"]["entry-points"][GROUP]
    (tmp_path / "qtask_print.py").write_text(EXAMPLE.text)
    about = tmp_path / "qtask_print-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: qtask-print\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    code = (
        "from tests.support.delivering import deliveries\n"
        "with deliveries('print') as deliver: print(deliver('stdout', {'n': 1.5}).text)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == '{"n":1.5}\nprinted\n'


def test_links_are_valid() -> None:
    assert broken_links(DOCUMENT) == []
