"""`qtask up`: gateway, scheduler and workers in one command, on an embedded Redis when none is named."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import fields, replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from qtask import children
from qtask.config import FILE_VARIABLE, Config, environment_name, flag_name
from qtask.embedded import EmbeddedRedis
from qtask.errors import QTaskError
from qtask.store.connect import connect

READY_SECONDS = 30.0
STOP_SECONDS = 12.0  # longer than the grace that gateway and worker give themselves
RESTART_PAUSE_SECONDS = (0.2, 10.0)  # first and longest pause before a process that died is started again
STEADY_SECONDS = 30.0  # a process that has run so long starts with the first pause again
_LOOK_SECONDS = 0.1
_ANSWER_SECONDS = 2.0

logger = logging.getLogger("qtask.up")


class _Process:
    """One child that is kept running."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self._environment = environment
        self._child: subprocess.Popen[bytes] | None = None
        self._pause = RESTART_PAUSE_SECONDS[0]
        self._started = 0.0
        self._start_at = 0.0

    def start(self) -> None:
        self._child = children.start([sys.executable, "-m", "qtask", self.name], self._environment)
        self._started = time.monotonic()

    def look(self) -> None:
        """Starts it again, after a pause, when it has died."""
        now = time.monotonic()
        if self._child is not None and self._child.poll() is not None:
            if now - self._started > STEADY_SECONDS:
                self._pause = RESTART_PAUSE_SECONDS[0]
            logger.error(
                "process_died",
                extra={"child": self.name, "exit_code": self._child.returncode, "restart_in_s": self._pause},
            )
            self._child = None
            self._start_at = now + self._pause
            self._pause = min(self._pause * 2, RESTART_PAUSE_SECONDS[1])
        elif self._child is None and now >= self._start_at:
            self.start()

    @property
    def exit_code(self) -> int | None:
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def ask_to_end(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def end(self) -> None:
        """Makes sure that it has ended."""
        if self._child is not None:
            if self._child.poll() is None:
                logger.warning("process_killed", extra={"child": self.name})
                self._child.kill()
            self._child.wait()
            self._child = None


class Up:
    """Everything under one roof.

    Args:
        config: the settings; `redis_url` empty means an embedded Redis in `data_dir`, a port of 0 any free one.

    Attributes:
        config: the same, with ports chosen once started.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._redis = None if config.redis_url else EmbeddedRedis(Path(config.data_dir))
        self._processes: list[_Process] = []
        self._signals = 0

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT; a second signal does not wait. Raises `QTaskError` when it cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self.start()
            while not self._signals:
                time.sleep(_LOOK_SECONDS)
                self._look()
        finally:
            self.stop()

    def start(self) -> None:
        """Starts everything and returns when the gateway accepts connections. Raises `QTaskError` when it cannot."""
        connect(self.config.redis).close()  # an address that is none shall be told once, and not by each process
        config = self.config = _with_ports(self.config)
        try:
            config.pipes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QTaskError(f"the pipe folder {config.pipes} cannot be made: {error.strerror}") from None
        if self._redis is not None:
            self._redis.start()
            logger.info("redis_started", extra={"url": self._redis.url})
        names = ["gateway", "scheduler"] + ["worker"] * config.workers
        environment = self._environment()
        self._processes = [_Process(name, environment) for name in names]
        for process in self._processes:
            process.start()
        self._wait_until_ready()
        if not self._signals:
            logger.info(
                "ready",
                extra={
                    "socket": f"{config.host}:{config.port}",
                    "http": f"http://{config.host}:{config.http_port}",
                    "redis": self.redis_url.rpartition("@")[2],
                    "workers": config.workers,
                },
            )

    @property
    def redis_url(self) -> str:
        """The address of the Redis in use."""
        return self._redis.url if self._redis is not None else self.config.redis

    def stop(self) -> None:
        """Ends everything: first all that works on tasks, at the same time, and Redis when they have finished."""
        for process in self._processes:
            process.ask_to_end()
        deadline = time.monotonic() + STOP_SECONDS
        while any(process.running for process in self._processes):
            if time.monotonic() > deadline or self._signals > 1:
                break
            time.sleep(0.02)
        for process in self._processes:
            process.end()
        self._processes = []
        if self._redis is not None:
            self._redis.stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._signals:
            for process in self._processes:
                if process.exit_code is not None:
                    raise QTaskError(f"the {process.name} did not start; what it said stands above")
            if time.monotonic() > deadline:
                raise QTaskError(f"the gateway does not answer after {READY_SECONDS:g} s")
            if self._gateway_answers():
                return
            time.sleep(_LOOK_SECONDS / 2)

    def _gateway_answers(self) -> bool:
        """Whether it answers over HTTP, whatever it says. That it listens would not do: it may yet fail."""
        connection = HTTPConnection(self.config.local_host, self.config.http_port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", "/health")
            connection.getresponse().read()
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _look(self) -> None:
        if self._redis is not None and not self._redis.running:
            logger.error("redis_died", extra={"data_dir": self.config.data_dir})
            self._redis.start()
        for process in self._processes:
            process.look()

    def _environment(self) -> dict[str, str]:
        values = {setting.name: getattr(self.config, setting.name) for setting in fields(Config)}
        values |= {"redis_url": self.redis_url, "pipe_dir": str(self.config.pipes.resolve())}
        # All settings are there, so a file that we were not told to read must not disturb the children either.
        return {environment_name(name): str(value) for name, value in values.items()} | {FILE_VARIABLE: os.devnull}


def up(config: Config) -> None:
    """Runs gateway, scheduler and workers until asked to stop. Raises `QTaskError` when it cannot start."""
    Up(config).run()


def _with_ports(config: Config) -> Config:
    """The settings with both ports chosen. A port that is taken is found out here, where there are words for it."""
    with ExitStack() as probes:  # both are held until both are chosen, so that they differ
        port = _bind(probes, config.host, config.port, "port")
        http_port = _bind(probes, config.host, config.http_port, "http_port")
    return replace(config, port=port, http_port=http_port)


def _bind(probes: ExitStack, host: str, port: int, name: str) -> int:
    probe = probes.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
    except OSError as error:
        raise QTaskError(
            f"the gateway cannot listen on {host} port {port}: {error.strerror}; choose another with {flag_name(name)}"
        ) from None
    return int(probe.getsockname()[1])
