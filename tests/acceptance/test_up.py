"""`qtask up`: it runs, restarts its processes, stops cleanly, keeps its data and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from redis import Redis

from qtask.client import Client
from qtask.model.errors import QTaskError
from qtask.store import keys
from tests.support.command import qtask, refused
from tests.support.installation import Installation, kill, processes_of
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with two workers, whose processes tests may kill: it restarts them."""
    with Installation(tmp_path_factory.mktemp("up"), "--workers", "2") as running:
        yield running


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def deliver(installation: Installation, receiver: Receiver, what: str) -> None:
    """Sends a task until it is accepted, and waits until it has arrived."""

    def accepted() -> bool:
        try:
            with Client(installation.url) as client:
                return bool(client.http(receiver.url + what).id)
        except QTaskError:
            return False

    until(accepted, 30, "a gateway that accepts", every=0.1)
    until(lambda: f"/{what}" in [request.target for request in receiver.requests], 30, "the delivery")


def test_up_runs_each_process_and_logs_it(installation: Installation, receiver: Receiver) -> None:
    assert sorted(installation.children().values()) == ["gateway", "redis", "scheduler", "worker", "worker"]
    ready = installation.wait_for("ready")
    assert ready["workers"] == 2
    assert ready["redis"] == f"unix://{installation.data_dir}/redis.sock"
    deliver(installation, receiver, "first")
    assert (installation.data_dir / "pipes").is_dir()


@pytest.mark.parametrize("name", ["gateway", "scheduler", "worker", "redis"])
def test_dead_process_is_restarted(installation: Installation, receiver: Receiver, name: str) -> None:
    before = installation.children()
    old = installation.child(name)
    kill(old)
    deliver(installation, receiver, f"after-{name}")
    until(lambda: sorted(installation.children().values()) == sorted(before.values()), 30, "all processes again")
    assert old not in installation.children()
    event = "redis_died" if name == "redis" else "process_died"
    died = [one for one in installation.events() if one["event"] == event and one.get("child", "redis") == name]
    assert len(died) == 1
    assert died[0]["ended"] == "SIGKILL"
    if name == "redis":
        assert 0 < len(died[0]["log"]) <= 5 and "eady to accept connections" in " ".join(died[0]["log"])


def test_no_process_imports_what_it_does_not_run(installation: Installation) -> None:
    for pid, name in installation.children().items():
        mapped = Path(f"/proc/{pid}/maps").read_text()
        assert "matplotlib" not in mapped and "numpy" not in mapped, name
        assert ("pycurl" in mapped) <= (name == "worker"), name


def test_stop_leaves_no_process_and_the_next_start_continues(tmp_path: Path, receiver: Receiver) -> None:
    with Installation(tmp_path) as first:
        with Client(first.url) as client:
            waiting = client.http(receiver.url + "waited", delay=3_600).id
        assert processes_of(tmp_path) == {first.process.pid, *first.children()}
        assert first.process.stop() == 0
    assert processes_of(tmp_path) == set()
    assert receiver.requests == []
    with Installation(tmp_path) as second:
        assert second.redis.zadd(keys.SCHEDULE, {waiting: time.time()}, xx=True, ch=True) == 1  # due now
        (request,) = receiver.wait_for(1)
        assert request.target == "/waited"
        assert Client(f"unix://{second.data_dir}/redis.sock").show(waiting).title == f"http {receiver.url}waited"
        assert second.process.stop() == 0


@pytest.mark.slow
def test_killed_up_ends_all_processes_and_the_next_start_continues(tmp_path: Path, receiver: Receiver) -> None:
    with Installation(tmp_path) as first:
        with Client(first.url) as client:
            client.http(receiver.url + "waited", delay=1.5)
        first.process.kill()
    with Installation(tmp_path) as second:  # at once: it waits for the old Redis to end
        receiver.wait_for(1)
        current = {second.process.pid, *second.children()}
        assert len(current) == 1 + 4
        until(lambda: processes_of(tmp_path) == current, 30, "no orphan")


def test_second_signal_does_not_wait_for_deliveries(tmp_path: Path) -> None:
    def never(exchange: Exchange) -> None:
        hanging.closing.wait(60)

    with Receiver(never) as hanging, Installation(tmp_path) as running:
        with Client(running.url) as client:
            client.http(hanging.url + "hangs")
        hanging.wait_for(1)
        worker = running.child("worker")
        running.process.signal(signal.SIGTERM)
        until(lambda: "gateway" not in running.children().values(), what="the end of the gateway")
        assert worker in running.children(), "after one signal it waits for the delivery in flight"
        running.process.signal(signal.SIGTERM)
        assert running.process.stop() == 0
        events = running.events()
        (stopped,) = [event for event in events if (event["process"], event["event"]) == ("worker", "stopped")]
        assert stopped["given_back"] == 1
        assert "process_killed" not in [event["event"] for event in events]


