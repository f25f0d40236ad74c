"""Redis's time for tasks of flows, against that of plain tasks: the scripts alone, without processes that deliver."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measures import Values
from benchmarks.redis_server import RedisServer
from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.intake.intake import BATCH as SUBMIT_BATCH
from qtask.model.validation import Checked
from qtask.scheduler.process import BATCH as RELEASE_BATCH
from qtask.store import leases, schedule, submit
from qtask.store.leases import Settlement
from qtask.store.nodes import Nodes
from qtask.worker.claims import CLAIM_BATCH

QUEUE = "bench"
TOKEN = "bench"
IN_FLIGHT = 1_000  # of the worker that claims
TASKS_OF_A_FLOW = 5
_STEPS = ("submit", "release", "claim", "settle")

# The flow of the task with a number, and its limits; None for a plain task.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-parallel": {"key": "tenant", "parallel": 50},
    "one": {"key": "tenant"},
    "many": {"key": "tenant-{}"},
    "many-parallel": {"key": "tenant-{}", "parallel": 2},
}


def flow_costs(shape: str, count: int) -> Values:
    """µs of Redis's processor time per task, by script and in all, for `count` tasks that are due at once."""
    config = Config(queue=QUEUE)
    with RedisServer(shipped=True, persistent=False) as redis:  # without a sync for each call
        costs = Costs(redis)
        client, nodes = redis.client, Nodes()
        due = time.time() - 1.0
        for batch in _batches(shape, count, due):
            costs.begin()
            submit.submit(client, nodes, submit.Batch(QUEUE, [submit.Submission(checked) for checked in batch]))
            costs.end("submit")
        memory = redis.used_memory()
        settled = released = 0
        held: list[tuple[str, str]] = []
        while settled < count:
            costs.begin()
            reply = schedule.release(client, RELEASE_BATCH)
            costs.end("release")
            released += reply.moved
            while True:
                costs.begin()
                claimed = leases.claim(QUEUE, TOKEN, CLAIM_BATCH).run(client)
                costs.end("claim")
                names = leases.read_flows(claimed, 0).names
                tasks = [(raw.decode(), names.get(raw, "")) for raw, *_ in leases.read_claimed(claimed)[1]]
                held += tasks
                if not tasks or len(held) >= IN_FLIGHT:
                    break
            while held:
                ending, held = held[:CLAIM_BATCH], held[CLAIM_BATCH:]
                costs.begin()
                done = leases.read_settled(leases.settle(config, TOKEN, _settlements(ending)).run(client)).settled
                costs.end("settle")
                settled += done
        keys = client.dbsize()
    found = {f"{step}_us": costs.seconds[step] / count * 1e6 for step in _STEPS}
    return {**found, "all_us": sum(found.values()), "memory_mb": memory / 1e6, "keys_left": float(keys)}


class Costs:
    """The processor time that Redis's main thread spends on each step, which does not count the time of others.

    Args:
        redis: the server.
    """

    def __init__(self, redis: RedisServer) -> None:
        self.seconds = dict.fromkeys(_STEPS, 0.0)
        self._times = Path(f"/proc/{redis.pid}/task/{redis.pid}/schedstat")
        self._start = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._start = self._used()

    def end(self, step: str) -> None:
        """It has ended."""
        self.seconds[step] += self._used() - self._start

    def _used(self) -> float:
        return int(self._times.read_text().split()[0]) / 1e9


def _batches(shape: str, count: int, due: float) -> Iterator[list[Checked]]:
    """The tasks, in the order in which clients of many flows submit them: mixed."""
    flow = SHAPES[shape]
    flows = max(1, count // TASKS_OF_A_FLOW)
    for first in range(0, count, SUBMIT_BATCH):
        batch = []
        for number in range(first, min(first + SUBMIT_BATCH, count)):
            settings: dict[str, Any] = {"at": due + number * 1e-6, "data": {"method": "POST", "json": {"to": "ada"}}}
            if flow:
                settings["flow"] = {**flow, "key": flow["key"].format(number % flows)}
            address = {"type": "http", "link": "http://127.0.0.1:8000/0/1"}
            batch.append(check_task({"title": "bench", "address": address, "settings": settings}))
        yield batch


def _settlements(claimed: list[tuple[str, str]]) -> list[Settlement]:
    now = f"{time.time():.6f}"
    outcome = b'{"attempt":1,"status":"delivered","code":200,"lateness":0.001,"duration":0.001}'
    return [
        Settlement(
            id=task_id,
            fate="finished",
            outcome=outcome,
            error="",
            counter="http:delivered",
            ended=now,
            member=f"{task_id}:1:0.001:0.001:delivered",
            options=msgspec.json.encode({"flow": flow}) if flow else b"",
        )
        for task_id, flow in claimed
    ]


def main() -> None:
    """`python -m benchmarks.flow_costs TASKS [REPETITIONS] [SHAPE …]`: prints costs, and their ratio to plain tasks."""
    count, repetitions, *shapes = sys.argv[1:]
    least: dict[str, Values] = {}
    for _ in range(int(repetitions)):
        for shape in shapes or SHAPES:  # in turns, so that the machine is the same for all
            values = flow_costs(shape, int(count))
            if shape not in least or values["all_us"] < least[shape]["all_us"]:
                least[shape] = values
    for shape, values in least.items():
        ratio = values["all_us"] / least["plain"]["all_us"]
        print(f"{shape:14} {ratio:5.2f}", {name: round(value, 1) for name, value in values.items()})


if __name__ == "__main__":
    main()
