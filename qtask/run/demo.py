"""`qtask demo`: shows all of QTask in a few seconds, with its own Redis and its own receivers."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
from redis import Redis

from qtask.client import Accepted, Client
from qtask.config import Config
from qtask.model.errors import QTaskError, Refused
from qtask.model.record import TaskRecord
from qtask.model.timing import format_duration
from qtask.observe.tables import outcome_answer, outcome_words, plain
from qtask.process.stopping import StopSignals
from qtask.run.up import Stack
from qtask.store import graphs, tasks

WAIT_SECONDS = 20.0
CROWD = 100
_LONGEST_DELAY = 2.5
_WIDTH = 98  # characters of a line of output


def run(output: Path) -> int:
    """Runs the demonstration and writes the graph; returns 0 if every task ended as expected."""
    folder = Path(tempfile.mkdtemp(prefix="qtask-demo-"))
    signals = StopSignals()

    def interrupt() -> None:
        raise KeyboardInterrupt

    signals.listen(interrupt)
    try:
        return _Demo(folder, output).run()
    except KeyboardInterrupt:
        click.echo("\nstopped")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Expected:
    """A task of the demo, and whether it should be delivered."""

    what: str
    due: float
    delivered: bool = True
    crowd: bool = False


class _Demo:
    def __init__(self, folder: Path, output: Path) -> None:
        self._output = output
        config = Config(data_dir=str(folder), port=0, http_port=0, workers=2, log_level="error")
        self._stack = Stack(config)
        self._expected: dict[str, _Expected] = {}

    def run(self) -> int:
        click.echo("Starting Redis, a gateway, a scheduler and two workers, each as a separate process …")
        try:
            self._stack.start()
            config = self._stack.config
            redis = Redis.from_url(self._stack.redis_url)
            with (
                _receivers(config.pipes) as receivers,
                Client(f"socket://{config.host}:{config.port}") as client,
            ):
                click.echo(
                    f"The gateway listens on {config.host}:{config.port}. Receivers of this demo wait for deliveries."
                )
                self._submit(client, receivers)
                self._submit_broken(client)
                records = self._watch(redis)
                self._print(records)
                drawn = self._graph(client, redis)
            return self._verdict(records, receivers, drawn)
        finally:
            self._stack.stop()

    def _submit(self, client: Client, receivers: _Receivers) -> None:
        _head("Tasks are submitted over the socket")
        for what, delivered, task in _tasks(receivers):
            accepted = client.send(task)
            self._expected[accepted.id] = _Expected(what, accepted.due, delivered)
            click.echo(f"  {accepted.id}  {what:38}  due in {task['settings']['time']:g} s")
        crowd = [_http(f"crowd {n}", receivers.http, 0.2 + n * 0.02, {"json": {"n": n}}) for n in range(CROWD)]
        for answer in client.send_many(crowd):
            assert isinstance(answer, Accepted)
            self._expected[answer.id] = _Expected("one of a crowd", answer.due, crowd=True)
        click.echo(f"  … and a crowd of {CROWD} in one batch: one due every 20 ms")

    def _submit_broken(self, client: Client) -> None:
        _head("Invalid dicts are refused with a reason")
        for broken in _broken():
            try:
                client.send(broken)
            except Refused as refused:
                words = f"{refused.code:14} {refused}"
                click.echo(textwrap.fill(words, _WIDTH, initial_indent="  ", subsequent_indent=" " * 17))
            else:
                raise QTaskError(f"this dict should have been refused: {broken}")

    def _watch(self, redis: Redis) -> list[TaskRecord]:
        _head("Tasks wait in Redis until they are due")
        began = time.time()
        waiting = dict(self._expected)
        ended: list[TaskRecord] = []
        while waiting and time.time() < began + WAIT_SECONDS:
            time.sleep(0.05)
            for task_id, expected in list(waiting.items()):
                if expected.due > time.time():
                    continue
                record = tasks.show(redis, task_id)
                if record.state in ("delivered", "dead"):
                    del waiting[task_id]
                    ended.append(record)
                    if not expected.crowd:
                        late = format_duration(record.outcomes[0].lateness)
                        click.echo(f"  {_state(record)}  {expected.what:38}  {late:>7} after it was due")
        if waiting:
            click.echo(f"  {len(waiting)} tasks did not end within {WAIT_SECONDS:g} s")
        return ended

    def _print(self, records: list[TaskRecord]) -> None:
        _head("Results")
        heads = f"  {'id':12}  {'type':6}  {'lateness':>8}  {'duration':>8}  {'outcome':17}  answer"
        click.secho(heads, underline=True)
        for record in sorted(records, key=lambda record: record.due):
            if self._expected[record.id].crowd:
                continue
            outcome = record.outcomes[-1]
            late, took = format_duration(record.outcomes[0].lateness), format_duration(outcome.duration)
            words = click.style(f"{outcome_words(outcome):17}", fg=_colour(record))
            start = f"  {record.id:12}  {record.type:6}  {late:>8}  {took:>8}  "
            answer = _cut(plain(outcome_answer(outcome)), _WIDTH - len(start) - 19)
            click.echo(f"{start}{words}  {answer}")
        crowd = sorted(record.outcomes[0].lateness or 0.0 for record in records if self._expected[record.id].crowd)
        if crowd:
            middle, worst = format_duration(crowd[len(crowd) // 2]), format_duration(crowd[-1])
            click.echo(f"  … and the crowd of {len(crowd)}: lateness {middle} (median), {worst} (longest)")

    def _graph(self, client: Client, redis: Redis) -> bool:
        _head("A __graph__ task draws how punctual the deliveries were")
        task_id = client.graph().id
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            picture = graphs.read(redis, task_id)
            if picture is not None:
                try:
                    self._output.write_bytes(picture)
                except OSError as error:
                    raise QTaskError(f"{self._output} cannot be written: {error.strerror}") from None
                click.echo(f"  {self._output} ({len(picture) // 1024} KiB): open it")
                return True
            time.sleep(0.05)
        click.echo("  no graph was drawn")
        return False

    def _verdict(self, records: list[TaskRecord], receivers: _Receivers, drawn: bool) -> int:
        otherwise = [
            record.id for record in records if (record.state == "delivered") != self._expected[record.id].delivered
        ]
        early = [record.id for record in records if record.outcomes[-1].started < record.due]
        missing = set(self._expected) - {record.id for record in records}
        wanted = sum(1 for record in records if record.type == "http")
        received = receivers.requests >= wanted and receivers.lines and receivers.texts
        click.echo()
        if otherwise or early or missing or not received or not drawn:
            click.secho("Not as expected:", fg="red", bold=True)
            click.echo(f"{len(otherwise)} ended differently, {len(early)} were early, {len(missing)} did not end.")
            return 1
        click.secho(f"All {len(records)} tasks ended as expected, none before it was due.", fg="green", bold=True)
        click.echo("Next, run `qtask up` and send the first task of the README.")
        return 0


def _tasks(receivers: _Receivers) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    http, place = receivers.http, receivers.socket
    yield "GET with parameters", True, _http("get", http, 0.4, {"params": {"from": "qtask"}})
    yield "POST of JSON", True, _http("post", http, 0.8, {"method": "POST", "json": {"hello": "later"}})
    broken = _http("out of order", http + "broken", 1.0, {})
    yield "a receiver that answers 500, tried twice", False, _with(broken, retry={"backoff": [0.5]})
    yield "POST of a form", True, _http("form", http, 1.2, {"method": "POST", "data": {"name": "Ada"}})
    data: Any = {"to": "a socket", "n": [1, 2, 3]}
    yield "JSON to a socket", True, _task("socket", "socket", place, 1.4, data)
    yield "GET with the headers of a browser", True, _http("browser", http, 1.6, {"headers": "auto"})
    yield "a line to a pipe", True, _task("pipe", "pipe", "orders", 1.8, {"data": {"order": 7}})
    unread = _task("unread", "pipe", "nobody", 2.0, {"data": 1})
    yield "a pipe that nobody reads", False, _with(unread, retry={"attempts": 1})
    yield "the last one", True, _http("last", http, _LONGEST_DELAY, {})


def _broken() -> list[dict[str, Any]]:
    good = _http("x", "http://127.0.0.1/", 1.0, {})
    return [
        {"title": "no address", "settings": {"time": 1}},
        {**good, "settings": {"time": -5}},
        {**good, "address": {"type": "http", "link": "ftp://example.org"}},
        _task("escape", "pipe", "../etc/passwd", 1.0, {"data": 1}),
        {**good, "settings": {"time": 1, "dta": {}}},
    ]


def _with(task: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**task, "settings": {**task["settings"], **settings}}


def _http(title: str, link: str, delay: float, data: dict[str, Any]) -> dict[str, Any]:
    return _task(title, "http", link, delay, data)


def _task(title: str, kind: str, link: str, delay: float, data: Any) -> dict[str, Any]:
    return {"title": title, "address": {"type": kind, "link": link}, "settings": {"time": delay, "data": data}}


@dataclass
class _Receivers:
    """The receivers of the demo (an HTTP server, a socket and a pipe), and what they got."""

    http: str
    socket: str
    requests: int = 0
    texts: list[bytes] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)


@contextmanager
def _receivers(pipes: Path) -> Iterator[_Receivers]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65_536  # one packet per answer

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            found.requests += 1
            if self.path.startswith("/broken"):
                status, answer = 500, b"this receiver is out of order"
            else:
                status, answer = 200, f"got {self.command} {self.path} {body.decode()}".strip().encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815  # the name is http.server's

        def log_message(self, format: str, *args: Any) -> None:
            """Logs nothing: the demo prints what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener = socket.create_server(("127.0.0.1", 0))
    found = _Receivers(f"http://127.0.0.1:{server.server_port}/", f"127.0.0.1:{listener.getsockname()[1]}")
    for name in ("orders", "nobody"):
        os.mkfifo(pipes / name)
    reader = os.open(
        pipes / "orders", os.O_RDWR
    )  # open for reading and writing, so that reading waits for the first writer
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.05,)),
        threading.Thread(target=_serve_socket, args=(listener, found)),
        threading.Thread(target=_serve_pipe, args=(reader, found)),
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for a connection
        os.write(reader, b"\n")  # and the one that waits for a line
        for thread in threads:
            thread.join(5)
        server.server_close()
        listener.close()
        os.close(reader)


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


def _state(record: TaskRecord) -> str:
    return click.style(f"{record.state:9}", fg=_colour(record))


def _colour(record: TaskRecord) -> str:
    return "green" if record.state == "delivered" else "red"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _head(words: str) -> None:
    click.echo()
    click.secho(words, bold=True)
