"""`qtask health` for the processes of this host or container, with and without Redis."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qtask.config import Config
from qtask.process import heartbeat
from qtask.process.heartbeat import Heartbeat, troubles
from tests.support.command import qtask
from tests.support.gateway_process import Gateway
from tests.support.live import Live, children
from tests.support.processes import Process
from tests.support.redis_server import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.slow

HANGS_SECONDS = 30.0  # limit within which a hanging process must be detected


def look(url: str, process: str, queue: str, *flags: str) -> tuple[int, str]:
    result = qtask("health", process, "--redis", url, "--queue", queue, *flags)
    assert result.stderr == ""
    return result.returncode, result.stdout


def unhealthy(url: str, process: str, queue: str, *flags: str) -> str:
    """The output about an unhealthy process; empty while all are healthy."""
    code, words = look(url, process, queue, *flags)
    return words if code else ""


def fine(live: Live, process: str, queue: str) -> str:
    """The output when all are healthy; empty while one is not."""
    code, words = look(live.url, process, queue)
    return "" if code else words


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(240)
def test_hanging_process_is_unhealthy_and_others_are_not(live: Live, tmp_path: Path) -> None:
    """In one test, because a process must be silent for a while."""
    workers = [live.start("worker", queue="two") for _ in range(2)]
    live.start("worker", queue="other")
    scheduler = live.start("scheduler", queue="of-schedulers")
    several = live.start("worker", queue="several", processes=3)
    until(lambda: several.log.read_text().count('"event": "working"') == 3, 30, "three workers to work")
    lonely = live.start("worker", queue="lonely", processes=2)
    until(lambda: lonely.log.read_text().count('"event": "working"') == 2, 30, "two workers to work")
    one_of_several = children(several.pid)[1]
    with Gateway(live.url, tmp_path) as gateway:
        flags = ["--port", str(gateway.port)]
        assert fine(live, "worker", "two") == "ok    2 worker processes are alive\n"
        assert fine(live, "worker", "several") == "ok    4 worker processes are alive\n", "including their supervisor"
        assert fine(live, "scheduler", "of-schedulers") == "ok    1 scheduler is alive\n"
        assert look(live.url, "gateway", "qtask", *flags)[0] == 0
        with frozen(workers[0].pid, scheduler.pid, one_of_several, lonely.pid, gateway.process.pid):
            assert unhealthy(live.url, "gateway", "qtask", *flags)
            for process, queue, role, pid in [
                ("worker", "two", "worker", workers[0].pid),
                ("worker", "several", "worker", one_of_several),
                ("worker", "lonely", "supervisor of 2 workers", lonely.pid),
                ("scheduler", "of-schedulers", "scheduler", scheduler.pid),
            ]:
                words = until(
                    lambda process=process, queue=queue: unhealthy(live.url, process, queue),  # type: ignore[misc]
                    HANGS_SECONDS,
                    f"the {process} to be unhealthy",
                    every=0.5,
                )
                said = rf"BAD   the {role} with process id {pid} hangs: no heartbeat for \d+ s\n .*"
                assert re.match(said, words) and words.count("hangs") == 1, words
            assert fine(live, "worker", "other"), "a healthy worker on the same host"
        until(lambda: fine(live, "worker", "two") and fine(live, "scheduler", "of-schedulers"), 30, "life", every=0.5)
    workers[0].kill()
    assert fine(live, "worker", "two") == "ok    1 worker is alive\n", "a killed process does not count as hanging"
    workers[1].stop()
    assert "no worker for queue two of" in unhealthy(live.url, "worker", "two")


@pytest.mark.timeout(240)
def test_each_container_sees_its_own_processes(live: Live) -> None:
    """Two workers, each in its own process namespace as in a container, but with the same temporary folder."""
    enter = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("process namespaces cannot be made here")
    environment = {**os.environ, **live.environment, "QTASK_QUEUE": "contained"}
    containers = [
        subprocess.Popen([*enter, sys.executable, "-m", "qtask", "worker"], env=environment, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]

    def health(container: subprocess.Popen[bytes]) -> bool:
        (inside,) = children(container.pid)
        command = ["nsenter", "-t", str(inside), "--pid", "--mount", sys.executable, "-m", "qtask", "health", "worker"]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0

    try:
        for container in containers:
            until(lambda container=container: children(container.pid) and health(container), 30, every=0.2)  # type: ignore[misc]
        assert not fine(live, "worker", "contained"), "the host sees neither of them"
        with frozen(*children(containers[0].pid)):
            until(lambda: not health(containers[0]), HANGS_SECONDS, "the frozen one to be ill", every=0.5)
            assert health(containers[1])
    finally:
        for container in containers:
            container.kill()
            container.wait()


@pytest.mark.parametrize("name", ["gateway", "scheduler", "worker"])
def test_process_that_waits_for_redis_is_healthy(tmp_path: Path, name: str) -> None:
    """An orchestrator that restarted it would lose the outcomes that a worker keeps until Redis is back."""
    url, port = f"redis://127.0.0.1:{free_port()}/0", str(free_port())
    environment = {"QTASK_REDIS_URL": url, "QTASK_PORT": port, "QTASK_HTTP_PORT": "0"}
    process = Process(name, environment, tmp_path / "log")
    try:
        until(lambda: look(url, name, "qtask", "--port", port)[0] == 0, 30, "a process that is well", every=0.3)
    finally:
        process.kill()
    assert unhealthy(url, name, "qtask", "--port", port)


def test_supervisor_reports_a_worker_that_does_not_run() -> None:
    config = Config(redis_url="redis://nobody/1")
    heart = Heartbeat("worker", config, "supervisor of 2 workers")
    try:
        heart.beat("1 of 2 workers do not run")
        said = [f"the supervisor of 2 workers with process id {os.getpid()}: 1 of 2 workers do not run"]
        assert troubles("worker", config.redis, config.queue) == (1, said)
        assert troubles("worker", config.redis, "another") == (0, [])
        assert troubles("scheduler", config.redis, config.queue) == (0, [])
    finally:
        heart.close()
    assert troubles("worker", config.redis, config.queue) == (0, [])


def test_deleted_heartbeat_file_is_created_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(redis_url="redis://nobody/2")
    heart = Heartbeat("worker", config)
    try:
        heart.beat()
        (path,) = heartbeat._private_folder().glob(heartbeat._prefix("worker", config.redis, config.queue) + "*")
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
        heart._beat_at = 0.0
        heart.beat()
        assert path.exists()
        assert troubles("worker", config.redis, config.queue) == (1, [])
    finally:
        heart.close()
