"""Every command of `qtask`, as a separate process: effects, output and errors."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.client import Client
from qtask.model.record import STATES
from qtask.model.timing import format_instant, format_second
from qtask.store import keys
from qtask.version import VERSION
from tests.support.command import on_terminal, qtask, refused
from tests.support.installation import Installation
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

QTASK = (sys.executable, "-m", "qtask")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("cli")) as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def ran(installation: Installation, *arguments: str, input: str = "") -> str:
    """Standard output of a command that exits with 0 and writes no errors."""
    result = qtask(*arguments, environment=installation.environment, input=input)
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    return result.stdout


def lines(text: str) -> list[Any]:
    """Parses lines of JSON."""
    return [json.loads(line) for line in text.splitlines()]


def a_task(link: str, time: float = 0, title: str = "t", **data: Any) -> dict[str, Any]:
    return {"title": title, "address": {"type": "http", "link": link}, "settings": {"time": time, "data": data}}


def sent(installation: Installation, link: str, delay: float = 0, title: str = "t", attempts: int = 5) -> str:
    """Sends a task and returns its id."""
    task = a_task(link, delay, title)
    task["settings"]["retry"] = {"attempts": attempts}
    with Client(installation.url) as client:
        return client.send(task).id


# --- help and version --------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_version_is_shown() -> None:
    result = qtask("--help")
    assert result.returncode == 0
    commands = result.stdout.partition("Commands:")[2]
    told = [line.split()[0] for line in commands.splitlines() if line]
    processes, others = (
        ["up", "gateway", "scheduler", "worker"],
        ["send", "list", "show", "cancel", "forget", "retry", "remove"],
    )
    assert told == [*processes, *others, "flow", "queue", "stats", "graph", "demo", "doctor", "audit", "health"]
    assert "..." not in commands, "no description is cut off"
    assert qtask("--version").stdout == f"qtask, version {VERSION}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["worker", "--help"], ["send", "--help"]])
def test_help_does_not_import_unneeded_modules(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom qtask.cli.main import main\nsys.argv[0] = 'qtask'\ntry: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert "Usage: qtask" in result.stdout
    heavy = {
        "redis",
        "rq",
        "matplotlib",
        "numpy",
        "requests",
        "starlette",
        "uvicorn",
        "pycurl",
        "asyncio",
        "rich",
    }
    if arguments != ["send", "--help"]:  # its flags are in the descriptions of the destinations
        heavy.add("msgspec")
    assert heavy & set(result.stderr.split()) == set()


# --- send --------------------------------------------------------------------------------------------------------


def test_send_http_with_every_flag(installation: Installation, receiver: Receiver) -> None:
    line = ran(
        installation,
        *("send", "--http", receiver.url + "path", "--in", "0.2", "--title", "a title", "--method", "PUT"),
        *("--header", "X-One: 1", "--header", "X-Two:2:3", "--data", '{"a": ["é", 1.5]}', "--timeout", "7"),
    )
    task_id, _, due = line.split()
    assert due.endswith("Z")
    (request,) = receiver.wait_for(1)
    assert (request.method, request.target) == ("PUT", "/path")
    assert (request.header("X-One"), request.header("X-Two")) == ("1", "2:3")
    assert json.loads(request.body) == {"a": ["é", 1.5]}
    (record,) = lines(ran(installation, "show", task_id, "--json"))
    assert record["title"] == "a title"
    assert record["task"]["settings"] | {"data": None} == {"time": 0.2, "timeout": 7.0, "data": None}


def test_send_http_with_minimal_flags(installation: Installation, receiver: Receiver) -> None:
    ran(installation, "send", "--http", receiver.url)
    ran(installation, "send", "--http", receiver.url, "--data", "1")
    ran(installation, "send", "--http", receiver.url, "--header", "auto")
    get, post, browser = sorted(receiver.wait_for(3), key=lambda request: len(request.headers))
    assert [get.method, post.method, browser.method] == ["GET", "POST", "GET"]
    assert "Mozilla" in browser.header("User-Agent")


def test_send_at_an_instant(installation: Installation, receiver: Receiver) -> None:
    due = time.time() + 3.0  # longer than the command takes to start
    (answer,) = lines(ran(installation, "send", "--http", receiver.url, "--at", repr(due), "--json"))
    assert answer["ok"] is True and answer["due"] == pytest.approx(due, abs=1e-3)
    receiver.wait_for(1)
    assert time.time() >= due
    instant = "2030-01-02T03:04:05.5+01:00"
    (answer,) = lines(ran(installation, "send", "--http", receiver.url, "--at", instant, "--json"))
    assert answer["due"] == 1893549845.5
    ran(installation, "cancel", answer["id"])


def test_send_to_a_socket(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        ran(installation, "send", "--socket", f"127.0.0.1:{server.getsockname()[1]}", "--data", '{"to": "a socket"}')
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            assert json.loads(stream.read()) == {"to": "a socket"}


def test_send_to_a_pipe(installation: Installation) -> None:
    path = installation.data_dir / "pipes" / "orders"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        ran(installation, "send", "--pipe", "orders", "--data", '{"order": 7}')
        assert json.loads(until(lambda: _read(reader))) == {"order": 7}
    finally:
        os.close(reader)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1_000)
    except BlockingIOError:
        return b""


def test_send_graph_and_fetch_it(installation: Installation, tmp_path: Path) -> None:
    (answer,) = lines(ran(installation, "send", "--graph", "--title", "of today", "--timeout", "90", "--json"))
    until(lambda: installation.redis.exists(keys.graph(answer["id"])), 100, "the picture")
    picture = tmp_path / "fetched.png"
    assert ran(installation, "graph", "--id", answer["id"], "-o", str(picture)).startswith(f"{picture} (")
    assert picture.read_bytes().startswith(b"\x89PNG")
    (record,) = lines(ran(installation, "show", answer["id"], "--json"))
    assert record["title"] == "of today"


NDJSON = """
{"title": "one", "address": {"type": "http", "link": "%(url)s1"}, "settings": {"time": 0}}

