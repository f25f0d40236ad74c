"""The processes of a run, and their disruptions: killed, stopped and continued, restarted, disconnected."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any

from redis.exceptions import RedisError

from qtask.store import keys
from qtask.store.connect import connect
from tests.chaos.disk import SmallDisk
from tests.chaos.plan import GATEWAYS, REDIS, SCHEDULERS, WORKERS, Act, Event
from tests.chaos.proxy import Proxy
from tests.support.processes import Process
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

QUEUE = "qtask"
CONCURRENCY = 100
MOST_LEASES = CONCURRENCY + CONCURRENCY // 8  # a worker claims a few more than it delivers at once
GRACE_SECONDS = 10.0  # Docker's, after which a process that was asked to stop is killed
START_SECONDS = 20.0
IDLE_SECONDS = 1  # after which Redis closes a connection
REDIS_AWAY_SECONDS = 15.0  # at most, including its start

_SIGNALS: dict[Act, signal.Signals] = {"restart": signal.SIGTERM, "hangup": signal.SIGHUP}

_READY = {"gateway": "listening", "scheduler": "scheduling", "worker": "working"}  # logged by each when it is ready


@dataclass(frozen=True, slots=True)
class Disruption:
    """A disruption of a process.

    Attributes:
        actor, act: the process, and what was done to it.
        at, over: start and end, in Unix seconds; equal for a kill.
        in_flight: tasks that a worker had claimed and not settled, whose deliveries this may repeat.
    """

    actor: str
    act: Act
    at: float
    over: float
    in_flight: int


class _Actor:
    """One process under one name, with all its restarts."""

    def __init__(self, name: str, environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = name.partition("-")[0]
        self._environment = environment
        self._life = 0  # offset in the log at which the current process begins, in bytes
        self._process = self._new()

    @property
    def running(self) -> bool:
        return self._process.running

    def start(self) -> None:
        self._life = self.log.stat().st_size
        self._process = self._new()

    def wait_until_ready(self) -> None:
        until(lambda: self.events(_READY[self._command]), START_SECONDS, f"{self.name} to begin")

    def events(self, name: str) -> list[dict[str, str]]:
        """The events that the current process has logged under this name."""
        with self.log.open("rb") as log:
            log.seek(self._life)
            whole, _, _ = log.read().rpartition(b"\n")
        marks = f'"event": "{name}"'.encode()
        return [json.loads(line) for line in whole.splitlines() if marks in line]

    def signal(self, number: signal.Signals) -> None:
        self._process.signal(number)

    def kill(self) -> None:
        self._process.kill()

    def stop(self, number: Signals) -> bool:
        """Asks it to stop by a signal; returns whether it did so in time and in order."""
        try:
            return self._process.stop(GRACE_SECONDS, number) == 0
        except AssertionError:
            return False

    def _new(self) -> Process:
        return Process(self._command, self._environment, self.log)


class System:
    """Redis behind a proxy, two gateways also behind it, schedulers and workers; a context manager.

    Args:
        folder: gets the data and the logs.
        pipes: folder of the pipes.
        retention_count: finished tasks that are kept.

    Attributes:
        redis: a client that bypasses the proxy.
        disk: holds the data of Redis.
        redis_url, gateway_urls: through the proxy.
        disruptions: of all processes, by the time of their end.
        complaints: wrong behaviour of processes: exits by themselves, or no exit after a signal.
        cuts: the number of cut connections by server; known at the end.
    """

    def __init__(self, folder: Path, pipes: Path, retention_count: int) -> None:
        self.disruptions: list[Disruption] = []
        self.complaints: list[str] = []
        self.cuts: dict[str, int] = {}
        self._folder = folder
        self.disk = SmallDisk(folder / "redis")
        # Redis closes idle connections, as a firewall or an administrator would.
        idle = ("--timeout", str(IDLE_SECONDS))
        self._server = RedisServer(self.disk.folder, "--appendonly", "yes", "--appendfsync", "always", *idle)
        self.redis = connect(self._server.url, 1.0)
        ports = {name: free_port() for name in GATEWAYS}
        self._proxy = Proxy({REDIS: self._server.port, **ports})
        self.redis_url = f"redis://127.0.0.1:{self._proxy.ports[REDIS]}/0"
        self.gateway_urls = [f"socket://127.0.0.1:{self._proxy.ports[name]}" for name in GATEWAYS]
        environment = {
            "QTASK_REDIS_URL": self.redis_url,
            "QTASK_QUEUE": QUEUE,
            "QTASK_PIPE_DIR": str(pipes),
            "QTASK_CONCURRENCY": str(CONCURRENCY),
            "QTASK_RETENTION_COUNT": str(retention_count),
            "QTASK_HTTP_PORT": "0",
            "QTASK_LOG_FORMAT": "json",
        }
        self._actors: dict[str, _Actor] = {}
        for name in (*GATEWAYS, *SCHEDULERS, *WORKERS):
            own = environment | {"QTASK_PORT": str(ports.get(name, 0))}
            self._actors[name] = _Actor(name, own, folder / f"{name}.log")
        for actor in self._actors.values():
            actor.wait_until_ready()
        self._threads: list[threading.Thread] = []
        self._redis_away_at = float("-inf")  # by monotonic
        self._redis_back_at = float("-inf")

    def __enter__(self) -> System:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            actor.kill()
        self.redis.close()
        self._server.kill()
        self.disk.close()
        self.cuts = self.cuts or self._proxy.close()

    def begin(self, events: Sequence[Event]) -> None:
        """Executes the plan from now on, in threads: one for each process, one for the cuts."""
        began = time.monotonic()
        stories: dict[str, list[Event]] = {}
        for event in events:
            stories.setdefault("cuts" if event.act == "cut" else event.actor, []).append(event)
        for name, story in stories.items():
            thread = threading.Thread(target=self._live, args=(story, began), name=f"chaos of {name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait(self) -> None:
        """Waits until the plan is executed and every process runs again."""
        for thread in self._threads:
            thread.join()
        for actor in self._actors.values():
            if actor.running:
                actor.wait_until_ready()

    def end(self) -> None:
        """Asks all processes to stop, the workers first, so that the schedulers notice it."""
        for names in (GATEWAYS, WORKERS):
            for name in names:
                self._stop(self._actors[name])
        until(lambda: not self.redis.exists(keys.WORKERS), 10, "the schedulers to forget workers that said goodbye")
        for name in SCHEDULERS:
            self._stop(self._actors[name])
        self.cuts = self._proxy.close()

    def logged(self, event: str) -> Counter[str]:
        """The number of events of one name that each process logged in this run."""
        marks = f'"event": "{event}"'
        return Counter({name: actor.log.read_text().count(marks) for name, actor in self._actors.items()})

    def unexpected_output(self) -> list[str]:
        """Output of processes other than log lines, such as a traceback, and logged internal errors."""
        return [
            f"{name}: {line[:2000]}"
            for name, actor in self._actors.items()
            for line in actor.log.read_text().splitlines()
            if not line.startswith("{") or '"level": "critical"' in line or '"exception":' in line
        ]

    # --- disruptions -------------------------------------------------------------------------------------------

    def _live(self, story: Sequence[Event], began: float) -> None:
        for event in story:
            time.sleep(max(0.0, began + event.at - time.monotonic()))
            try:
                if event.act == "cut":
                    self._proxy.cut(event.actor, event.skip, event.share)
                elif event.actor == REDIS:
                    self._disrupt_redis(event)
                else:
                    self._disrupt(self._actors[event.actor], event)
            except Exception as error:  # the run continues, and its ledger reports it
                self.complaints.append(f"{event}: {error}")

    def _disrupt_redis(self, event: Event) -> None:
        at = time.time()
        self._redis_away_at = time.monotonic()
        if event.act == "stop":
            self._server.signal(signal.SIGSTOP)
            time.sleep(event.seconds)
            self._server.signal(signal.SIGCONT)
        elif event.act == "fill":
            self.disk.fill()
            time.sleep(event.seconds)
            self.disk.make_room()
            if not self._server.running:  # with `appendfsync always` Redis exits when it cannot write
                self._server.start()
        else:
            if event.act == "kill":
                self._server.kill()
            else:
                self._server.stop()
            time.sleep(event.seconds)
            self._server.start()
        self._redis_back_at = time.monotonic()
        self.disruptions.append(Disruption(event.actor, event.act, at, time.time(), 0))

    def _disrupt(self, actor: _Actor, event: Event) -> None:
        if not actor.running:
            self.complaints.append(f"{actor.name} had exited by itself before the disruption: {event}")
            actor.start()
            return
        actor.wait_until_ready()
        token = self._token(actor)
        at = time.time()
        if event.act == "stop":
            actor.signal(signal.SIGSTOP)
            goes_on_at = time.monotonic() + event.seconds
            in_flight = self._leases(token, event.seconds - 1.0)
            time.sleep(max(0.0, goes_on_at - time.monotonic()))
            actor.signal(signal.SIGCONT)
            over = time.time()
        else:
            if event.act == "kill":
                actor.kill()
                over = time.time()
                in_flight = self._leases(token, REDIS_AWAY_SECONDS)
            else:
                in_flight = 0 if self._stop(actor, _SIGNALS[event.act]) else MOST_LEASES
                over = time.time()
            time.sleep(event.seconds)
            actor.start()
        self.disruptions.append(Disruption(event.actor, event.act, at, over, in_flight))

    def _stop(self, actor: _Actor, number: signal.Signals = signal.SIGTERM) -> bool:
        """Asks a process to stop; returns whether it could finish everything."""
        asked_at = time.monotonic()
        if not actor.stop(number):
            # While Redis is away no process can deregister, and Docker's grace period is as long as ours.
            if max(self._redis_away_at, self._redis_back_at) < asked_at and self._redis_away_at < self._redis_back_at:
                self.complaints.append(f"{actor.name} did not end in order within {GRACE_SECONDS:g} s of {number.name}")
            return False
        return not actor.events("stopped_without_redis")

    def _token(self, actor: _Actor) -> str:
        return actor.events("working")[-1]["token"] if actor.name in WORKERS else ""

    def _leases(self, token: str, patience: float) -> int:
        """The number of tasks that a worker which has been stopped or killed had claimed and not settled.

        While Redis is away, this is retried for some seconds: nothing is reclaimed until some seconds after its return.
        """
        deadline = time.monotonic() + patience
        while token:
            try:
                members: Any = self.redis.zrange(keys.started(QUEUE), 0, -1)
                return sum(1 for member in members if member.decode().endswith(":" + token))
            except (RedisError, OSError):
                if time.monotonic() > deadline:
                    return MOST_LEASES
                time.sleep(0.1)
        return 0


def count_disruptions(disruptions: Sequence[Disruption]) -> Counter[tuple[str, Act]]:
    """The number of disruptions of each kind of process (`worker` for `worker-2`) and each act."""
    return Counter((disruption.actor.partition("-")[0], disruption.act) for disruption in disruptions)