def test_up_with_a_given_redis_starts_none(
    redis: Redis, redis_server: RedisServer, tmp_path: Path, receiver: Receiver
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'redis_url = "{redis_server.url}"\nqueue = "of-the-file"\n')
    other = {"QTASK_CONFIG": str(tmp_path / "absent.toml")}  # overridden by the flag, for the children as well
    with Installation(tmp_path, "--config", str(file), environment=other) as running:
        assert sorted(running.children().values()) == ["gateway", "scheduler", "worker"]
        deliver(running, receiver, "there")
        assert redis.smembers(keys.QUEUES) == {b"rq:queue:of-the-file"}
        assert running.wait_for("ready")["redis"] == redis_server.url


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_up_waits_for_a_redis_that_is_away_and_is_ready_when_it_answers(tmp_path: Path, receiver: Receiver) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    ports = {"--port": str(free_port()), "--http-port": str(free_port())}
    flags = ["--redis", server.url, *[word for pair in ports.items() for word in pair]]
    up = Process("up", {"QTASK_PIPE_DIR": str(tmp_path / "pipes")}, tmp_path / "up.log", *flags)

    def own(name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in up.log.read_text().splitlines()]
        return [line for line in lines if (line["process"], line["event"]) == ("up", name)]

    try:
        (waiting,) = until(lambda: own("waiting_for_redis"), 30, "the event")
        assert waiting["redis"] == server.url and "refused" in waiting["error"]
        time.sleep(2.5)  # for two more checks, which find nothing new
        assert len(own("waiting_for_redis")) == 1 and not own("ready") and up.running
        server.start()
        until(lambda: own("ready"), 30, "it to be ready")
        with Client(f"socket://127.0.0.1:{ports['--port']}") as client:
            client.http(receiver.url)
        receiver.wait_for(1)
        assert up.stop() == 0
    finally:
        if up.running:
            up.kill()
        server.kill()


def test_up_that_waits_for_redis_stops_on_a_signal(tmp_path: Path) -> None:
    flags = ["--redis", f"redis://127.0.0.1:{free_port()}/0", "--port", "0", "--http-port", "0"]
    up = Process("up", {"QTASK_PIPE_DIR": str(tmp_path / "pipes")}, tmp_path / "up.log", *flags)
    until(lambda: "waiting_for_redis" in up.log.read_text(), 30, "it to wait")
    assert up.stop() == 0


def test_redis_that_rejects_the_password_ends_it(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, password="right")
    try:
        url = f"redis://:wrong@127.0.0.1:{server.port}/0"
        flags = ["--redis", url, "--port", "0", "--http-port", "0", "--pipe-dir", str(tmp_path / "pipes")]
        result = qtask("up", *flags)
    finally:
        server.kill()
    assert result.returncode == 1
    last = json.loads(result.stderr.splitlines()[-1])
    words = f"the Redis at redis://127.0.0.1:{server.port}/0 rejects the user or the password: "
    assert last["event"] == "failed" and last["error"].startswith(words)
    assert '"ready"' not in result.stderr and "wrong@" not in result.stderr


# --- error messages ----------------------------------------------------------------------------------------------


def failed(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """The error in the only event of a `qtask up` that cannot start."""
    event: dict[str, Any] = json.loads(refused(qtask("up", *arguments, environment=environment)))
    assert (event["level"], event["event"]) == ("error", "failed")
    return str(event["error"])


def test_ipv6_host_is_in_brackets_in_logged_addresses(tmp_path: Path) -> None:
    with Installation(tmp_path, "--host", "::1") as running:
        ready = running.wait_for("ready")
        with urlopen(f"{ready['http']}/health", timeout=30) as answer:
            assert answer.status == 200
        with Client(f"socket://{ready['socket']}") as client:
            assert client.udp("127.0.0.1:9", 1, delay=3600).id


def test_folder_in_use_is_reported(installation: Installation) -> None:
    words = failed("--data-dir", str(installation.data_dir), "--port", "0", "--http-port", "0")
    assert words == f"another qtask already uses the folder {installation.data_dir}; choose another with --data-dir"


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_port_in_use_is_reported(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ports = {"--port": str(free_port()), "--http-port": str(free_port()), flag: port}
        words = failed("--data-dir", str(tmp_path), *[word for pair in ports.items() for word in pair])
    assert (
        words
        == f"the gateway cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with {flag}"
    )
    assert not (tmp_path / "redis.log").exists(), "nothing was started"


def test_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = failed("--port", "0", "--http-port", "0", "--data-dir", str(tmp_path / "file"))
    assert words == f"the pipe folder {tmp_path}/file/pipes cannot be made: Not a directory"


def test_invalid_address_is_reported_once(tmp_path: Path) -> None:
    words = failed("--port", "0", "--http-port", "0", "--data-dir", str(tmp_path), "--redis", "no-address")
    assert words.startswith("'…' is not the address of a Redis: it must begin with redis://")


def test_process_that_does_not_start_ends_up(tmp_path: Path) -> None:
    """With a broken installation: the gateway cannot be imported."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('this uvloop is broken')\n")
    flags = ["--port", "0", "--http-port", "0", "--data-dir", str(tmp_path / "data")]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = qtask("up", *flags, environment={"PYTHONPATH": path})
    assert result.returncode == 1
    assert "ImportError: this uvloop is broken" in result.stderr
    last = json.loads(result.stderr.splitlines()[-1])
    assert (last["event"], last["error"]) == ("failed", "the gateway did not start; see its output above")
    assert processes_of(tmp_path) == set()
