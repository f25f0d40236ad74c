"""A live QTask for tests: real processes on their own real Redis, each of which can be killed separately."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from redis import Redis
from rq import Worker

from qtask import Client
from qtask.client.protocol import Accepted
from qtask.model.record import TaskRecord
from qtask.store import keys, tasks
from tests.support.processes import Process
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

SECONDS = 100.0  # for a command that hangs; a picture is drawn with a low priority

_READY = {"worker": "working", "scheduler": "scheduling"}  # logged by each when it has started


class ProcessGroup:
    """Starts processes on an existing Redis; a context manager that ends them all.

    Args:
        url: of the Redis.
        redis: a client of it, which is closed at the end.
        folder: gets pipes and logs.
    """

    def __init__(self, url: str, redis: Redis, folder: Path) -> None:
        self.url = url
        self.redis = redis
        self.folder = folder
        self.pipes = folder / "pipes"
        self.pipes.mkdir()
        self._processes: list[Process | subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            if isinstance(process, subprocess.Popen):
                process.wait()
        self.redis.close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment with which every process, also one of RQ's, finds the Redis."""
        return {"QTASK_REDIS_URL": self.url, "QTASK_PIPE_DIR": str(self.pipes)}

    def start(self, name: str, environment: Mapping[str, str] | None = None, /, **settings: Any) -> Process:
        """Starts `qtask NAME`, and returns when it is ready; settings by field name."""
        given = {f"QTASK_{key.upper()}": str(value) for key, value in settings.items()}
        process = Process(name, {**self.environment, **given, **(environment or {})}, self._log(name))
        self._processes.append(process)
        ready = f'"event": "{_READY[name]}"'
        until(lambda: ready in process.log.read_text() or not process.running, what=f"the {name} to begin")
        assert process.running, process.log.read_text()
        return process

    def program(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a program of the virtual environment that keeps running, such as `rqscheduler`."""
        with self._log(command[0]).open("wb") as output:
            process = subprocess.Popen(
                _found(command),
                env={**os.environ, **self.environment},
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def command(self, *command: str) -> str:
        """Runs a program of the virtual environment, such as `rq info`, to its end, and returns its output."""
        done = subprocess.run(
            _found(command),
            env={**os.environ, **self.environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def client(self, queue: str = "qtask") -> Client:
        """A client directly on its Redis."""
        return Client(self.url, queue=queue)

    def send(self, queue: str, *dicts: Mapping[str, Any]) -> list[str]:
        """Submits dicts directly to its Redis, and returns their ids; fails if one is refused."""
        with self.client(queue) as client:
            answers = client.send_many(dicts)
        accepted = [answer for answer in answers if isinstance(answer, Accepted)]
        assert len(accepted) == len(dicts), answers
        return [answer.id for answer in accepted]

    def queued(self, queue: str) -> list[str]:
        """Ids of the tasks in a queue, in order."""
        ids: Any = self.redis.lrange(keys.queue(queue), 0, -1)
        return [task_id.decode() for task_id in ids]

    def wait_queued(self, queue: str, count: int) -> list[str]:
        """Waits until a queue without workers contains this many tasks, and returns their ids."""
        until(lambda: len(self.queued(queue)) == count, what=f"{count} tasks in the queue")
        return self.queued(queue)

    def ended(self, ids: Sequence[str], seconds: float = 50.0) -> list[TaskRecord]:
        """Waits until all these tasks are delivered or dead, and returns them."""
        found: dict[str, TaskRecord] = {}

        def all_ended() -> bool:
            for task_id in ids:
                if task_id not in found:
                    record = tasks.show(self.redis, task_id)
                    if record.state not in ("delivered", "dead"):
                        return False
                    found[task_id] = record
            return True

        until(all_ended, seconds, "every task to end")
        return [found[task_id] for task_id in ids]

    def heartbeats(self, worker: Process, count: int) -> None:
        """Waits for this many heartbeats of a worker, which are a second apart."""
        for _ in range(count):
            before = self._heartbeat(worker)
            until(lambda before=before: self._heartbeat(worker) > before, what="a heartbeat")  # type: ignore[misc]

    def _heartbeat(self, worker: Process) -> datetime:
        found = [one for one in Worker.all(connection=self.redis) if one.pid == worker.pid]
        assert found and found[0].last_heartbeat is not None
        return found[0].last_heartbeat

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{len(self._processes)}.log"


class Live(ProcessGroup):
    """Like `ProcessGroup`, with its own Redis.

    Args:
        folder: gets its data, its pipes and its logs.
        options: of the Redis.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.server = RedisServer(folder, *options)
        super().__init__(self.server.url, self.server.client(), folder)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.server.kill()


def children(pid: int) -> list[int]:
    """Process ids of the children of a process's main thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def drawings(pid: int) -> list[int]:
    """Process ids of those children of a process that draw a graph."""
    found = []
    for child in children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
            if b"qtask.destinations.graph" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _found(command: Sequence[str]) -> list[str]:
    return [str(Path(sys.executable).parent / command[0]), *command[1:]]
