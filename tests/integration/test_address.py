"""Addresses of Redis and of gateways: an error about an address never contains a password."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from qtask import AsyncClient, Client, QTaskError
from qtask.config import load
from qtask.model.errors import ConfigError
from qtask.model.redis_address import parse, secrets_of, without_password
from qtask.store.connect import connect, connect_async, reason_of
from tests.support.command import qtask
from tests.support.processes import Process
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

ENCODE = "percent-encode the user and the password"
BROKEN = [
    ("redis://:S3cret/pw@127.0.0.1:6379/0", ENCODE),
    ("redis://user:S3cret?pw@127.0.0.1/0", ENCODE),
    ("redis://user:S3cret#pw@127.0.0.1/0", ENCODE),
    ("redis://user:pw@S3cret/pw@127.0.0.1/0", ENCODE),
    ("redis://user:S3%zzcret@127.0.0.1", ENCODE),
    ("redis://user:100%S3cret@127.0.0.1", ENCODE),
    ("redis://:S3cret@127.0.0.1:port/0", "a port from 1 to 65535"),
    ("redis://:S3cret@127.0.0.1:70000/0", "a port from 1 to 65535"),
    ("redis://:S3cret@[::1/0", "host and port must be HOST:PORT"),
    ("redis://user:S3cret", "host and port must be HOST:PORT"),
    ("redis://:S3cret@127.0.0.1/first", "the database must be a number"),
    ("redis://:S3cret@127.0.0.1/0\n", "line breaks"),
    ("redis://:S3 cret@127.0.0.1/0", "blanks"),
    ("rediss://:S3cret@127.0.0.1/0?ssl_cert_reqs=S3cret", "options are unknown"),
    ("rediss://:S3cret@127.0.0.1/0?pass=S3cret", "options are unknown or have invalid values: pass"),
    ("redis://127.0.0.1/0?db=S3cret", "options are unknown or have invalid values: db"),
    ("unix://?password=S3cret", "unix:// is followed by an absolute path"),
    ("unix://:S3/cret@/run/redis.sock", ENCODE),
    ("unix://user:S3cret/run/redis.sock", "unix:// is followed by an absolute path"),
    ("redis+sentinel://:S3cret@127.0.0.1:26379", "does not name the service"),
    ("redis+sentinel://:S3cret@/mymaster/0", "names no sentinels"),
    ("redis+sentinel://:S3cret@127.0.0.1/mymaster/S3cret", "the database must be a number"),
    ("redis+sentinel://:S3cret@127.0.0.1:port/mymaster", "a port from 1 to 65535"),
    ("redis+sentinel://:S3cret@127.0.0.1/mymaster?password=S3cret", "sentinel_password is known"),
    ("redis+sentinel://127.0.0.1/mymaster?sentinel_password=S3@cret", ENCODE),
    ("ftp://:S3cret@127.0.0.1", "it must begin with redis://"),
    (":S3cret@127.0.0.1:6379", "it must begin with redis://"),
]


@pytest.mark.parametrize(("url", "words"), BROKEN)
def test_unusable_redis_address_is_refused_without_its_password(url: str, words: str) -> None:
    for make in (connect, connect_async):
        with pytest.raises(ConfigError) as error:
            make(url)
        assert words in str(error.value) and "is not the address of a Redis" in str(error.value)
        assert "S3" not in str(error.value) and "cret" not in str(error.value)
        assert error.value.__context__ is None or error.value.__suppress_context__, "a traceback would show the cause"


@pytest.mark.parametrize("url", [url for url, _ in BROKEN])
@pytest.mark.slow
def test_commands_and_clients_keep_the_redis_address_secret(url: str) -> None:
    results = [
        qtask("list", "--redis", url),
        qtask("send", "--http", "http://127.0.0.1/", "--redis", url),
        qtask("doctor", environment={"QTASK_REDIS_URL": url}),
        qtask("worker", environment={"QTASK_REDIS_URL": url}),
    ]
    for result in results:
        assert result.returncode == 1
        assert "S3" not in result.stdout + result.stderr and "cret" not in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
    for kind in (Client, AsyncClient):
        with pytest.raises(QTaskError) as error:
            kind(url)
        assert "S3" not in str(error.value) and "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["socket://u:S3cret/x@h:1", "socket://u:S3cret@h:port", "socket://u:[S3cret]@h", "ws://u:S3cret@h"]
)
def test_unusable_gateway_address_is_refused_without_its_password(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ConfigError) as error:
            kind(url)
        assert "S3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "plain", "password"),
    [
        ("redis://:p%40ss%2Fw%25rd@a:1/0", "redis://a:1/0", "p@ss/w%rd"),
        ("redis://:p@ss@a:1/0", "redis://a:1/0", "p@ss"),
        ("redis://:[pass]@[::1]:1/2", "redis://[::1]:1/2", "[pass]"),
        ("redis://:p℀ss@a", "redis://a", "p℀ss"),
        ("rediss://user:pw@a?ssl_cert_reqs=none", "rediss://a", "pw"),
        ("unix:///run/user@1000/redis.sock?password=x", "unix:///run/user@1000/redis.sock", ""),
        ("unix://:pw@/run/redis.sock", "unix:///run/redis.sock", "pw"),
        ("redis+sentinel://u:pw@a,b:2/m/1?sentinel_password=x", "redis+sentinel://a,b:2/m/1", "pw"),
    ],
)
def test_usable_addresses_are_parsed(url: str, plain: str, password: str) -> None:
    address = parse(url)
    assert (address.plain, address.password, without_password(url)) == (plain, password, plain)
    assert parse(address.url) == address
    connect(url).close()
    connect_async(url)


@pytest.mark.parametrize("password", ["p@ss:w/rd#?&%", "[pässword]", "a b℀", "100%"])
def test_any_percent_encoded_password_works(tmp_path: Path, password: str) -> None:
    server = RedisServer(tmp_path, password=password)
    try:
        with connect(server.url) as redis:
            assert redis.ping()
        assert secrets_of(server.url)[-1] and quote(password, safe="") in secrets_of(server.url)
    finally:
        server.kill()


def test_messages_of_redis_py_are_masked() -> None:
    words = (
        "No master found for 'm' : <redis.client.Redis(<redis.connection.ConnectionPool(<redis.connection.Connection"
        "(password=S3cret,retry=<redis.retry.Retry object at 0x7f>,host=a,port=1)>)>)> - TimeoutError('Timeout')"
    )
    assert reason_of(Exception(words)) == "No master found for 'm' : TimeoutError('Timeout')"
    assert reason_of(Exception("bad S3cret/pw"), "redis://:S3cret%2Fpw@a") == "bad ***"


def test_setting_of_a_wrong_type_is_not_repeated_in_the_error(tmp_path: Path) -> None:
    file = tmp_path / "qtask.toml"
    file.write_text('redis_url = ["redis://:S3cret@127.0.0.1"]\n')
    with pytest.raises(ConfigError) as error:
        load(environment={}, file=file)
    assert "redis_url in" in str(error.value) and "must be text, got list" in str(error.value)
    assert "S3cret" not in repr(load({"redis_url": "redis://:S3cret@a"}, environment={}))


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gateway", "scheduler", "worker"])
@pytest.mark.parametrize("wrong", ["password", "port"])
def test_log_of_a_process_without_redis_holds_no_password(tmp_path: Path, name: str, wrong: str) -> None:
    server = RedisServer(tmp_path, password="another")
    port = server.port if wrong == "password" else free_port()
    environment = {
        "QTASK_REDIS_URL": f"redis://:S3cret-word@127.0.0.1:{port}/0",
        "QTASK_PORT": "0",
        "QTASK_HTTP_PORT": "0",
        "QTASK_LOG_LEVEL": "debug",
    }
    process = Process(name, environment, tmp_path / "log")
    try:
        until(lambda: "redis_away" in process.log.read_text() or not process.running, what="the complaint")
    finally:
        process.kill()
        server.kill()
    assert "S3cret" not in process.log.read_text()


def test_errors_of_clients_with_a_wrong_password_hold_no_password(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password="another")
    url = f"redis://:S3cret-word@127.0.0.1:{server.port}/0"
    task = {"title": "t", "address": {"type": "http", "link": "http://a/"}, "settings": {"time": 0}}

    async def send() -> None:
        async with AsyncClient(url) as client:
            await client.send(task)

    try:
        with Client(url) as client, pytest.raises(QTaskError) as first:
            client.send(task)
        with pytest.raises(QTaskError) as second:
            asyncio.run(send())
        results = [qtask(*command, "--redis", url) for command in (["list"], ["send", "--http", "http://a/"])]
    finally:
        server.kill()
    for text in (str(first.value), str(second.value), *(result.stdout + result.stderr for result in results)):
        assert "password" in text and "S3cret" not in text


def test_processes_of_up_do_not_have_the_address_among_their_arguments(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", password="S3cret-word")
    environment = {
        "QTASK_REDIS_URL": server.url,
        "QTASK_DATA_DIR": str(tmp_path / "data"),
        "QTASK_PORT": "0",
        "QTASK_HTTP_PORT": "0",
    }
    process = Process("up", environment, tmp_path / "log")
    try:
        until(lambda: '"ready"' in process.log.read_text() or not process.running, 30, "it to be ready")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 3
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in [str(process.pid), *children]]
    finally:
        process.stop(30)
        server.kill()
    assert not any(b"S3cret" in command for command in commands)
    assert "S3cret" not in process.log.read_text()


CRASH = """
from qtask.observe import log
from qtask.config import Config
log.setup(Config(redis_url="redis://:S3cret%2Fword@127.0.0.1", log_format="{format}"), "worker")
log.logger.warning("redis_away", extra={{"error": "S3cret/word is wrong at http://user:pass@host/?token=abc\\x1b[2J"}})
raise RuntimeError("S3cret%2Fword S3cret/word \\x1b[2J")
"""


@pytest.mark.parametrize("format", ["json", "human"])
def test_events_and_crash_traces_hold_no_secret(format: str) -> None:
    code = CRASH.format(format=format)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "crashed" in result.stderr and "RuntimeError: *** ***" in result.stderr
    assert "redis_away" in result.stderr and "http://***@host/?token=***" in result.stderr
    assert not any(secret in result.stderr.replace(code, "") for secret in ("S3cret", "pass@", "abc", "\x1b[2J"))
    if format == "json":
        assert [json.loads(line)["event"] for line in result.stderr.splitlines()] == ["redis_away", "crashed"]
