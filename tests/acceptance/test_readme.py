"""README.md: each block is run unchanged, each dict is accepted, each answer is the real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtask.client import Client
from qtask.destinations.registry import built_in
from tests.support.documents import ROOT, Block, blocks, blocks_under, broken_links, run
from tests.support.receiver import Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

README = ROOT / "README.md"
BLOCKS = blocks(README)
UP = next(block for block in BLOCKS if block.text.strip().endswith("qtask up"))
IN_DOCKER = blocks_under(README, "### With Docker")  # run by tests/compose
RUN = [block for block in BLOCKS if block.language in ("sh", "python") and block not in (UP, *IN_DOCKER)]

# Replacements for machines without these commands, or with another nc, limited to what the README uses.
NC = """#!{python}
import socket, sys
flag, host, port = sys.argv[1:]
assert flag == "-N"
with socket.create_connection((host, int(port))) as connection:
    connection.sendall(sys.stdin.buffer.read())
    connection.shutdown(socket.SHUT_WR)
    while chunk := connection.recv(65536):
        sys.stdout.buffer.write(chunk)
"""
CURL = """#!{python}
import sys, urllib.request
silent, url, _, header, _, data = sys.argv[1:]
assert silent == "-s"
headers = dict([header.split(": ")])
print(urllib.request.urlopen(urllib.request.Request(url, data.encode(), headers)).read().decode(), end="")
"""


@dataclass
class Reader:
    """Follows the README: a folder with QTask running, and a receiver on its port 8000."""

    folder: Path
    ports: dict[str, int]
    environment: dict[str, str]
    receiver: Receiver
    sent: int = 0

    def run(self, block: Block) -> str:
        """Runs a block."""
        return run(block, self.ports, self.folder, self.environment)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    (folder / ".venv").symlink_to(sys.prefix)
    commands = folder / "commands"
    commands.mkdir()
    for name, text in (("nc", NC), ("curl", CURL)):
        if not _knows(name):
            (commands / name).write_text(text.format(python=sys.executable))
            (commands / name).chmod(0o755)
    with Receiver() as receiver:
        ports = {"5123": free_port(), "5124": free_port(), "8000": receiver.port}
        environment = {
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "QTASK_PORT": str(ports["5123"]),
            "QTASK_HTTP_PORT": str(ports["5124"]),
            "QTASK_URL": f"socket://127.0.0.1:{ports['5123']}",
        }
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                shlex.split(UP.text), cwd=folder, env={**os.environ, **environment}, stderr=output, stdout=output
            )
        try:
            until(lambda: '"ready"' in log.read_text() or process.poll() is not None, 60, "qtask up")
            assert process.poll() is None, log.read_text()
            yield Reader(folder, ports, environment, receiver)
        finally:
            process.terminate()
            process.wait(30)


def _knows(name: str) -> bool:
    """Whether this machine has a command as the README needs it; some versions of nc do not have -N."""
    if shutil.which(name) is None:
        return False
    told = subprocess.run([name, "-h"], capture_output=True, text=True, timeout=30, check=False)
    return name != "nc" or re.search(r"-N\b", told.stdout + told.stderr) is not None


@pytest.mark.parametrize("block", RUN, ids=[f"line {block.line}" for block in RUN])
def test_each_block_works_as_described(reader: Reader, block: Block) -> None:
    out = reader.run(block)
    reader.sent += "hello" in block.text
    if "graph -o punctual.png" in block.text:
        assert (reader.folder / "punctual.png").read_bytes().startswith(b"\x89PNG")
    if " | nc " in block.text or block.text.startswith("curl"):
        shown = json.loads(answer_after(block).text)
        answer = json.loads(out)
        if shown["ok"]:
            assert answer["ok"] is True and set(answer) == set(shown)
        else:
            assert out == answer_after(block).text, "a refusal is shown verbatim"


def test_each_sent_task_arrives(reader: Reader) -> None:
    requests = reader.receiver.wait_for(reader.sent)
    assert [(request.method, request.target) for request in requests] == [("GET", "/")] * reader.sent


def answer_after(block: Block) -> Block:
    """The answer that the README shows for a block: the next one in JSON."""
    return next(one for one in BLOCKS if one.language == "json" and one.line > block.line)


def test_shown_id_and_due_have_the_real_format(reader: Reader) -> None:
    shown = next(json.loads(block.text) for block in BLOCKS if block.text.startswith('{"ok":true'))
    with Client(reader.environment["QTASK_URL"]) as client:
        accepted = client.http("https://example.org/", delay=90)
    assert len(shown["id"]) == len(accepted.id)
    assert isinstance(shown["due"], type(accepted.due))


def test_each_shown_dict_is_accepted(reader: Reader) -> None:
    dicts = [json.loads(block.text) for block in BLOCKS if block.language == "json" and '"ok"' not in block.text]
    assert len(dicts) == 1
    with Client(reader.environment["QTASK_URL"]) as client:
        for task in dicts:
            assert client.send(task).due


def test_every_block_is_tested() -> None:
    """By running it, as a dict or an answer, or, without a language, by the tests that follow."""
    others = [block for block in BLOCKS if block not in (UP, *RUN, *IN_DOCKER) and block.language != "json"]
    starts = [block.text.split("\n")[0] for block in others]
    assert [block.language for block in others] == [""] * 2
    assert [start.split()[:2] for start in starts] == [["$", "make"], ["make", "demo"]]
    assert len(IN_DOCKER) == 4 and {block.language for block in IN_DOCKER} == {"sh"}


def test_every_named_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b", README.read_text()))
    assert {"demo", "test"} <= named <= targets


def test_every_scaled_service_exists() -> None:
    services = re.findall(r"^  ([a-z]+):$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE)
    scaled = re.findall(r"--scale (\w+)=\d", README.read_text())
    assert scaled and set(scaled) <= set(services)


def test_table_of_types_is_complete() -> None:
    section = README.read_text().partition("## A task")[2].partition("| `settings` |")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(built_in())


@pytest.mark.parametrize("document", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name)
def test_links_are_valid(document: Path) -> None:
    assert broken_links(document) == []


def test_first_screen_has_a_sentence_a_transcript_two_commands_and_the_first_task() -> None:
    text = README.read_text()
    order = [
        "QTask delivers a request **later**",
        "$ make demo",
        "\nmake test",
        "## The first task",
        "docker-compose up",
        "curl",
        "nc -N",
        "import qtask",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert len(text.splitlines()) < 187
