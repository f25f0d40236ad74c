"""The peers and how to start them: as their documentation shows, with the best documented concurrency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks import environments, processes
from benchmarks.plan import BODY, Plan, Submitted
from benchmarks.redis_server import server_version
from benchmarks.system import Place, System, variables

_ASYNCIO_CONCURRENCY = (200, 1000)  # a process, for a fast and for a slow receiver


@dataclass(frozen=True)
class Peer:
    """One peer in one configuration.

    Attributes:
        name: name on the command line.
        label: name in the picture.
        title: name in the table; `{NAME}` stands for the version of a package.
        environment: name of its requirements file, or of its folder of npm packages.
        module: module of its app in this package; empty for Node.
        commands: its schedulers and workers; `{redis}` and `{concurrency}` are filled in, and the program is from its
            environment.
        burst: tasks that it delivers in 5 to 20 seconds.
        submit_rate: tasks per second that its client submits at least.
        processes: worker processes.
        concurrency: deliveries at once in one worker process, for a fast and for a slow receiver.
        remark: remark for readers.
        redis_major: the oldest major version of Redis that it runs on.
    """

    name: str
    label: str
    title: str
    environment: str
    module: str
    commands: tuple[str, ...]
    burst: int
    submit_rate: float
    processes: int = 2
    concurrency: tuple[int, int] = _ASYNCIO_CONCURRENCY
    remark: str = ""
    redis_major: int = 6


PEERS = (
    Peer(
        name="rq",
        label="RQ",
        title="rq {rq} + rq-scheduler {rq-scheduler}, stock",
        environment="rq",
        module="rq_app",
        commands=("rqscheduler --url {redis} --interval 1", *["rq worker --url {redis} default"] * 2),
        burst=180,
        submit_rate=1000,
        concurrency=(1, 1),
        remark="one process per job; the schedule has whole seconds",
    ),
    Peer(
        name="rq-simple",
        label="RQ, SimpleWorker",
        title="rq {rq} + rq-scheduler {rq-scheduler}, SimpleWorker",
        environment="rq",
        module="rq_app",
        commands=(
            "rqscheduler --url {redis} --interval 1",
            *["rq worker --worker-class rq.SimpleWorker --url {redis} default"] * 2,
        ),
        burst=1500,
        submit_rate=1000,
        concurrency=(1, 1),
        remark="the schedule has whole seconds",
    ),
    Peer(
        name="celery",
        label="Celery, threads",
        title="Celery {celery}, 64 threads (one process)",
        environment="celery",
        module="celery_app",
        commands=("celery -A benchmarks.peers.celery_app worker --pool threads --concurrency {concurrency}",),
        burst=3000,
        submit_rate=700,
        processes=1,
        concurrency=(64, 64),
        remark="waiting tasks are held in the worker's memory",
    ),
    Peer(
        name="celery-gevent",
        label="Celery, gevent",
        title="Celery {celery}, gevent 200 (one process)",
        environment="celery",
        module="celery_app",
        commands=("celery -A benchmarks.peers.celery_app worker --pool gevent --concurrency {concurrency}",),
        burst=2500,
        submit_rate=700,
        processes=1,
        concurrency=(200, 1000),
        remark="waiting tasks are held in the worker's memory; gevent 1,000 for slow receivers",
    ),
    Peer(
        name="dramatiq",
        label="Dramatiq",
        title="Dramatiq {dramatiq}, 2 x 32 threads",
        environment="dramatiq",
        module="dramatiq_app",
        commands=("dramatiq benchmarks.peers.dramatiq_app --processes 2 --threads {concurrency}",),
        burst=3000,
        submit_rate=2000,
        concurrency=(32, 32),
        remark="waiting tasks are held in the worker's memory",
    ),
    Peer(
        name="huey",
        label="Huey",
        title="Huey {huey}, 64 threads (one process)",
        environment="huey",
        module="huey_app",
        commands=("huey_consumer benchmarks.peers.huey_app.huey --workers {concurrency} --worker-type thread",),
        burst=3000,
        submit_rate=3000,
        processes=1,
        concurrency=(64, 64),
        remark="its scheduler checks once a second, which is the shortest interval that it allows",
    ),
    Peer(
        name="arq",
        label="arq",
        title="arq {arq}, `poll_delay` 0.05",
        environment="arq",
        module="arq_app",
        commands=("arq benchmarks.peers.arq_app.WorkerSettings",) * 2,
        burst=8000,
        submit_rate=1000,
    ),
    Peer(
        name="taskiq",
        label="taskiq",
        title="taskiq {taskiq} + taskiq-redis {taskiq-redis}",
        environment="taskiq",
        module="taskiq_app",
        commands=(
            "taskiq scheduler benchmarks.peers.taskiq_app:scheduler --update-interval 1",
            "taskiq worker benchmarks.peers.taskiq_app:broker --workers 2 --max-async-tasks {concurrency}",
        ),
        burst=6000,
        submit_rate=1000,
        remark="its scheduler checks once a second",
    ),
    Peer(
        name="streaq",
        label="streaQ",
        title="streaQ {streaq}",
        environment="streaq",
        module="streaq_app",
        commands=("streaq run benchmarks.peers.streaq_app:worker --workers 2",),
        burst=6000,
        submit_rate=1500,
        remark="its workers check twice a second",
        redis_major=7,
    ),
    Peer(
        name="saq",
        label="SAQ",
        title="SAQ {saq}",
        environment="saq",
        module="saq_app",
        commands=("saq benchmarks.peers.saq_app.settings --workers 2",),
        burst=15_000,
        submit_rate=2000,
        remark="the schedule has whole seconds",
    ),
    Peer(
        name="bullmq",
        label="BullMQ",
        title="BullMQ {bullmq} on Node {node}",
        environment="bullmq",
        module="",
        commands=("node worker.mjs",) * 2,
        burst=20_000,
        submit_rate=2500,
    ),
)


class PeerSystem(System):
    """A peer as a system to be measured."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self._peer = peer
        self.name = peer.name
        self.title = peer.title
        self.burst = peer.burst
        self.submit_rate = peer.submit_rate
        self.in_flight = (peer.concurrency[0] * peer.processes, peer.concurrency[1] * peer.processes)
        self.remark = peer.remark

    def prepare(self) -> None:
        """Creates its environment, and adds versions to its title. Raises `RuntimeError` if Redis is too old."""
        if int(server_version().partition(".")[0]) < self._peer.redis_major:
            raise RuntimeError(f"it needs a redis-server of version {self._peer.redis_major} or newer on the PATH")
        self.title = self._peer.title.format(**self.versions())

    def versions(self) -> dict[str, str]:
        """Versions of its packages."""
        if self._peer.module:
            return environments.python_versions(self._peer.environment)
        return environments.node_versions(self._peer.environment)

    def start_accepting(self, place: Place) -> None:
        """Does nothing: its clients write to Redis themselves."""

    def start_delivering(self, place: Place, slow: bool) -> None:
        """Starts its schedulers and workers."""
        concurrency = self._peer.concurrency[slow]
        environment = {**variables(place, concurrency), "BENCH_BODY": BODY}
        for command in self._peer.commands:
            words = command.format(redis=place.redis, concurrency=concurrency).split()
            if self._peer.module:
                words[0] = str(self._folder() / words[0])
            else:
                words[1] = str(self._folder() / words[1])
            self._running.append(processes.start(words, environment, self.log()))

    def submit(self, place: Place, plan: Plan) -> Submitted:
        """Submits through its own client."""
        if self._peer.module:
            command = [
                str(self._folder() / "python"),
                "-m",
                "benchmarks.submit",
                f"benchmarks.peers.{self._peer.module}",
            ]
        else:
            command = ["node", str(self._folder() / "submit.mjs")]
        return self._run_submission(command, variables(place, self._peer.concurrency[0]), plan)

    def _folder(self) -> Path:
        if self._peer.module:
            return environments.python_environment(self._peer.environment)
        return environments.node_environment(self._peer.environment)