{"title": "broken", "address"
{"title": "late", "address": {"type": "http", "link": "%(url)s2"}, "settings": {"time": -1}}
[%(last)s, 5]
"not a dict"
"""


def test_invalid_line_of_a_sent_file_does_not_affect_others(
    installation: Installation, receiver: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.ndjson"
    file.write_text(NDJSON % {"url": receiver.url, "last": json.dumps(a_task(receiver.url + "3"))})
    result = qtask("send", str(file), environment=installation.environment)
    assert result.returncode == 1
    assert len(result.stdout.splitlines()) == 2
    broken, late, number, text = result.stderr.splitlines()
    assert broken.startswith("line 4 refused: this is not JSON:") and broken.endswith("(invalid_json)")
    assert late.startswith("line 5 refused: settings.time: a delay in seconds from 0") and late.endswith(
        "(invalid_value)"
    )
    assert number.startswith("line 6 refused: an object") and number.endswith("(wrong_type)")
    assert text.startswith("line 7 refused: an object") and text.endswith("(wrong_type)")
    assert {request.target for request in receiver.wait_for(2)} == {"/1", "/3"}


def test_send_json_answers_line_by_line(installation: Installation, receiver: Receiver) -> None:
    text = NDJSON % {"url": receiver.url, "last": json.dumps(a_task(receiver.url + "3"))}
    result = qtask("send", "-", "--json", environment=installation.environment, input=text)
    assert (result.returncode, result.stderr) == (1, "")
    answers = lines(result.stdout)
    assert [answer["ok"] for answer in answers] == [True, False, False, True, False, False]
    assert [set(answer) for answer in answers if answer["ok"]] == [{"ok", "id", "due"}] * 2
    assert [answer["error"]["code"] for answer in answers if not answer["ok"]] == [
        "invalid_json",
        "invalid_value",
        "wrong_type",
        "wrong_type",
    ]


@pytest.mark.parametrize("indent", [None, 2])
def test_send_one_document_in_any_layout(installation: Installation, receiver: Receiver, indent: int | None) -> None:
    ran(installation, "send", "-", input=json.dumps(a_task(receiver.url + "dict"), indent=indent))
    array = [a_task(receiver.url + str(n)) for n in range(30)]
    out = ran(installation, "send", "-", input="\n" + json.dumps(array, indent=indent))
    assert len(out.splitlines()) == 21
    assert out.splitlines()[-1] == "… 30 accepted in all"
    assert len({request.target for request in receiver.wait_for(31)}) == 31


ODD = '{"amount":10.10,"big":12345678901234567.89,"e":1e2,"z":-0,"slash":"\\/","a":1,"a":2}'


def test_send_keeps_json_as_written(redis: Redis, redis_server: RedisServer) -> None:
    settings = f'{{"time":60,"data":{ODD}}}'
    task = f'{{"title":"t","address":{{"type":"socket","link":"a:1"}},"settings":{settings}}}'
    spread = task.replace("[", "[\n").replace(",", ",\n  ")
    for arguments, text in (
        (("--socket", "a:1", "--in", "60", "--data", ODD.replace(":", ":\n")), ""),
        (("--pipe", "a", "--in", "60", "--data", ODD), ""),
        (("--http", "http://a/", "--in", "60", "--data", ODD), ""),
        (("-",), spread),
        (("-",), f"[{task}, {spread}]"),
        (("-",), f"{task}\n[{task}]\n"),
    ):
        result = qtask("send", *arguments, "--redis", redis_server.url, input=text)
        assert (result.returncode, result.stderr) == (0, "")
    stored: list[Any] = [redis.hget(key, "data") for key in redis.scan_iter(keys.job("*"))]
    assert len(stored) == 8
    assert [one for one in stored if ODD.encode() not in one] == []


MARK = "\ufeff"


@pytest.mark.parametrize(
    "layout",
    [
        MARK + "{0}",
        MARK + "\n{0}\n" + MARK + "{0}\n\n " + MARK + " {0}",
        MARK + "[{0},\n{0}]",
        "\n" + MARK + "[\n{0}]\n",
        MARK + "{0}\n" + MARK + "[{0}]\n",
    ],
)
def test_send_ignores_byte_order_marks(installation: Installation, receiver: Receiver, layout: str) -> None:
    one = json.dumps(a_task(receiver.url))
    out = ran(installation, "send", "-", input=layout.replace("{0}", one))
    assert len(out.splitlines()) == layout.count("{0}")
    indented = MARK + json.dumps(a_task(receiver.url), indent=2)
    assert len(ran(installation, "send", "-", input=indented).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(a_task("http://x/")).encode("utf-16"), "got UTF-16; send UTF-8"),
        (json.dumps([a_task("http://x/")]).encode("utf-32-le"), "got UTF-32; send UTF-8"),
        (gzip.compress(b"[]", mtime=0), "got gzip; send it uncompressed"),
        (MARK.encode() + b" \n", "the file is empty"),
    ],
)
def test_send_names_the_format_of_a_wrong_file(
    installation: Installation, tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "tasks"
    file.write_bytes(content)
    assert words in refused(qtask("send", str(file), environment=installation.environment))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7_200), ("3d", 259_200), ("1h30m", 5_400)]
)
def test_send_accepts_durations_and_stores_seconds(installation: Installation, text: str, seconds: float) -> None:
    flags = ("--in", text, "--expires", text, "--timeout", "1m")
    task_id = ran(installation, "send", "--http", "http://127.0.0.1:9/", *flags).split()[0]
    (record,) = lines(ran(installation, "show", task_id, "--json"))
    assert record["task"]["settings"] == {"time": seconds, "expires": seconds, "timeout": 60}
    ran(installation, "cancel", task_id)


@pytest.mark.parametrize("flag", ["--in", "--timeout", "--expires"])
def test_send_refuses_an_invalid_duration_with_an_example(flag: str) -> None:
    result = qtask("send", "--http", "http://x/", flag, "soon")
    assert result.returncode == 2
    assert f"'{flag}'" in result.stderr
    assert "seconds, or a duration such as 90s, 10m, 2h, 3d or 1h30m, is needed, got 'soon'" in result.stderr


def test_send_shows_only_the_first_refusals_of_many(installation: Installation) -> None:
    array = [a_task("ftp://x")] * 30
    result = qtask("send", "-", environment=installation.environment, input=json.dumps(array))
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 21
    assert result.stderr.splitlines()[0].startswith("element 1 refused: address.link: a link that begins with http")
    assert result.stderr.splitlines()[-1] == "… 30 refused in all"


def test_send_directly_to_redis(redis: Redis, redis_server: RedisServer) -> None:
    result = qtask("send", "--http", "http://127.0.0.1:9/", "--in", "60", "--redis", redis_server.url, "--queue", "q")
    assert (result.returncode, result.stderr) == (0, "")
    task_id = result.stdout.split()[0]
    assert redis.zscore(keys.SCHEDULE, task_id) is not None
    assert redis.hget(keys.job(task_id), "origin") == b"q"


def test_send_shows_progress_on_a_terminal_separate_from_output(
    installation: Installation, receiver: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps([a_task(receiver.url)] * 5))
    with (tmp_path / "ids").open("wb") as ids:
        command = (*QTASK, "send", str(file))
        code, shown = on_terminal(*command, environment=installation.environment, stdout=ids.fileno())
    assert code == 0
    assert " sent " in shown and "due" not in shown
    assert len((tmp_path / "ids").read_text().splitlines()) == 5
    code, shown = on_terminal(*command, environment=installation.environment)
    assert code == 0
    progress, _, answers = shown.rpartition("\x1b[2K")  # the sequence that clears a line
    assert " sent " in progress and "due" not in progress
    assert " sent " not in answers and answers.count("  due ") == 5


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_send_of_one_task_shows_no_progress(installation: Installation, receiver: Receiver, flags: list[str]) -> None:
    command = (*QTASK, "send", "--http", receiver.url, *flags)
    code, shown = on_terminal(*command, environment=installation.environment)
    assert (code, len(shown.splitlines())) == (0, 1)
    assert "\x1b" not in shown and " sent " not in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            [],
            "a destination is needed: one of --http URL, --socket HOST:PORT, --udp HOST:PORT, --pipe NAME, --graph, "
            "--to-redis URL, --websocket URL, "
            "or a FILE of dicts",
        ),
        (["--http", "http://x/", "--pipe", "y"], "a destination is needed: one of"),
        (["--http", "http://x/", "--in", "1", "--at", "2"], "give either --in or --at, not both"),
        (["--http", "http://x/", "--data", "text"], '--data must be JSON, such as {"a": 1} or "text" in quotes:'),
        (["--http", "http://x/", "--header", "X"], "--header wants NAME:VALUE, or `auto` alone, got 'X'"),
        (["--pipe", "x", "--method", "PUT"], "--method and --header go with --http"),
        (["-", "--title", "x"], "FILE holds complete dicts: leave out the flags that describe a task"),
        (["-"], "there is nothing to send: the file is empty"),
    ],
)
def test_send_names_the_flags_that_it_needs(arguments: list[str], words: str, installation: Installation) -> None:
    result = qtask("send", *arguments, environment=installation.environment)
    assert refused(result).startswith(f"qtask: {words}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--http", "ftp://x/"], "task refused: address.link: a link that begins with http:// or https:// is needed"),
        (["--socket", "127.0.0.1:5000"], "task refused: settings.data"),
        (["--pipe", "orders"], "task refused: settings.data"),
        (["--graph", "--data", "1"], "task refused: settings.data: a __graph__ takes no data"),
        (["--http", "http://x/", "--in", "-1"], "task refused: settings.time: a delay in seconds from 0"),
        (["--http", "http://x/", "--at", "tomorrow"], "task refused: settings.at: an instant with its zone"),
    ],
)
def test_send_prints_the_refusal_of_the_gateway(arguments: list[str], words: str, installation: Installation) -> None:
    result = qtask("send", *arguments, environment=installation.environment)
    assert refused(result).startswith(words)


def test_send_refuses_a_file_that_is_not_json(installation: Installation) -> None:
    result = qtask("send", "-", environment=installation.environment, input="title: yaml\nsettings: {}\n")
    assert refused(result).startswith("qtask: this is neither NDJSON nor one JSON document (line 1: ")


# --- list, show, cancel ------------------------------------------------------------------------------------------


def test_list_shows_each_state(installation: Installation, receiver: Receiver) -> None:
    empty_schedule(installation)
    link = receiver.url + "list"
    waiting = [sent(installation, link, 50 + n, f"waits {n}") for n in (2, 0, 1)]
    delivered, dead = (
        sent(installation, link),
        sent(installation, f"http://127.0.0.1:{free_port()}/", title="no one", attempts=1),
    )
    until(lambda: _state(installation, delivered) == "delivered" and _state(installation, dead) == "dead")

    listed = [line for line in ran(installation, "list").splitlines() if "waits" in line]
    assert [line.split()[0] for line in listed] == [waiting[1], waiting[2], waiting[0]], "the next due is first"
    assert lines(ran(installation, "list", "--json", "--limit", "1"))[0]["id"] == waiting[1]
    newest = lines(ran(installation, "list", "--state", "delivered", "--json", "--limit", "1"))[0]
    assert (newest["id"], newest["outcomes"][0]["code"]) == (delivered, 200)
    table = ran(installation, "list", "--state", "dead")
    assert table.splitlines()[0].split() == ["id", "state", "due", "type", "link", "title", "last", "outcome"]
    assert "failed: connect" in next(line for line in table.splitlines() if line.startswith(dead))
    counts = ran(installation, "list", "--state", "started").splitlines()[-1]
    assert counts.startswith("3 scheduled, 0 waiting, 0 queued, 0 started")

    out = ran(installation, "cancel", *waiting[:2])
    assert out == f"{waiting[0]} cancelled; it was scheduled\n{waiting[1]} cancelled; it was scheduled\n"
    assert lines(ran(installation, "cancel", "--json", waiting[2])) == [{"id": waiting[2], "was": "scheduled"}]
    assert ran(installation, "list").startswith("0 scheduled")


def empty_schedule(installation: Installation) -> None:
    """Cancels retries of other tests."""
    left = [record["id"] for record in lines(ran(installation, "list", "--json"))]
    if left:
        ran(installation, "cancel", *left)


def _state(installation: Installation, task_id: str) -> str:
    with Client(f"unix://{installation.data_dir}/redis.sock") as client:
        return client.show(task_id).state


def test_show_prints_all_details_of_a_task(installation: Installation) -> None:
    def busy(exchange: Exchange) -> None:
        exchange.answer(503, b"come again\x1b[2J")

    with Receiver(busy) as receiver:
        task_id = sent(installation, receiver.url, title="to a :fire: [bold]receiver", attempts=1)
        until(lambda: _state(installation, task_id) == "dead")
    out = ran(installation, "show", task_id)
    for words in (task_id, "to a :fire: [bold]receiver", "dead", receiver.url, "failed: 503", r"come again\x1b[2J"):
        assert words in out, "unchanged except for escaped control characters"
    (record,) = lines(ran(installation, "show", task_id, "--json"))
    assert record["outcomes"][0]["answer"] == "come again\x1b[2J"
    unreachable = sent(installation, f"http://127.0.0.1:{free_port()}/", attempts=1)
    until(lambda: _state(installation, unreachable) == "dead")
    assert "connect to server" in ran(installation, "show", unreachable), "the reason of the failure"


def test_tables_fit_a_terminal(installation: Installation, receiver: Receiver) -> None:
    task_id = sent(installation, receiver.url, 50, "a rather long title of a task")
    for command in ("list", "stats"):
        code, shown = on_terminal(*QTASK, command, environment=installation.environment, columns=80)
        assert code == 0
        assert "\x1b[1m" in shown, "heads are bold on a terminal"
        plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in shown.splitlines()]
        assert max(map(len, plain)) <= 80
    ran(installation, "cancel", task_id)


INSTANT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{3})?Z")


def test_at_80_columns_instants_are_not_wrapped_and_a_retry_is_shown(installation: Installation) -> None:
    def busy(exchange: Exchange) -> None:
        exchange.answer(503, b"a rather long answer that says to come back at some later time")

    with Receiver(busy) as receiver:
        task = a_task(f"{receiver.url}a/rather/long/path/of/a/receiver", title="a rather long title of a task")
        task["settings"]["retry"] = {"attempts": 2, "backoff": [3600]}
        with Client(installation.url) as client:
            task_id = client.send(task).id
            later = client.socket("127.0.0.1:9", 1, delay=60).id
        until(lambda: "retrying" in ran(installation, "list"))
    (record,) = lines(ran(installation, "show", task_id, "--json"))
    assert record["retry_at"] == pytest.approx(record["due"] + 3_600, abs=60)

    shown = on_80_columns(installation, "list")
    (row,) = [line for line in shown if line.startswith(task_id)]
    assert row.split()[1:4] == ["retrying", *format_second(record["retry_at"]).split()]
    head = " ".join(shown[:2])  # the head of the last column may take two lines
    assert "due or retry" in head and "type" not in head
    (other,) = [line for line in shown if line.startswith(later)]
    assert other.split()[1] == "scheduled" and INSTANT.search(other) and "socket" in other

    shown = on_80_columns(installation, "show", task_id)
    for name, instant in (("due", record["due"]), ("next attempt", record["retry_at"])):
        assert any(line.startswith(name) and format_instant(instant) in line for line in shown)
    assert any(format_instant(record["outcomes"][0]["started"]) in line for line in shown)
    assert not any(line.startswith("next attempt") for line in ran(installation, "show", later).splitlines())
    ran(installation, "cancel", task_id, later)


def on_80_columns(installation: Installation, *arguments: str) -> list[str]:
    """What a command prints on a terminal of this width, without styles."""
    code, shown = on_terminal(*QTASK, *arguments, environment=installation.environment, columns=80)
    assert code == 0
    lines = re.sub(r"\x1b\[\d*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def test_list_shows_all_states_at_once(installation: Installation, receiver: Receiver) -> None:
    empty_schedule(installation)
    scheduled = [sent(installation, receiver.url, 50 + n) for n in range(3)]
    delivered = sent(installation, receiver.url)
    dead = sent(installation, f"http://127.0.0.1:{free_port()}/", attempts=1)
    until(lambda: _state(installation, delivered) == "delivered" and _state(installation, dead) == "dead")
    found = lines(ran(installation, "list", "--state", "all", "--json", "--limit", "1"))
    assert [(record["id"], record["state"]) for record in found] == [
        (scheduled[0], "scheduled"),
        (delivered, "delivered"),
        (dead, "dead"),
    ]
    table = ran(installation, "list", "--state", "all")
    assert all(any(line.startswith(task_id) for line in table.splitlines()) for task_id in [*scheduled, dead])
    ran(installation, "cancel", *scheduled)


def test_cancel_continues_after_an_unknown_id(installation: Installation, receiver: Receiver) -> None:
    one, two = sent(installation, receiver.url, 50), sent(installation, receiver.url, 50)
    result = qtask("cancel", one, "nothing", two, environment=installation.environment)
    assert refused(result).startswith("qtask: no task has the id 'nothing'")
    assert [line.split()[0] for line in result.stdout.splitlines()] == [one, two]
    result = qtask("cancel", "--json", one, environment=installation.environment)
    assert (result.returncode, result.stderr) == (1, "")
    assert lines(result.stdout)[0]["error"].startswith(f"no task has the id {one!r}")


def test_cancel_does_not_affect_a_task_that_is_being_delivered(installation: Installation) -> None:
    released = threading.Event()

    def slow(exchange: Exchange) -> None:
        released.wait(60)
        exchange.answer()

    with Receiver(slow) as receiver:
        task_id = sent(installation, receiver.url)
        receiver.wait_for(1)
        result = qtask("cancel", task_id, environment=installation.environment)
        assert refused(result) == f"qtask: task {task_id} is being delivered right now; it cannot be cancelled"
        released.set()
        until(lambda: _state(installation, task_id) == "delivered")
    result = qtask("cancel", "--json", task_id, environment=installation.environment)
    (answer,) = lines(result.stdout)
    assert (result.returncode, answer["state"]) == (1, "delivered")
    assert "use forget" in answer["error"]
    assert ran(installation, "forget", task_id) == f"{task_id} forgotten; it was delivered\n"
    assert refused(qtask("forget", task_id, environment=installation.environment)).startswith("qtask: no task")


# --- stats, graph ------------------------------------------------------------------------------------------------


def test_stats_show_lateness_and_duration(installation: Installation, receiver: Receiver) -> None:
    task_id = sent(installation, receiver.url)
    until(lambda: _state(installation, task_id) == "delivered")
    table = ran(installation, "stats").splitlines()
    heads = ["type", "p50", "p95", "p99", "max", "of the newest", "outcomes since ever"]
    assert table[0].split() == " ".join(heads).split()
    (http,) = [line for line in table if line.startswith("http ")]
    assert "lateness" in http and " delivered" in http
    (document,) = lines(ran(installation, "stats", "--json"))
    (http_type,) = [one for one in document["types"] if one["type"] == "http"]
    assert http_type["totals"]["delivered"] >= 1
    assert 0 <= http_type["lateness"]["p50"] <= http_type["lateness"]["largest"]
    assert set(document["tasks"]) == set(STATES)


def test_stats_without_deliveries(redis: Redis, redis_server: RedisServer) -> None:
    result = qtask("stats", "--redis", redis_server.url)
    assert result.stdout.splitlines()[0] == "no deliveries yet"


def test_graph_format_follows_the_file_name(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "punctual.SVG"
    out = ran(installation, "graph", "-o", str(file))
    assert file.read_bytes().startswith(b"<?xml")
    assert out == f"{file} ({file.stat().st_size} bytes)\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "of.jpg"], "the name of the picture must end in .png or .svg, got 'of.jpg'"),
        (["-o", "of.svg", "--id", "x"], "the name of the picture must end in .png, got 'of.svg'"),
        (["-o", "of.png", "--id", "nothing"], "there is no graph 'nothing'; graphs are kept for a day"),
        (["-o", "/nowhere/of.png"], "/nowhere/of.png cannot be written: there is no folder /nowhere"),
    ],
)
def test_graph_errors_name_the_cause(installation: Installation, arguments: list[str], words: str) -> None:
    assert refused(qtask("graph", *arguments, environment=installation.environment)) == f"qtask: {words}"


# --- each process -----------------------------------------------------------------------------------------------


def test_each_process_can_be_configured_by_the_environment_alone(
    redis: Redis, redis_server: RedisServer, receiver: Receiver, tmp_path: Path
) -> None:
    port, http_port = free_port(), free_port()
    environment = {
        "QTASK_REDIS_URL": redis_server.url,
        "QTASK_PORT": str(port),
        "QTASK_HTTP_PORT": str(http_port),
        "QTASK_QUEUE": "of-the-environment",
        "QTASK_LOG_LEVEL": "warning",
    }
    names = ("gateway", "scheduler", "worker")
    started = [Process(name, environment, tmp_path / f"{name}.log") for name in names]
    try:
        for name in names:
            until(partial(_well, name, environment), what=name, every=0.1)
        with Client(f"socket://127.0.0.1:{port}") as client:
            client.http(receiver.url, delay=0.1)
        receiver.wait_for(1)
        assert redis.smembers(keys.QUEUES) == {b"rq:queue:of-the-environment"}
    finally:
        codes = [process.stop() for process in reversed(started)]
    assert codes == [0, 0, 0]
    assert [(tmp_path / f"{name}.log").read_text() for name in names] == ["", "", ""], "there are no warnings"


def _well(process: str, environment: dict[str, str]) -> bool:
    return qtask("health", process, environment=environment).returncode == 0


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["show", "x"], ["cancel", "x"], ["stats"], ["graph", "-o", "x.png"], ["send", "--http", "http://x/"]],
)
def test_unreachable_redis_is_reported_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    words = refused(qtask(*arguments, "--redis", url, cwd=tmp_path))
    assert words.startswith("qtask: ") and "secret" not in words
    assert "no Redis answers at" in words or "Redis does not answer" in words


def test_unreachable_gateway_is_reported_in_one_line(tmp_path: Path) -> None:
    port = str(free_port())
    words = refused(qtask("send", "--http", "http://x/", "--port", port, cwd=tmp_path))
    assert words.startswith(f"qtask: no gateway answers on 127.0.0.1:{port}: ") and "`qtask up`" in words


def test_default_redis_is_used_without_a_setting_or_qtask_up(tmp_path: Path) -> None:
    environment = {"QTASK_REDIS_URL": "", "QTASK_DATA_DIR": str(tmp_path)}
    result = qtask("show", "no-such-id", environment=environment)
    assert "redis://127.0.0.1:6379/0" in refused(result) or "no task has the id" in refused(result)


def test_error_of_redis_is_reported_in_one_line(redis: Redis, redis_server: RedisServer) -> None:
    redis.set(keys.COUNTERS, "what somebody else keeps here")
    words = refused(qtask("stats", "--redis", redis_server.url))
    assert words.startswith("qtask: Redis rejected the command: ") and "wrong kind of value" in words


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["list", "--redis", "http://x"], {}, "'http://…' is not the address of a Redis"),
        (["gateway", "--port", "70000"], {}, "--port must be from 0 to 65535, got 70000"),
        (["worker"], {"QTASK_CONCURRENCY": "many"}, "QTASK_CONCURRENCY must be a whole number, got 'many'"),
        (["worker", "--log-level", "loud"], {}, "log_level must be debug, info, warning or error, got 'loud'"),
        (["up", "--log-format", "xml"], {}, "log_format must be auto, human or json, got 'xml'"),
        (["stats", "--config", "absent.toml"], {}, "the configuration file absent.toml cannot be read: No such file"),
        (["stats"], {"QTASK_CONFIG": "bad.toml"}, "the configuration file bad.toml is not TOML: "),
        (["stats"], {"QTASK_CONFIG": "odd.toml"}, "'prot' in odd.toml is not a setting; the settings are: "),
        (["show", "x"], {"QTASK_PORT": "-1"}, "QTASK_PORT must be from 0 to 65535, got '-1'"),
    ],
)
def test_wrong_settings_are_reported_in_one_line(
    arguments: list[str], environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text("port = = 1")
    (tmp_path / "odd.toml").write_text("prot = 1")
    result = qtask(*arguments, environment=environment, cwd=tmp_path)
    assert refused(result).startswith(f"qtask: {words}")


def test_settings_file_is_found_in_the_working_directory(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    (tmp_path / "qtask.toml").write_text(f'redis_url = "{redis_server.url}"\n')
    result = qtask("list", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("0 scheduled")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gateway", "--port", "x"], "'x' is not a valid integer"),
        (
            ["list", "--state", "lost"],
            "'lost' is not one of 'scheduled', 'waiting', 'queued', 'started', 'delivered', 'dead', 'all'",
        ),
        (["list", "--limit", "0"], "0 is not in the range"),
        (["cancel"], "Missing argument"),
        (["graph"], "Missing option"),
        (["send", "no-such-file"], "No such file"),
        (["health", "redis"], "is not one of 'gateway', 'scheduler', 'worker'"),
        (["scheduler", "--port", "1"], "No such option"),
        (["fly"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_the_usage(arguments: list[str], words: str) -> None:
    result = qtask(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: qtask") and words in result.stderr


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_gateway_with_a_port_in_use_logs_one_event(flag: str, redis_server: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"--port": "0", "--http-port": "0", flag: str(other.getsockname()[1])}
        flags = [word for pair in ports.items() for word in pair]
        event = json.loads(refused(qtask("gateway", "--redis", redis_server.url, *flags)))
    assert (event["level"], event["event"]) == ("error", "failed")
    assert ports[flag] in event["error"] and "--http-port" in event["error"]


@pytest.mark.parametrize("package", ["rq", "matplotlib", "websockets"])
@pytest.mark.parametrize("name", ["up", "demo"])
def test_missing_package_is_named_before_any_process_starts(name: str, package: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; from qtask.cli.main import main; main()"
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    words = "which the service needs and the client alone does not: run pip install 'qtask[server]'"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"qtask: the package {package} is not installed, {words}\n"
    assert not any(tmp_path.iterdir())
