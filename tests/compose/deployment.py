"""A real deployment of docker-compose.yml: a separate project on free ports, with a receiver in its network."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from typing import Any

from qtask.client import Client
from tests.support.documents import ROOT
from tests.support.redis_server import free_port
from tests.support.waiting import until

RECEIVER_LINK = "http://receiver:8000/"


class Deployment:
    """One compose project.

    Args:
        name: of the project.
        files: compose files in addition to docker-compose.yml.
        settings: for the environment.

    Attributes:
        port, http_port: published ports of its gateway.
        environment: added to ours for its commands.
    """

    def __init__(self, name: str, files: tuple[str, ...] = (), settings: dict[str, str] | None = None) -> None:
        self.name = name
        self.port = free_port()
        self.http_port = free_port()
        self._receiver = f"{name}_receiver"
        self._files = [argument for file in ("docker-compose.yml", *files) for argument in ("-f", file)]
        self.environment = {
            "COMPOSE_PROJECT_NAME": name,
            "QTASK_PORT": str(self.port),
            "QTASK_HTTP_PORT": str(self.http_port),
            **(settings or {}),
        }

    def compose(self, *arguments: str) -> str:
        """Runs docker-compose; returns its output."""
        return self._run("docker-compose", *self._files, *arguments)

    def docker(self, *arguments: str) -> str:
        """Runs docker; returns its output."""
        return self._run("docker", *arguments)

    def up(self, workers: int) -> None:
        """Starts or changes the project, and returns when every process is healthy."""
        self.compose("up", "-d", "--scale", f"worker={workers}")
        if not self.docker("ps", "-q", "--filter", f"name={self._receiver}").strip():
            self.docker("run", "-d", "--name", self._receiver, "--network", f"{self.name}_default",
                        "--network-alias", "receiver", "-v", f"{ROOT / 'tests/compose/receiver.py'}:/receiver.py:ro",
                        "--entrypoint", "python", "qtask", "/receiver.py")  # fmt: skip
        until(lambda: self.states() == {"healthy"}, 90, "every process is healthy", every=0.5)

    def states(self) -> set[str]:
        """The health of all containers."""
        return {container["State"]["Health"]["Status"] for container in self.containers()}

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """`docker inspect` of the containers of a service, or of all."""
        ids = self.compose("ps", "-q", *filter(None, [service])).split()
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *ids))
        return found

    def client(self) -> Client:
        """A client outside, on the published port."""
        return Client(f"socket://127.0.0.1:{self.port}")

    def send(self, count: int, delay: float, spread: float = 0.0, attempts: int = 5) -> set[str]:
        """Submits POSTs to the receiver, due `delay` to `delay + spread` seconds from now; returns their ids."""
        tasks = [
            {
                "title": f"task {number}",
                "address": {"type": "http", "link": RECEIVER_LINK},
                "settings": {
                    "time": delay + spread * number / count,
                    "retry": {"attempts": attempts},
                    "data": {"method": "POST", "json": number},
                },
            }
            for number in range(count)
        ]
        with self.client() as client:
            answers = client.send_many(tasks)
        return {answer.id for answer in answers if not isinstance(answer, Exception)}

    def received(self) -> Counter[str]:
        """The number of requests of each task at the receiver."""
        return Counter(json.loads(line)["id"] for line in self.docker("logs", self._receiver).splitlines())

    def wait_for(self, ids: set[str]) -> None:
        """Waits until all these tasks have reached the receiver."""
        until(lambda: set(self.received()) >= ids, 60, "every task reaches the receiver", every=0.5)

    def down(self, *arguments: str) -> None:
        """Ends the project and the receiver; its volumes stay unless `-v` is among the arguments."""
        if self.docker("ps", "-aq", "--filter", f"name={self._receiver}").strip():
            self.docker("rm", "-f", self._receiver)
        self.compose("down", *arguments)

    def _run(self, *command: str) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout
