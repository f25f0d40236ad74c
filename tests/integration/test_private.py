"""Private parts of other packages that QTask uses: each still exists and behaves as QTask needs.

A failure after an upgrade names the package, the change, and the module in qtask/private that depends on it.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import pkgutil
import re
import socket
import threading
from collections.abc import Iterator
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h11
import msgspec
import pytest
import requests
import rq_scheduler
import uvicorn
from packaging.requirements import Requirement
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.utils import utcformat
from rq.worker.base import BaseWorker

import qtask
from qtask.private import h11 as our_h11
from qtask.private import msgspec_messages as says
from qtask.private import redis_py, urllib3
from qtask.private import uvicorn as our_uvicorn
from qtask.private.rq import RegisteredWorker
from qtask.store.connect import connect, connect_async
from tests.integration.test_doctor import answering
from tests.support.documents import ROOT
from tests.support.receiver import Receiver
from tests.support.redis_server import RedisServer

PACKAGE = Path(qtask.__file__).parent


class relied_on:  # noqa: N801  # reads as a statement: with relied_on(…)
    """Fails the test with a sentence that names the package, the change, and the code of QTask that depends on it.

    Args:
        package: its name on PyPI.
        claim: the tested property of the package.
        use: the part of QTask that depends on it.
        module: in qtask/private.
    """

    def __init__(self, package: str, claim: str, use: str, module: str) -> None:
        place = f"see qtask/private/{module}.py"
        self._sentence = f"{package} {version(package)} has changed: {claim}. QTask's {use} relies on it; {place}"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            raise AssertionError(f"{self._sentence}: {type(error).__name__}: {error}") from error


# --- redis-py ----------------------------------------------------------------------------------------------------


def test_redis_py_connections_have_a_socket(redis_server: RedisServer) -> None:
    client = connect(redis_server.url)
    connection: Any = client.connection_pool.make_connection()
    connection.connect()
    with relied_on("redis", "a connection keeps its socket as `_sock`", "channel to Redis", "redis_py"):
        assert redis_py.socket_of(connection).getpeername()[1] == redis_server.port
    with relied_on("redis", "`read_response(disable_decoding=True)` gives bytes", "channel to Redis", "redis_py"):
        connection.send_packed_command([b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"], check_health=False)
        assert connection.read_response(disable_decoding=True) == b"hi"
    connection.disconnect()
    client.close()


def test_redis_py_pools_call_connect_before_each_use(redis_server: RedisServer) -> None:
    calls: list[str] = []

    class Base:
        def connect(self) -> None:
            calls.append("connect")
            super().connect()  # type: ignore[misc]

    client = Redis.from_url(redis_server.url)
    with relied_on("redis", "a pool calls `connect` before each use", "replacement of idle connections", "redis_py"):
        redis_py.set_connection_base(client, "Connection", Base)
        client.ping()
        once = len(calls)
        client.ping()
        assert 0 < once < len(calls)
    client.close()


async def _asyncio_connection(url: str) -> None:
    client: AsyncRedis = connect_async(url)
    connection: Any = client.connection_pool.make_connection()
    with relied_on("redis", "an asyncio connection has `_writer`", "cleanup after a fork", "redis_py"):
        assert redis_py.transport_of(connection) is None
        await connection.connect()
        transport = redis_py.transport_of(connection)
        assert transport is not None and isinstance(transport.get_extra_info("socket").fileno(), int)
    with relied_on("redis", "`can_read` says whether something was received", "check of kept connections", "redis_py"):
        assert not await redis_py.has_unread(connection)
        await connection.send_command("PING")
        await asyncio.sleep(0.1)
        assert await redis_py.has_unread(connection)
    await connection.disconnect()
    await client.aclose()


def test_redis_py_asyncio_connections_have_a_transport_and_a_buffer(redis_server: RedisServer) -> None:
    asyncio.run(_asyncio_connection(redis_server.url))


def test_redis_py_packs_commands_with_hiredis() -> None:
    with relied_on("redis", "`HiredisRespSerializer` packs a command", "gateway", "redis_py"):
        assert b"".join(redis_py.pack_command("GET", b"k", 1)) == b"*3\r\n$3\r\nGET\r\n$1\r\nk\r\n$1\r\n1\r\n"


def test_redis_py_error_texts_are_unchanged(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        relied_on(
            "redis", "a timeout while connecting says so in its text", "advice for a Redis that hangs", "redis_py"
        ),
    ):
        client = Redis(port=silent.getsockname()[1], socket_timeout=0.1, protocol=2)
        with pytest.raises(RedisTimeoutError) as late:
            client.execute_command("PING")
        assert redis_py.hangs_after_connecting(late.value)
        assert not redis_py.hangs_after_connecting(RedisTimeoutError("Timeout connecting to server"))
        assert "Timeout connecting to server" in inspect.getsource(importlib.import_module("redis.connection"))
    with (
        answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port,
        relied_on(
            "redis", "an answer that is not Redis's is an InvalidResponse or a Protocol Error", "advice", "redis_py"
        ),
    ):
        with pytest.raises(RedisError) as foreign:
            Redis(port=port, protocol=2, socket_timeout=30).ping()
        assert redis_py.is_no_redis(foreign.value)


# --- uvicorn and h11 -----------------------------------------------------------------------------------------------


def test_uvicorn_serves_on_sockets_and_has_the_connection_state() -> None:
    seen: list[tuple[bool, bool]] = []
    made: list[our_uvicorn.HttpConnection] = []

    class Seen(our_uvicorn.HttpConnection):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            made.append(self)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            seen.append((self.owes_an_answer, self.answer_has_begun))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((made[0].owes_an_answer, made[0].answer_has_begun))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def asked() -> bytes:
        protocol: Any = Seen
        server = uvicorn.Server(uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(our_uvicorn.serve(server, [listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            server.should_exit = True
            await asyncio.wait_for(serving, 10)
            writer.close()
        return answer

    with relied_on("uvicorn", "`Server._serve` and the `cycle` of a connection are there", "HTTP API", "uvicorn"):
        assert asyncio.run(asked()).startswith(b"HTTP/1.1 200")
        assert seen == [(True, False), (False, True)]
        for name in ("connections", "flow", "loop", "transport", "conn"):
            assert hasattr(made[0], name), name
        for name in ("send_400_response", "on_response_complete", "_unsupported_upgrade_warning", "eof_received"):
            assert callable(getattr(made[0], name)), name


def test_h11_allows_skipping_received_bytes() -> None:
    with relied_on("h11", "a connection keeps what it received in `_receive_buffer`", "HTTP API", "h11"):
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        our_h11.skip_received(connection, 4)
        assert connection.trailing_data[0].startswith(b"GET")
        assert isinstance(connection.next_event(), h11.Request)


# --- RQ and rq-scheduler -------------------------------------------------------------------------------------------


def test_rq_passes_errors_of_its_command_thread_to_the_worker(redis: Redis) -> None:
    with relied_on("rq", "`_pubsub_exception_handler` gets the errors of the command thread", "worker", "rq"):
        assert "exception_handler=self._pubsub_exception_handler" in inspect.getsource(BaseWorker.subscribe)
        ours = inspect.signature(RegisteredWorker._pubsub_exception_handler)
        assert list(ours.parameters) == list(inspect.signature(BaseWorker._pubsub_exception_handler).parameters)
    worker = RegisteredWorker(["q"], connection=redis)
    with relied_on("rq", "a worker has these attributes", "worker", "rq"):
        for name in ("key", "worker_ttl", "successful_job_count", "failed_job_count", "total_working_time"):
            assert hasattr(worker, name), name
        for name in ("register_birth", "register_death", "subscribe"):
            assert callable(getattr(worker, name)), name
        assert worker.pubsub_thread is None
    with relied_on("rq", "`utcformat` writes ISO 8601 in UTC with a Z", "doctor", "rq"):
        from datetime import UTC, datetime

        assert utcformat(datetime(2030, 1, 2, 3, 4, 5, 600_000, UTC)) == "2030-01-02T03:04:05.600000Z"


def test_rq_scheduler_has_the_methods_that_ours_overrides(redis: Redis) -> None:
    with relied_on("rq-scheduler", "the scheduler has these attributes", "scheduler", "__init__"):
        scheduler = rq_scheduler.Scheduler("q", connection=redis)
        for name in ("register_birth", "register_death", "heartbeat", "enqueue_job", "enqueue_at"):
            assert callable(getattr(scheduler, name)), name
        assert scheduler.scheduled_jobs_key == "rq:scheduler:scheduled_jobs"
        assert scheduler.key.startswith("rq:scheduler_instance:")


# --- urllib3, requests and http.client -----------------------------------------------------------------------------


def test_urllib3_opens_the_socket_and_reads_the_status_by_methods() -> None:
    class Plain(urllib3.Connection):
        def open_socket(self) -> socket.socket:
            return socket.create_connection((self.name_to_resolve, self.port), 5)

    with (
        Receiver() as receiver,
        relied_on(
            "urllib3",
            "`_new_conn`, `_dns_host` and http.client's `_read_status` are called",
            "requests transport",
            "urllib3",
        ),
    ):
        host, _, port = receiver.url.removeprefix("http://").rstrip("/").rpartition(":")
        connection = Plain(host, int(port), timeout=30)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        assert issubclass(Plain.response_class, urllib3.Response)
        connection.close()


def test_http_client_limits_header_fields_by_a_module_constant() -> None:
    import http.client

    kept = http.client._MAXHEADERS  # type: ignore[attr-defined]
    with relied_on("urllib3", "`http.client._MAXHEADERS` bounds header fields", "requests transport", "urllib3"):
        try:
            urllib3.allow_header_fields(3)
            lines = iter([b"A: 1\r\n", b"B: 1\r\n", b"C: 1\r\n", b"D: 1\r\n", b"\r\n"])
            with pytest.raises(http.client.HTTPException, match="got more than 3 headers"):
                http.client.parse_headers(_Lines(lines))  # type: ignore[call-overload]
        finally:
            urllib3.allow_header_fields(kept)


class _Lines:
    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readline(self, limit: int) -> bytes:
        return next(self._lines)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-name.invalid"])
def test_requests_error_shows_that_nothing_was_sent(host: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # not listening: connections are refused
        with pytest.raises(requests.exceptions.ConnectionError) as failed:
            requests.get(f"http://{host}:{bound.getsockname()[1]}/", timeout=30)
    with relied_on("requests", "urllib3's error is the `reason` of the first argument", "client over HTTP", "urllib3"):
        assert urllib3.was_not_sent(urllib3.cause_of(failed.value))


def test_requests_error_shows_that_something_was_sent() -> None:
    def hang_up(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(1_000)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        with pytest.raises(requests.exceptions.ConnectionError) as failed:
            requests.get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=30)
        thread.join()
    with relied_on("requests", "a connection that breaks later has another cause", "client over HTTP", "urllib3"):
        assert not urllib3.was_not_sent(urllib3.cause_of(failed.value))


# --- msgspec -------------------------------------------------------------------------------------------------------


class _Inner(msgspec.Struct, forbid_unknown_fields=True):
    number: int
    names: dict[str, int] = {}


class _Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: _Inner


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ('{"inner": {}}', says.MISSING, {"key": "number", "path": "$.inner"}),
        ('{"inner": {"number": 1, "x": 2}}', says.UNKNOWN, {"key": "x", "path": "$.inner"}),
        ('{"inner": {"number": "1"}}', says.EXPECTED, {"wanted": "int", "got": "str", "path": "$.inner.number"}),
        ('{"inner": {"number": 1, "names": {"a": "b"}}}', says.EXPECTED, {"path": f"$.inner.names{says.SOME_KEY}"}),
        ("[]", says.EXPECTED, {"wanted": "object", "got": "array", "path": None}),
        ('{"inner": 1} x', says.MALFORMED, {"what": says.TRAILING_CHARACTERS}),
        ("{1: 2}", says.MALFORMED, {"what": says.KEYS_MUST_BE_STRINGS, "position": "1"}),
        ('{"inner": 01}', says.MALFORMED, {"what": says.INVALID_NUMBER}),
        ('{"inner": +1}', says.MALFORMED, {"what": says.INVALID_CHARACTER, "position": "10"}),
    ],
)
def test_msgspec_error_texts_are_unchanged(text: str, pattern: re.Pattern[str], found: dict[str, Any]) -> None:
    with pytest.raises(msgspec.DecodeError) as wrong:
        msgspec.json.decode(text, type=_Outer)
    if pattern is says.MALFORMED:  # of a decoder without a type
        with pytest.raises(msgspec.DecodeError) as wrong:
            msgspec.json.decode(text)
    with relied_on("msgspec", f"to {text} it answers {pattern.pattern!r}", "reasons for refusals", "msgspec_messages"):
        match = pattern.fullmatch(str(wrong.value))
        assert match is not None, str(wrong.value)
        assert {name: match[name] for name in found} == found


# --- no other private parts ----------------------------------------------------------------------------------------


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "qtask."):
        if not module.name.startswith("qtask.private") and module.name != "qtask.__main__":
            yield module.name


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "private":
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_module_uses_private_attributes_of_other_packages() -> None:
    """Every private name that is read is one that QTask itself defines."""
    ours = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # documented: of named tuples, and os._exit
    used: list[tuple[str, str]] = []
    for path, tree in _sources():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    ours.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    ours.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self")):
                    ours.add(name)
                case ast.Attribute(attr=name):
                    used.append((name, f"{path}:{node.lineno}"))
                case ast.Call(
                    func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
                ):
                    used.append((name, f"{path}:{node.lineno}"))
    foreign = [f"{place} uses {name}" for name, place in used if _is_private(name) and name not in ours]
    assert foreign == [], "put it into a module of qtask/private, with a test in this file"


@pytest.mark.parametrize("name", sorted(_modules()))
def test_no_other_module_overrides_private_methods_of_other_packages(name: str) -> None:
    module = importlib.import_module(name)
    overridden = []
    for made in vars(module).values():
        if not inspect.isclass(made) or made.__module__ != name or issubclass(made, Enum):
            continue  # Python itself gives an enum methods with such names
        theirs = [base for base in made.__mro__ if not base.__module__.startswith("qtask")]
        for attribute, value in vars(made).items():
            if _is_private(attribute) and callable(value):
                overridden += [f"{made.__qualname__}.{attribute}" for base in theirs if attribute in vars(base)]
    assert overridden == [], "put it into a module of qtask/private, with a test in this file"


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-client.txt"])
def test_packages_with_used_private_parts_are_pinned_to_the_tested_minor_version(file: str) -> None:
    private = {"redis", "uvicorn", "h11", "rq", "rq-scheduler", "urllib3", "requests", "msgspec"}
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    wanted = {one.name: one for one in (Requirement(line) for line in lines if line)}
    for name in private & set(wanted):
        (specifier,) = wanted[name].specifier
        assert (specifier.operator, specifier.version.count(".")) == ("~=", 2), wanted[name]
        assert version(name) in wanted[name].specifier, f"{wanted[name]}, and not the {version(name)} of these tests"
