"""`qtask demo`: the whole of QTask before your eyes, on a Redis and to receivers of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
from redis import Redis

from qtask.client import Accepted, Client
from qtask.config import Config
from qtask.errors import NotFound, QTaskError, Refused
from qtask.store import keys, tasks
from qtask.store.tasks import TaskRecord
from qtask.tables import outcome_words
from qtask.timing import format_duration
from qtask.up import Up

WAIT_SECONDS = 20.0
_LONGEST_DELAY = 2.5


def run(output: Path) -> int:
    """Runs the demonstration and writes the graph; returns 0 when every task ended as it should."""
    folder = Path(tempfile.mkdtemp(prefix="qtask-demo-"))
    try:
        return _Demo(folder, output).run()
    except KeyboardInterrupt:
        click.echo("\nstopped")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    def __init__(self, folder: Path, output: Path) -> None:
        self._output = output
        self._config = Config(
            data_dir=str(folder),
            port=_free_port(),
            http_port=_free_port(),
            workers=2,
            log_level="warning",
        )
        self._expected: dict[str, tuple[str, bool]] = {}  # id to what it is, and whether it is to be delivered

    def run(self) -> int:
        config = self._config
        config.pipes.mkdir(parents=True)
        with _receivers(config.pipes) as receivers:
            _say("Starting a Redis, a gateway, a scheduler and two workers, each a process of its own …")
            up = Up(replace(config, log_level="error"))
            try:
                up.start()
                redis = Redis.from_url(up.redis_url)
                _say(
                    f"The gateway listens on {config.host}:{config.port}; three receivers of this demo wait beside it."
                )
                self._submit(receivers)
                records = self._watch(redis)
                self._print(records)
                drawn = self._graph(redis)
                return self._verdict(records, receivers, drawn)
            finally:
                up.stop()

    def _submit(self, receivers: _Receivers) -> None:
        _head("Tasks go in, over the socket")
        with Client(f"socket://{self._config.host}:{self._config.port}") as client:
            for what, delivered, task in _tasks(receivers):
                self._take(client, what, delivered, task)
            crowd = [_http(f"crowd {n}", receivers.http, 0.2 + n * 0.02, {"json": {"n": n}}) for n in range(100)]
            answers = client.send_many(crowd)
            for answer in answers:
                if isinstance(answer, Accepted):
                    self._expected[answer.id] = ("a crowd of 100", True)
            click.echo(f"  {len(self._expected)} accepted, 100 of them in one batch: due every 20 ms from now")
            _head("Some are refused, and told why")
            for broken in _broken():
                try:
                    client.send(broken)
                except Refused as refused:
                    click.echo(f"  {refused.code:14} {refused.field:28} {refused.message}")

    def _take(self, client: Client, what: str, delivered: bool, task: dict[str, Any]) -> None:
        accepted = client.send(task)
        self._expected[accepted.id] = (what, delivered)
        click.echo(f"  {accepted.id}  {what:42} due in {task['settings']['time']:g} s")

    def _watch(self, redis: Redis) -> list[TaskRecord]:
        _head("They wait in Redis, and are delivered when they are due")
        deadline = time.monotonic() + WAIT_SECONDS
        waiting = dict(self._expected)
        ended: list[TaskRecord] = []
        while waiting and time.monotonic() < deadline:
            time.sleep(0.05)
            for task_id, (what, _) in list(waiting.items()):
                try:
                    record = tasks.show(redis, task_id)
                except NotFound:
                    continue
                if record.state in ("delivered", "dead"):
                    del waiting[task_id]
                    ended.append(record)
                    if not what.startswith("a crowd"):
                        outcome = record.outcomes[-1]
                        click.echo(f"  {record.state:9} {what:42} {format_duration(outcome.lateness)} after it was due")
        if waiting:
            click.echo(f"  {len(waiting)} tasks did not end within {WAIT_SECONDS:g} s")
        return ended

    def _print(self, records: list[TaskRecord]) -> None:
        _head("What became of them")
        click.echo(f"  {'id':12}  {'type':7} {'lateness':>9}  {'duration':>9}  {'outcome':18}  answer")
        for record in sorted(records, key=lambda record: record.due):
            what, _ = self._expected[record.id]
            if what.startswith("a crowd"):
                continue
            outcome = record.outcomes[-1]
            late, took = format_duration(outcome.lateness), format_duration(outcome.duration)
            answer = (outcome.answer or outcome.message).replace("\n", " ")[:44]
            click.echo(f"  {record.id:12}  {record.kind:7} {late:>9}  {took:>9}  {outcome_words(outcome):18}  {answer}")
        crowd = sorted(r.outcomes[-1].lateness for r in records if self._expected[r.id][0].startswith("a crowd"))
        if crowd:
            middle, worst = format_duration(crowd[len(crowd) // 2]), format_duration(crowd[-1])
            click.echo(
                f"  and the crowd of {len(crowd)}: lateness {middle} in the middle, {worst} at worst, none early"
            )

    def _graph(self, redis: Redis) -> bool:
        _head("A __graph__ task draws how punctual it all was")
        with Client(f"socket://{self._config.host}:{self._config.port}") as client:
            task_id = client.graph().id
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            picture: Any = redis.get(keys.graph(task_id))
            if picture is not None:
                self._output.write_bytes(picture)
                click.echo(f"  {self._output} ({len(picture) // 1024} KiB): open it")
                return True
            time.sleep(0.05)
        click.echo("  no graph was drawn")
        return False

    def _verdict(self, records: list[TaskRecord], receivers: _Receivers, drawn: bool) -> int:
        wrong = [
            record.id
            for record in records
            if (record.state == "delivered") != self._expected[record.id][1] or record.outcomes[-1].started < record.due
        ]
        missing = set(self._expected) - {record.id for record in records}
        wanted = sum(1 for record in records if record.kind == "http")
        click.echo()
        if wrong or missing or not drawn or receivers.requests < wanted or not receivers.lines or not receivers.texts:
            click.echo(f"Not as it should be: {len(wrong)} ended otherwise, {len(missing)} did not end.")
            return 1
        click.echo(f"All {len(records)} tasks ended as they should, none before it was due.")
        click.echo("Go on with `qtask up`, and the README's first task.")
        return 0


def _tasks(receivers: _Receivers) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    http, place = receivers.http, receivers.socket
    yield "GET with parameters", True, _http("get", http, 0.4, {"params": {"from": "qtask"}})
    yield "POST of JSON", True, _http("post", http, 0.8, {"method": "POST", "json": {"hello": "later"}})
    yield "POST of a form", True, _http("form", http, 1.2, {"method": "POST", "data": {"name": "Ada"}})
    yield "GET with a browser's headers", True, _http("browser", http, 1.6, {"headers": "auto"})
    yield "a receiver that answers 500", False, _http("broken receiver", http + "broken", 1.0, {})
    data: Any = {"to": "a socket", "n": [1, 2, 3]}
    yield "JSON to a socket", True, _task("socket", "socket", place, 1.4, data)
    yield "a line to a pipe", True, _task("pipe", "pipe", "orders", 1.8, {"data": {"order": 7}})
    yield "a pipe that nobody reads", False, _task("unread", "pipe", "nobody", 2.0, {"data": 1})
    yield "the last, half a second after the others", True, _http("last", http, _LONGEST_DELAY, {})


def _broken() -> list[dict[str, Any]]:
    good = _http("x", "http://127.0.0.1/", 1.0, {})
    return [
        {"title": "no address", "settings": {"time": 1}},
        {**good, "settings": {"time": -5}},
        {**good, "address": {"type": "http", "link": "ftp://example.org"}},
        _task("escape", "pipe", "../etc/passwd", 1.0, {"data": 1}),
        {**good, "settings": {"time": 1, "dta": {}}},
    ]


def _http(title: str, link: str, delay: float, data: dict[str, Any]) -> dict[str, Any]:
    return _task(title, "http", link, delay, data)


def _task(title: str, kind: str, link: str, delay: float, data: Any) -> dict[str, Any]:
    return {"title": title, "address": {"type": kind, "link": link}, "settings": {"time": delay, "data": data}}


class _Receivers:
    """Where the demo's tasks go: an HTTP server, a socket and a pipe, each noting what it got."""

    def __init__(self, http: str, socket: str) -> None:
        self.http = http
        self.socket = socket
        self.requests = 0
        self.texts: list[bytes] = []
        self.lines: list[bytes] = []


