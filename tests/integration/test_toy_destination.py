"""A destination of a third-party package: this file is all of it, and every entrance of QTask accepts its tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import pytest
from msgspec import UNSET, Raw

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.loop import Loop
from qtask.destinations.registry import GROUP, Registry, built_in
from qtask.model.destination import Destination, Flag, Options, Parts
from qtask.model.errors import Refused
from qtask.model.outcome import Answer, Failure
from qtask.model.task import Address, Part, Task
from qtask.model.validation import DataReader
from tests.support.documents import ROOT
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import Live

# --- the destination -------------------------------------------------------------------------------------------


class FileAddress(Address, frozen=True, tag_field="type", tag="file"):
    """`link`: the path of a file."""


class FileData(Part, frozen=True):
    """`line`: the text to append; `shout`: in capitals."""

    line: str
    shout: bool = False


READER = DataReader(FileData, {"line": "; a line of text"})


def check(task: Task) -> None:
    """Raises `Refused` for a path that is not absolute, or for other data."""
    if not task.address.link.startswith("/"):
        raise Refused("invalid_value", "address.link", "an absolute path is needed")
    READER.read(task)


def shorthand(path: str, line: str, *, shout: bool = False, **options: Unpack[Options]) -> Parts:
    """Submits a line for a file."""
    return Parts(path, {"line": line, "shout": shout})


def data_of_flags(flags: Mapping[str, Any], data: Raw | None) -> Any:
    """`--data` is the line."""
    return UNSET if data is None else {"line": data, "shout": flags["shout"]}


class FileDeliverer:
    """Appends lines to files."""

    def __init__(self, loop: Loop, config: Config) -> None:
        self._loop = loop

    def start(self, claim: Claim, done: Done) -> None:
        """Makes the delivery at once."""
        data = READER.read(claim.task)
        try:
            with open(claim.task.address.link, "a") as file:
                file.write((data.line.upper() if data.shout else data.line) + "\n")
        except OSError as error:
            done(Failure("connect", f"the file cannot be written: {error.strerror}"))
        else:
            done(Answer(text=f"{len(data.line)} characters"))

    def close(self) -> None:
        """Nothing to close."""


DESTINATION = Destination(
    name="file",
    address=FileAddress,
    link_words="the path of a file",
    check=check,
    place=lambda link: f"file:{Path(link).name}",
    shorthand=shorthand,
    flag=Flag("--file", "PATH", "append a line to a file"),
    flags=(Flag("--shout", "", "with --file: in capitals"),),
    data_of_flags=data_of_flags,
    deliverer="tests.integration.test_toy_destination:FileDeliverer",
)

# --- as an installed package -----------------------------------------------------------------------------------


def install(folder: Path, **entries: str) -> Path:
    """Makes a package with entry points, as pip would install it in a folder of packages."""
    about = folder / "toy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (about / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which processes find the package."""
    folder = install(tmp_path_factory.mktemp("packages"), file="tests.integration.test_toy_destination:DESTINATION")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[tuple[Live, Gateway]]:
    """A gateway, a scheduler and a worker with the package installed."""
    folder = tmp_path_factory.mktemp("system")
    with Live(folder) as live, Gateway(live.url, folder, environment) as gateway:
        live.start("scheduler", environment)
        live.start("worker", environment)
        yield live, gateway


