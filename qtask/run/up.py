"""`qtask up`: runs gateway, scheduler and workers, with an embedded Redis if no other is given."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from qtask.config import Config, flag_name, in_url
from qtask.delivery.authorities import check_ca_file
from qtask.model.errors import QTaskError
from qtask.model.queues import one_queue, served_queues
from qtask.model.redis_address import without_password
from qtask.process.supervisor import LOOK_SECONDS, Member, Supervisor
from qtask.run.data_folder import PRIVATE_FOLDER
from qtask.run.embedded import EmbeddedRedis
from qtask.store import rights
from qtask.store.connect import connect

READY_SECONDS = 30.0
RIGHTS_SECONDS = 5.0  # for another Redis to answer which rights its user has
_ANSWER_SECONDS = 2.0
_ASK_REDIS_SECONDS = 1.0  # between two checks of a Redis that does not answer yet

logger = logging.getLogger("qtask.up")


class Stack:
    """A gateway, a scheduler, workers and, if needed, a Redis on this host.

    Args:
        config: the settings. With an empty `redis_url`, Redis is embedded in `data_dir`; port 0 is any free port.

    Attributes:
        config: the same, with the chosen ports once started.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._redis = None
        if not config.redis_url:
            self._redis = EmbeddedRedis(Path(config.data_dir), config.redis_memory_mib, config.pipes)
        self._supervisor = Supervisor()
        self._ready = False
        self._ask_redis_at = 0.0
        self._redis_error = ""

    def run(self) -> None:
        """Runs until a signal asks it to stop; with a second signal it stops at once.

        It waits until Redis answers and then logs `ready`. Raises `QTaskError` if it cannot start.
        """
        self._supervisor.listen()
        try:
            self._begin()
            self._supervisor.keep(self._look)
        finally:
            self.stop()

    def start(self) -> None:
        """Starts everything and returns when it is ready. Raises `QTaskError` if it cannot start."""
        self._begin()
        deadline = time.monotonic() + READY_SECONDS
        while not self._ready:
            self._look()
            if time.monotonic() > deadline:
                raise QTaskError(f"Redis does not answer after {READY_SECONDS:g} s: {self._redis_error}")
            time.sleep(LOOK_SECONDS / 2)

    @property
    def redis_url(self) -> str:
        """The address of the Redis in use."""
        return self._redis.url if self._redis is not None else self.config.redis

    def stop(self) -> None:
        """Ends everything: first all processes that work on tasks, at the same time, and then Redis."""
        self._supervisor.stop()
        if self._redis is not None:
            self._redis.stop()

    def _begin(self) -> None:
        """Starts everything and returns when the gateway accepts connections, or after a signal."""
        connect(self.config.redis).close()  # reports an invalid address once, not in each process
        check_ca_file(self.config.ca_file)
        served_queues(self.config.queues or one_queue(self.config.queue))
        config = self.config = _with_ports(self.config)
        if self._redis is not None:
            with suppress(OSError):  # errors are reported below
                Path(config.data_dir).mkdir(mode=PRIVATE_FOLDER, parents=True)
        try:
            config.pipes.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QTaskError(f"the pipe folder {config.pipes} cannot be made: {error.strerror}") from None
        if self._redis is not None:
            self._redis.start(lambda: self._supervisor.signals.asked)
        if self._supervisor.signals.asked:
            return
        self._check_rights()
        names = ["gateway", "scheduler"] + ["worker"] * config.workers
        settings = replace(config, redis_url=self.redis_url, pipe_dir=str(config.pipes.resolve()))
        self._supervisor.members = [Member(name, settings.as_environment()) for name in names]
        self._supervisor.start()
        self._wait_for_gateway()

    def _check_rights(self) -> None:
        """Raises `ConfigError` if a right in Redis is missing; otherwise each process would fail and be restarted."""
        if self._redis is not None:
            return
        roles: tuple[rights.Role, ...] = ("gateway", "scheduler", "worker")
        with connect(self.redis_url, RIGHTS_SECONDS) as redis, suppress(RedisError, OSError):
            for role in roles:
                rights.check(redis, role)

    def _wait_for_gateway(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not self._supervisor.signals.asked:
            for process in self._supervisor.members:
                if process.exit_code is not None:
                    raise QTaskError(f"the {process.name} did not start; see its output above")
            if time.monotonic() > deadline:
                raise QTaskError(f"the gateway does not answer after {READY_SECONDS:g} s")
            if self._gateway_answers():
                return
            if self._redis is not None:
                self._redis.look()
            time.sleep(LOOK_SECONDS / 2)

    def _gateway_answers(self) -> bool:
        """Whether the gateway answers. It may still fail after it listens. An empty array needs no Redis."""
        try:
            with socket.create_connection((self.config.local_host, self.config.port), _ANSWER_SECONDS) as connection:
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(b"[]\n")
                return connection.recv(100) == b"[]\n"
        except OSError:
            return False

    def _look(self) -> None:
        if self._redis is not None:
            self._redis.look()
        if not self._ready and time.monotonic() >= self._ask_redis_at:
            self._ask_redis_at = time.monotonic() + _ASK_REDIS_SECONDS
            if self._redis_answers():
                self._check_rights()
                self._ready = True
                logger.info(
                    "ready",
                    extra={
                        "socket": f"{in_url(self.config.host)}:{self.config.port}",
                        "http": f"http://{in_url(self.config.host)}:{self.config.http_port}",
                        "redis": without_password(self.redis_url),
                        "workers": self.config.workers,
                    },
                )

    def _redis_answers(self) -> bool:
        """Whether Redis answers; if not, the reason is logged if it has changed.

        Raises `QTaskError` if Redis rejects the user or the password, since waiting does not help then.
        """
        if self._redis is not None:
            return self._redis.answers
        redis = connect(self.redis_url, _ANSWER_SECONDS)
        redis.connection_pool.connection_kwargs["socket_connect_timeout"] = _ANSWER_SECONDS
        place = without_password(self.redis_url)
        try:
            redis.ping()
        except AuthenticationError as error:
            raise QTaskError(f"the Redis at {place} rejects the user or the password: {error}") from None
        except NoPermissionError:
            pass  # it answers; `PING` is not needed
        except (RedisError, OSError) as error:
            if str(error) != self._redis_error:
                self._redis_error = str(error)
                logger.warning("waiting_for_redis", extra={"redis": place, "error": self._redis_error})
            return False
        finally:
            redis.close()
        return True


def up(config: Config) -> None:
    """Runs gateway, scheduler and workers until asked to stop. Raises `QTaskError` if it cannot start."""
    Stack(config).run()


def _with_ports(config: Config) -> Config:
    """The settings with both ports chosen. It finds a port that is taken, so that the error is clear."""
    with ExitStack() as probes:  # both are held until both are chosen, so that they are different
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
