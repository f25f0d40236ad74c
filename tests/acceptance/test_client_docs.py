"""docs/client.md: each of its blocks runs against a real `qtask up`, and its tasks arrive."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import qtask
from qtask.client.protocol import DEFAULT_URL
from tests.support.documents import ROOT, Block, blocks, run
from tests.support.installation import Installation
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

DOCUMENT = ROOT / "docs" / "client.md"
BLOCKS = blocks(DOCUMENT)


@dataclass
class Reader:
    """Runs the code of the page, with a receiver at every address that it sends to."""

    folder: Path
    ports: dict[str, int]
    environment: dict[str, str]
    receiver: Receiver
    listener: socket.socket
    pipe: int
    texts: list[bytes] = field(default_factory=list)

    def run(self, block: Block) -> list[str]:
        """Runs a block and returns the lines that it prints."""
        return run(block, self.ports, self.folder, self.environment).splitlines()

    def listen(self) -> None:
        """Accepts connections and keeps what they send."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                self.texts.append(stream.read())


def _behave(exchange: Exchange) -> None:
    """Answers 503 to tasks that must die."""
    exchange.answer(503 if exchange.request.target in ("/charge", "/bill") else 200)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[Reader]:
    redis_server.client().flushall()
    folder = tmp_path_factory.mktemp("client-docs")
    pipes = folder / "pipes"
    pipes.mkdir()
    os.mkfifo(pipes / "orders")
    pipe = os.open(pipes / "orders", os.O_RDONLY | os.O_NONBLOCK)
    flags = ["--redis", redis_server.url, "--pipe-dir", str(pipes)]
    with (
        Installation(folder, *flags) as running,
        Receiver(_behave) as receiver,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        ports = {
            "5123": running.port,
            "5124": running.http_port,
            "6379": redis_server.port,
            "8000": receiver.port,
            "5000": listener.getsockname()[1],
        }
        reader = Reader(folder, ports, {"QTASK_URL": running.url}, receiver, listener, pipe)
        thread = threading.Thread(target=reader.listen)
        thread.start()
        yield reader
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        os.close(pipe)


def block_with(words: str) -> Block:
    """The only block that contains these words."""
    (found,) = [block for block in BLOCKS if words in block.text]
    return found


def arrived(reader: Reader, target: str, count: int = 1) -> None:
    until(lambda: len([one for one in reader.receiver.requests if one.target == target]) == count, what=target)


def test_every_block_is_in_one_of_these_tests() -> None:
    told = [
        "/hook",
        "client.socket(",
        "client.send(\n",
        "def reminder",
        "asyncio.run",
        "task = client.show",
        "5124",
        "find_dead",
        "client.set_flow",
        "except",
    ]
    assert [block_with(words) for words in told] == BLOCKS
    assert {block.language for block in BLOCKS} == {"python"}


def test_first_task(reader: Reader) -> None:
    (line,) = reader.run(block_with("/hook"))
    assert re.fullmatch(r"\S{12} \d{10}\.\d+", line)
    arrived(reader, "/hook")
    request = next(one for one in reader.receiver.requests if one.target == "/hook")
    assert (request.method, json.loads(request.body)) == ("POST", {"to": "ada"})


def test_task_of_each_type(reader: Reader) -> None:
    assert reader.run(block_with("client.socket(")) == []
    arrived(reader, "/search?q=later")
    assert [json.loads(text) for text in until(lambda: reader.texts)] == [{"to": "a socket", "n": [1, 2, 3]}]
    assert json.loads(until(lambda: _read(reader.pipe))) == {"order": 7}


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 1_000)
    except BlockingIOError:
        return b""


def test_whole_dict(reader: Reader) -> None:
    assert reader.run(block_with("client.send(\n")) == []
    arrived(reader, "/remind")
    request = next(one for one in reader.receiver.requests if one.target == "/remind")
    assert (request.method, request.body) == ("POST", b"to=ada")


def test_many_tasks_at_once(reader: Reader) -> None:
    first, second, third = reader.run(block_with("def reminder"))
    assert first.startswith("accepted: ") and third.startswith("accepted: ")
    assert second.startswith("refused: invalid_value settings.time a delay in seconds from 0")
    arrived(reader, "/remind?to=Ada")
    arrived(reader, "/remind?to=Edith")


def test_asyncio(reader: Reader) -> None:
    first, second = reader.run(block_with("asyncio.run"))
    assert len(first) == 12
    assert second == "100 accepted"
    arrived(reader, "/async", 101)


def test_reading_tasks(reader: Reader) -> None:
    first, *listed, last = reader.run(block_with("task = client.show"))
    assert re.fullmatch(r"scheduled in an hour \d{10}\.\d+ \[\]", first)
    assert listed and all(re.fullmatch(r"\S{12} \d\S* \d+", line) for line in listed)
    assert last == "it was scheduled"


def test_reading_over_http(reader: Reader) -> None:
    assert reader.run(block_with("5124")) == ["{'json': {'to': 'ada'}, 'method': 'POST'}", "it was scheduled"]


def test_dead_letters(reader: Reader, redis_server: RedisServer) -> None:
    with qtask.Client(redis_server.url) as client:
        url = f"http://127.0.0.1:{reader.receiver.port}"
        charge = client.http(f"{url}/charge", retry={"attempts": 1}).id
        invoice = client.http(f"{url}/bill", title="an old invoice", retry={"attempts": 1}).id
        until(lambda: {charge, invoice} <= set(client.find_dead()), what="both to be dead")
        assert reader.run(block_with("find_dead")) == [f"again: ['{charge}']", f"removed: ['{invoice}']"]
        until(lambda: client.find_dead(link="/charge", error=503) == [charge], what="it to be dead once more")


def test_flows(reader: Reader) -> None:
    assert reader.run(block_with("client.set_flow")) == ["paused", "partner-api None 10.0"]
    arrived(reader, "/partner")


def test_errors(reader: Reader) -> None:
    first, second = reader.run(block_with("except"))
    assert first == "invalid_value address.link"
    assert second.startswith("no gateway answers on 127.0.0.1:1: ")


def test_documented_errors_and_default_are_correct() -> None:
    text = DOCUMENT.read_text()
    for name in re.findall(r"^\| `qtask\.(\w+)` \|", text, re.MULTILINE):
        assert issubclass(getattr(qtask, name), qtask.QTaskError)
    assert f"the default is `{DEFAULT_URL}`" in text