@contextmanager
def _receivers(pipes: Path) -> Iterator[_Receivers]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536  # one packet an answer

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            found.requests += 1
            status = 500 if self.path.startswith("/broken") else 200
            said = {"method": self.command, "path": self.path, "got": body.decode()}
            answer = json.dumps(said if status == 200 else {"error": "this receiver is out of order"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815  # the name is http.server's

        def log_message(self, format: str, *args: Any) -> None:
            """The demo says what is worth saying."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener = socket.create_server(("127.0.0.1", 0))
    found = _Receivers(f"http://127.0.0.1:{server.server_port}/", f"127.0.0.1:{listener.getsockname()[1]}")
    for name in ("orders", "nobody"):
        os.mkfifo(pipes / name)
    reader = os.open(pipes / "orders", os.O_RDWR)  # open for both, so that reading waits for the first writer
    for target, arguments in (
        (server.serve_forever, ()),
        (_serve_socket, (listener, found)),
        (_serve_pipe, (reader, found)),
    ):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        listener.close()
        os.write(reader, b"\n")  # lets the reading thread see its end


def _serve_socket(listener: socket.socket, found: _Receivers) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            text = b""
            while chunk := connection.recv(65_536):
                text += chunk
            found.texts.append(text)
            connection.sendall(b"the socket got %d bytes" % len(text))


def _serve_pipe(reader: int, found: _Receivers) -> None:
    while (line := os.read(reader, 65_536)) != b"\n":
        found.lines.append(line)
    os.close(reader)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    if not isinstance(port, int):
        raise QTaskError("this machine gives no free port")
    return port


def _say(words: str) -> None:
    click.echo(words)


def _head(words: str) -> None:
    click.echo()
    click.secho(words, bold=True)
