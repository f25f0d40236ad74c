"""The measures of QTask alone: crowds, idling, scaling, thousands in flight, round trips, start-up."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measures, processes
from benchmarks.measures import Values
from benchmarks.plan import BODY, Plan
from benchmarks.qtask_submit import dictionary
from benchmarks.qtask_system import QTask
from benchmarks.receiver import Receiver
from benchmarks.redis_server import RedisServer, server_version
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage
from qtask.client import Client
from qtask.model.validation import encode
from qtask.scheduler.process import BATCH, Scheduler
from qtask.store import leases
from qtask.worker.claims import CLAIM_BATCH

FAR_SECONDS = 86_400.0
_SCRIPT_ROUNDS = 5  # of releasing and claiming; the median ignores a round in which Redis lost its core
SCALING_CONCURRENCY = 100
SCALING_DELAY = 0.1
_ROUND_TRIP_BLOCK = 100  # gateway and Redis take turns in blocks, so that the machine is the same for both


def ways_of_submitting(receiver: Receiver, sizes: Sizes) -> Values:
    """Tasks per second for each way in: `client`, `lines` (a bare client of the socket), `redis` (directly)."""
    system = QTask("qtask-ways")
    found: Values = {}
    with Stage(system, receiver) as stage:
        plan = Plan(sizes.ways, FAR_SECONDS, FAR_SECONDS)
        gateway = f"socket://127.0.0.1:{system.port}"
        for way, url, module in (
            ("client", gateway, "benchmarks.qtask_submit"),
            ("lines", gateway, "benchmarks.line_submit"),
            ("redis", stage.place.redis, "benchmarks.qtask_submit"),
        ):
            start = stage.used()
            submitted = system.submit_by(stage.place, plan, url, module)
            used = stage.used().minus(start)
            found[way] = sizes.ways / submitted.seconds
            found[f"{way}_gateway_us"] = used.accepting / sizes.ways * 1e6
            found[f"{way}_redis_us"] = used.redis / sizes.ways * 1e6
    return found


def crowd(receiver: Receiver, sizes: Sizes, waiting: int) -> Values:
    """With many waiting tasks: `rate` of a burst, and µs of Redis's time per task to release and to claim."""
    system = QTask("qtask-crowd")
    with Stage(system, receiver) as stage:
        redis = stage.redis
        with Client(redis.url, timeout=60.0) as client:
            far = time.time() + FAR_SECONDS
            crowd_tasks = (dictionary(far + number * 0.01, receiver.url, f"/0/{number}") for number in range(waiting))
            accepted = sum(1 for answer in client.send_iter(crowd_tasks) if not isinstance(answer, Exception))
        if accepted != waiting:
            raise RuntimeError(f"{waiting - accepted} tasks of the crowd were refused")
        redis.wait_for_rewrite()
        memory = redis.used_memory()
        stage.start_delivering()
        values = measures.burst(stage, sizes.crowd_burst)
        system.stop_delivering()
        redis.wait_for_rewrite()
        rounds = [_script_costs(redis, receiver, sizes.crowd_burst // _SCRIPT_ROUNDS) for _ in range(_SCRIPT_ROUNDS)]
        release, claim = (float(np.median(costs)) for costs in zip(*rounds, strict=True))
    return {**values, "release_us": release, "claim_us": claim, "memory_mb": memory / 1e6}


def _script_costs(redis: RedisServer, receiver: Receiver, count: int) -> tuple[float, float]:
    """µs of Redis's time per task to release and to claim, by Redis's own statistics of scripts."""
    queue = "bench"
    with Client(redis.url, queue=queue) as client:
        now = time.time()
        for answer in client.send_iter(dictionary(now, receiver.url, f"/0/{number}") for number in range(count)):
            if isinstance(answer, Exception):
                raise answer
    scheduler = Scheduler(queue, redis.client)
    before = _script_us(redis)
    for _ in range(count // BATCH + 1):
        scheduler.release()
    released = _script_us(redis)
    claim = leases.claim(queue, "bench", CLAIM_BATCH)
    claimed = 0
    for _ in range(count // CLAIM_BATCH + 1):
        claimed += len(list(leases.read_claimed(claim.run(redis.client))[1]))
    if claimed != count:
        raise RuntimeError(f"{claimed} of {count} tasks were claimed")
    return (released - before) / count, (_script_us(redis) - released) / count


def _script_us(redis: RedisServer) -> float:
    stats: dict[str, Any] = redis.client.info("commandstats")
    return float(sum(stats[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats))


def idle(receiver: Receiver, sizes: Sizes) -> Values:
    """Percent of a core that each idle process uses; lateness (ms) of single tasks after idling."""
    system = QTask("qtask-idle")
    found: Values = {}
    with Stage(system, receiver) as stage:
        stage.start_delivering()
        measures.burst(stage, max(100, sizes.ways // 30))
        time.sleep(3.0)
        pids = {**system.pids, "Redis": stage.redis.pid}
        start = time.monotonic()
        before = {name: processes.cpu_seconds([pid]) for name, pid in pids.items()}
        time.sleep(sizes.idle_seconds)
        seconds = time.monotonic() - start
        for name, pid in pids.items():
            found[f"{name} %"] = (processes.cpu_seconds([pid]) - before[name]) / seconds * 100
        found["matplotlib"] = float(sum(processes.has_loaded(pid, "matplotlib") for pid in system.pids.values()))
        receiver.reset()
        with Client(f"socket://127.0.0.1:{system.port}") as client:
            singles = 10
            for number in range(singles):
                due = time.time() + 0.6
                client.send(dictionary(due, receiver.url, f"/{due:.6f}/{number}"))
                time.sleep(0.7)
        receiver.wait(singles, time.time() + 5.0)
        late = receiver.arrivals().lateness * 1000
        found |= {"after_p50": float(np.median(late)), "after_max": float(late.max()), "after": float(len(late))}
    return found


def scaling(receiver: Receiver, sizes: Sizes, workers: int) -> Values:
    """Steady `rate` of `workers` workers with 100 in flight each, to a receiver that answers after 100 ms."""
    system = QTask("qtask-scaling", workers=workers, concurrency=SCALING_CONCURRENCY)
    ideal = workers * SCALING_CONCURRENCY / SCALING_DELAY
    values = _steady(Stage(system, receiver), int(ideal * sizes.scaling_seconds), SCALING_DELAY, sizes.scaling_seconds)
    return {**values, "ideal": ideal}


def many_in_flight(receiver: Receiver, sizes: Sizes) -> Values:
    """Thousands in flight in one worker, receiver answers after 1 s: steady `rate`, memory of the worker."""
    system = QTask("qtask-many", workers=1, concurrency=sizes.many_in_flight)
    return _steady(Stage(system, receiver), int(sizes.many_in_flight * sizes.many_seconds), 1.0, sizes.many_seconds)


def _steady(stage: Stage, count: int, delay: float, seconds: float) -> Values:
    with stage:
        assert isinstance(stage.system, QTask)
        stage.start_delivering(slow=True)
        stage.receiver.reset(delay)
        submitted = stage.submit(count)
        time.sleep(max(0.0, submitted.first_due + seconds / 4 - time.time()))
        before = processes.machine_seconds()
        used = stage.used()
        time.sleep(seconds / 2)
        busy, machine = (now - then for now, then in zip(processes.machine_seconds(), before, strict=True))
        worked = stage.used().minus(used)
        stage.wait(submitted.last_due + measures.BURST_SECONDS)
        memory = max(
            processes.memory_bytes(pid) for name, pid in stage.system.pids.items() if name.startswith("worker")
        )
        arrivals = stage.arrivals()
        return {
            "rate": arrivals.steady_rate(min(delay * 2, seconds / 4), delay),
            "most": float(stage.receiver.stats()["most_waiting"]),
            "memory_mb": memory / 1e6,
            "busy": busy / max(machine, 0.01),
            "delivering_cores": worked.delivering / (seconds / 2),
            "lost": float(count - arrivals.distinct),
            "in_time": float(submitted.in_time),
        }


def round_trips(receiver: Receiver, sizes: Sizes) -> Values:
    """One request at a time (ms): `gateway` over its socket, bare Redis (`SET` of the same bytes), and `client`."""
    system = QTask("qtask-round-trips")
    line = encode(dictionary(time.time() + FAR_SECONDS, receiver.url, "/0/0")) + b"\n"
    command = b"*3\r\n$3\r\nSET\r\n$5\r\nbench\r\n$%d\r\n%s\r\n" % (len(line), line)
    gateway: list[float] = []
    bare: list[float] = []
    own: list[float] = []
    with Stage(system, receiver) as stage, Client(f"socket://127.0.0.1:{system.port}") as client:
        with _connection(system.port) as to_gateway, _connection(stage.redis.port) as to_redis:
            for _ in range(max(1, sizes.round_trips // _ROUND_TRIP_BLOCK)):
                gateway += _round_trips(to_gateway, line)
                bare += _round_trips(to_redis, command)
        for _ in range(sizes.round_trips):
            start = time.perf_counter()
            client.send(dictionary(time.time() + FAR_SECONDS, receiver.url, "/0/0"))
            own.append((time.perf_counter() - start) * 1000)
    found: Values = {}
    for name, times in (("gateway", gateway), ("redis", bare), ("client", own)):
        found[f"{name}_p50"], found[f"{name}_p99"] = (float(value) for value in np.percentile(times, [50, 99]))
    return found


def _connection(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 5.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _round_trips(connection: socket.socket, request: bytes) -> Iterator[float]:
    for _ in range(_ROUND_TRIP_BLOCK):
        start = time.perf_counter()
        connection.sendall(request)
        answer = connection.recv(4096)
        while not answer.endswith(b"\n"):
            answer += connection.recv(4096)
        yield (time.perf_counter() - start) * 1000


def starting(sizes: Sizes) -> Values:
    """How long `qtask --help` takes (ms)."""
    program = shutil.which("qtask", path=str(Path(sys.executable).parent))
    command = [program] if program else [sys.executable, "-m", "qtask"]
    times = []
    for _ in range(sizes.starts):
        start = time.perf_counter()
        subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - start) * 1000)
    return {"median": float(np.median(times)), "max": max(times)}


def versions() -> dict[str, str]:
    """The machine and the versions that the benchmarks ran on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown processor",
    )
    return {
        "cores": str(os.cpu_count()),
        "processor": model,
        "python": sys.version.split()[0],
        "linux": os.uname().release,
        "redis-server": server_version(),
        "body": f"{len(BODY)} bytes",
    }
