"""`qtask up`: gateway, scheduler and workers in one command, on an embedded Redis when none is named."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

from qtask import children
from qtask.config import Config, environment_name
from qtask.embedded import EmbeddedRedis
from qtask.errors import QTaskError

READY_SECONDS = 30.0
STOP_SECONDS = 15.0
RESTART_PAUSE_SECONDS = (0.2, 10.0)  # first and longest pause before a process that died is started again
STEADY_SECONDS = 30.0  # a process that has run so long starts with the first pause again
_LOOK_SECONDS = 0.1

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

    def stop(self, seconds: float) -> None:
        if self._child is not None:
            children.stop(self._child, seconds)
            self._child = None


class Up:
    """Everything under one roof.

    Args:
        config: the settings; `redis_url` empty means an embedded Redis in `data_dir`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
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
        """Starts everything and returns when the gateway accepts connections."""
        if self._redis is not None:
            self._redis.start()
            logger.info("redis_started", extra={"url": self._redis.url})
        names = ["gateway", "scheduler"] + ["worker"] * self._config.workers
        environment = self._environment()
        self._processes = [_Process(name, environment) for name in names]
        for process in self._processes:
            process.start()
        deadline = time.monotonic() + READY_SECONDS
        while not self._gateway_answers():
            if self._signals:
                return
            for process in self._processes:
                if process.exit_code is not None:
                    raise QTaskError(f"the {process.name} did not start; what it said stands above")
            if time.monotonic() > deadline:
                raise QTaskError(f"the gateway does not answer on port {self._config.port} after {READY_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)
        logger.info(
            "ready",
            extra={
                "socket": f"{self._config.host}:{self._config.port}",
                "http": f"http://{self._config.host}:{self._config.http_port}",
                "redis": self.redis_url.rpartition("@")[2],
                "workers": self._config.workers,
            },
        )

    @property
    def redis_url(self) -> str:
        """The address of the Redis in use."""
        return self._redis.url if self._redis is not None else self._config.redis

    def stop(self) -> None:
        """Ends everything in the order in which tasks pass: the gateway first, Redis last."""
        for process in self._processes:
            process.stop(0.0 if self._signals > 1 else STOP_SECONDS)
        self._processes = []
        if self._redis is not None:
            self._redis.stop()

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _look(self) -> None:
        if self._redis is not None and not self._redis.running:
            logger.error("redis_died", extra={"data_dir": self._config.data_dir})
            self._redis.stop()
            self._redis.start()
        for process in self._processes:
            process.look()

    def _environment(self) -> dict[str, str]:
        values = {setting.name: getattr(self._config, setting.name) for setting in fields(Config)}
        values |= {"redis_url": self.redis_url, "pipe_dir": str(self._config.pipes.resolve())}
        return {environment_name(name): str(value) for name, value in values.items()}

    def _gateway_answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._config.host, self._config.host)  # noqa: S104
        try:
            socket.create_connection((host, self._config.port), 1.0).close()
        except OSError:
            return False
        return True


def up(config: Config) -> None:
    """Runs gateway, scheduler and workers until asked to stop. Raises `QTaskError` when it cannot start."""
    config.pipes.mkdir(parents=True, exist_ok=True)
    Up(config).run()