def command(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QTASK_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_destination_accepts_tasks_from_socket_client_and_command_line(
    system: tuple[Live, Gateway], environment: dict[str, str], tmp_path: Path
) -> None:
    live, gateway = system
    path = tmp_path / "lines"
    task = {"title": "t", "address": {"type": "file", "link": str(path)}, "settings": {"time": 0}}
    with Connection(gateway.port) as connection:
        answers = connection.ask([{**task, "settings": {"time": 0, "data": {"line": "socket"}}}, task])
    ids = [answers[0]["id"]]
    assert answers[1]["error"] == {
        "code": "missing_field",
        "field": "settings.data.line",
        "message": "line is needed; a line of text",
    }

    client = f"import qtask; print(qtask.Client({gateway.url!r}).file({str(path)!r}, 'client', delay=0.1).id)"
    done = command(environment, "-c", client)
    assert (done.returncode, done.stderr) == (0, "")
    ids.append(done.stdout.strip())

    flags = ["--file", str(path), "--data", '"command"', "--shout", "--json"]
    done = command({**environment, "QTASK_PORT": str(gateway.port)}, "-m", "qtask", "send", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    ids.append(json.loads(done.stdout)["id"])

    records = live.ended(ids)
    assert [(one.state, one.outcomes[0].answer) for one in records] == [
        ("delivered", "6 characters"),
        ("delivered", "6 characters"),
        ("delivered", "7 characters"),
    ]
    assert sorted(path.read_text().splitlines()) == ["COMMAND", "client", "socket"]

    there = {**environment, "QTASK_REDIS_URL": live.url}
    assert '"file"' in command(there, "-m", "qtask", "stats", "--json").stdout
    assert json.loads(command(there, "-m", "qtask", "show", ids[0], "--json").stdout)["type"] == "file"


def test_stock_worker_delivers_to_it(
    system: tuple[Live, Gateway], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, _ = system
    path = tmp_path / "lines"
    send = f"import qtask; print(qtask.Client({live.url!r}, queue='stock').file({str(path)!r}, 'stock').id)"
    task_id = command(environment, "-c", send).stdout.strip()
    live.wait_queued("stock", 1)
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    live.command("rq", "worker", "-u", live.url, "-S", "rq.serializers.JSONSerializer", "--burst", "stock")
    (record,) = live.ended([task_id])
    assert (record.state, record.outcomes[0].answer, path.read_text()) == ("delivered", "5 characters", "stock\n")


def test_help_and_refusals_name_it(environment: dict[str, str]) -> None:
    shown = command(environment, "-m", "qtask", "send", "--help").stdout
    assert "--file PATH" in shown and "with --file: in capitals" in shown
    wrong = command(environment, "-m", "qtask", "send", "--udp", "h:1", "--shout")
    assert "--shout goes with --file" in wrong.stderr
    code = (
        "import qtask.destinations.parsing as p\n"
        'try: p.parse(b\'{"title":"t","address":{"type":"fil"},"settings":{"time":0}}\')\n'
        "except Exception as error: print(error)\n"
        "import qtask; print(hasattr(qtask.Client(), 'fil'), qtask.Client().file.__doc__)"
    )
    told = command(environment, "-c", code)
    assert "__graph__, redis, websocket, file" in told.stdout, told.stderr
    assert "False Submits a line for a file." in told.stdout


def test_destination_is_unknown_without_the_package() -> None:
    told = command({"PYTHONPATH": str(ROOT)}, "-m", "qtask", "send", "--file", "/x", "--data", "1")
    assert told.returncode == 2
    assert "No such option: --file" in told.stderr or "No such option '--file'" in told.stderr


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ("TAKES_IN", "the destination 'in' (of toy) adds the flag --in, which belongs to `qtask send` itself: "),
        (
            "TAKES_TITLE",
            "the destination 'title' (of toy) adds the flag --title, which belongs to `qtask send` itself: ",
        ),
        ("TAKES_UDP", "the destination 'udp2' (of toy) adds the flag --udp, which belongs to the destination 'udp': "),
        (
            "TAKES_METHOD",
            "the destination 'm' (of toy) adds the flag --method, which belongs to the destination 'http': ",
        ),
    ],
)
def test_flag_that_is_taken_is_an_error(tmp_path: Path, destination: str, error: str) -> None:
    folder = install(tmp_path, taken=f"toy:{destination}")
    (folder / "toy.py").write_text(TAKEN_FLAGS)
    for arguments in (["--help"], ["--udp", "127.0.0.1:9", "--data", "1"]):
        done = command({"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}, "-m", "qtask", "send", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"qtask: {error}rename the flag, or uninstall the package of the destination\n"


TAKEN_FLAGS = """
from qtask.model.destination import Destination, Flag, Parts
from qtask.model.task import Address


def made(name, flag, *flags):
    class ToyAddress(Address, frozen=True, tag_field="type", tag=name):
        pass

    return Destination(
        name=name,
        address=ToyAddress,
        check=lambda task: None,
        place=str,
        shorthand=lambda link: Parts(link),
        flag=Flag(flag, "LINK", "a toy"),
        flags=tuple(Flag(one, "TEXT", "a toy") for one in flags),
        deliverer="toy:Deliverer",
    )


TAKES_IN = made("in", "--in")
TAKES_TITLE = made("title", "--toy", "--title")
TAKES_UDP = made("udp2", "--toy", "--udp")
TAKES_METHOD = made("m", "--method")
"""


# --- broken packages, and the cost without packages ----------------------------------------------------------------


def test_broken_package_is_skipped_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = install(
        tmp_path / "packages",
        absent="no_such_module:DESTINATION",
        text="tests.integration.test_toy_destination:ROOT",
        again="qtask.destinations.udp:DESTINATION",
        file="tests.integration.test_toy_destination:DESTINATION",
    )
    monkeypatch.syspath_prepend(str(folder))
    registry = Registry(built_in())
    known = [one.name for one in registry.known()]
    found = registry.find("file")
    assert found is not None and found.name == "file"
    assert [one.name for one in registry.known()] == [*known, "file"]
    logged = {record.__dict__["destination"]: record.__dict__["error"] for record in caplog.records}
    assert set(logged) == {"absent", "text", "again"}
    assert "no_such_module" in logged["absent"]
    assert "a Destination is needed" in logged["text"]
    assert "there is a destination 'udp' already" in logged["again"]


def test_entry_points_are_not_searched_unless_needed() -> None:
    code = (
        "import sys, qtask\n"
        "from qtask.destinations.parsing import check_task\n"
        "task = {'title': 't', 'address': {'type': 'udp', 'link': 'h:1'}, 'settings': {'time': 0, 'data': 1}}\n"
        "check_task(task); qtask.Client().http\n"
        "loaded = {'importlib.metadata', 'pycurl', 'websockets', 'matplotlib', 'redis', 'qtask.delivery'}\n"
        "print(sorted(loaded & sys.modules.keys()))"
    )
    told = command({}, "-c", code)
    assert told.stdout.strip() == "[]", told.stderr


def test_tag_of_an_address_must_be_the_name_of_its_destination() -> None:
    with pytest.raises(TypeError, match="must be 'files'"):
        Destination(
            name="files",
            address=FileAddress,
            check=check,
            place=str,
            shorthand=shorthand,
            flag=Flag("--files", "PATH", "x"),
            deliverer="tests.integration.test_toy_destination:FileDeliverer",
        )
