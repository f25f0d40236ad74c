"""`qtask up`: gateway, scheduler and workers in one command, on an embedded Redis when none is named."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from redis.exceptions import RedisError

from qtask.config import Config, flag_name, in_url
from qtask.crew import LOOK_SECONDS, Crew, Member
from qtask.embedded import EmbeddedRedis
from qtask.errors import QTaskError
from qtask.store import rights
from qtask.store.address import without_password
from qtask.store.connect import connect

READY_SECONDS = 30.0
RIGHTS_SECONDS = 5.0  # for a Redis elsewhere to say what may be done there
_ANSWER_SECONDS = 2.0

logger = logging.getLogger("qtask.up")


class Up:
    """Everything under one roof.

    Args:
        config: the settings; `redis_url` empty means an embedded Redis in `data_dir`, a port of 0 any free one.

    Attributes:
        config: the same, with ports chosen once started.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._redis = None if config.redis_url else EmbeddedRedis(Path(config.data_dir), config.redis_memory_mib)
        self._crew = Crew()

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT; a second signal does not wait. Raises `QTaskError` when it cannot start."""
        self._crew.listen()
        try:
            self.start()
            self._crew.keep(self._look_after_redis)
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
        self._check_rights()
        names = ["gateway", "scheduler"] + ["worker"] * config.workers
        settings = replace(config, redis_url=self.redis_url, pipe_dir=str(config.pipes.resolve()))
        self._crew.members = [Member(name, settings.as_environment()) for name in names]
        self._crew.start()
        self._wait_until_ready()
        if not self._crew.signals:
            logger.info(
                "ready",
                extra={
                    "socket": f"{in_url(config.host)}:{config.port}",
                    "http": f"http://{in_url(config.host)}:{config.http_port}",
                    "redis": without_password(self.redis_url),
                    "workers": config.workers,
                },
            )

    @property
    def redis_url(self) -> str:
        """The address of the Redis in use."""
        return self._redis.url if self._redis is not None else self.config.redis

    def stop(self) -> None:
        """Ends everything: first all that works on tasks, at the same time, and Redis when they have finished."""
        self._crew.stop()
        if self._redis is not None:
            self._redis.stop()

    def _check_rights(self) -> None:
        """Raises `ConfigError` when Redis lacks a right: each process would say so, and be started again and again."""
        if self._redis is not None:
            return
        roles: tuple[rights.Role, ...] = ("gateway", "scheduler", "worker")
        with connect(self.redis_url, RIGHTS_SECONDS) as redis, suppress(RedisError, OSError):
            for role in roles:
                rights.check(redis, role)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._crew.signals:
            for process in self._crew.members:
                if process.exit_code is not None:
                    raise QTaskError(f"the {process.name} did not start; what it said stands above")
            if time.monotonic() > deadline:
                raise QTaskError(f"the gateway does not answer after {READY_SECONDS:g} s")
            if self._gateway_answers():
                return
            time.sleep(LOOK_SECONDS / 2)

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

    def _look_after_redis(self) -> None:
        if self._redis is not None and not self._redis.running:
            logger.error("redis_died", extra={"data_dir": self.config.data_dir})
            self._redis.start()


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
