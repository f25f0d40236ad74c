"""The measures of flows: many flows with a rate each, worked off at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import measures
from benchmarks.measures import Values
from benchmarks.plan import Plan, Submitted
from benchmarks.qtask_submit import dictionary
from benchmarks.qtask_system import QTask
from benchmarks.receiver import Arrivals, Receiver
from benchmarks.redis_server import RedisServer
from benchmarks.sizes import Sizes
from benchmarks.stage import Stage
from benchmarks.system import Place
from qtask.client import Client
from qtask.model.flow import Limits
from qtask.store import flows

RATE = 1.0  # deliveries per second of each flow
_MORE_TASKS = 4  # of each flow than its rate allows in the time, so that none is worked off before the others
_START_SECONDS = 60.0  # in which all flows must have begun


def many_flows(receiver: Receiver, sizes: Sizes) -> Values:
    """Backlogs of many flows, one delivery a second each.

    `share`: of what the rates allow, by the time between deliveries in `sizes.flow_seconds`, from when every flow had
    begun; `slowest`: the same of the slowest flow; `counted`: deliveries in that time of what the rates allow, which is
    coarse, since a flow has only a few; `closest`: least seconds between two deliveries of a flow; `spread`: seconds
    from due until every flow had begun; `redis_us` and `script_us`: Redis's time per delivery, all and in scripts.
    """
    count, seconds = sizes.flows, sizes.flow_seconds
    each = int(seconds * RATE) + _MORE_TASKS
    system = QTask("qtask-flows")
    with Stage(system, receiver) as stage:
        redis = stage.redis
        for number in range(count):
            flows.set_limits(f"flow-{number}", Limits(rate=RATE)).run(redis.client)
        stage.start_delivering()
        receiver.reset()
        with Client(redis.url, timeout=60.0) as client:
            due = time.time() + each * count / 4_000 + 2.0
            for answer in client.send_iter(_tasks(due, receiver.url, count, each)):
                if isinstance(answer, Exception):
                    raise answer
        if time.time() > due:
            raise RuntimeError("submitting took too long, so the first were due before the last was submitted")
        while len(np.unique(receiver.arrivals().number % count)) < count:
            if time.time() > due + _START_SECONDS:
                raise RuntimeError("not all flows began")
            time.sleep(0.2)
        start, script = stage.used(), _script_us(redis)
        time.sleep(seconds)
        spent = stage.used().minus(start)
        scripts = (_script_us(redis) - script) / (RATE * count * seconds)
        arrivals = receiver.arrivals()
        begun = max(_first_arrivals(arrivals, count))
    inside = (arrivals.arrival >= begun) & (arrivals.arrival < begun + seconds)
    rates = rates_of_flows(arrivals, inside, count)
    return {
        "flows": float(count),
        "share": float(rates.mean() / RATE),
        "slowest": float(rates.min() / RATE),
        "counted": float(inside.sum() / (RATE * count * seconds)),
        "closest": closest(arrivals, count),
        "spread": begun - due,
        "redis_us": spent.redis / max(1, inside.sum()) * 1e6,
        "script_us": scripts,
        "busy": spent.busy / max(spent.machine, 0.01),
    }


class _QTaskOfFlows(QTask):
    """QTask, to which each task of many flows is submitted with a limit."""

    def submit(self, place: Place, plan: Plan) -> Submitted:
        return self.submit_by(place, plan, f"socket://127.0.0.1:{self.port}", "benchmarks.flow_submit")


def flow_burst(receiver: Receiver, sizes: Sizes) -> Values:
    """A burst of plain tasks, and one of tasks of many flows with a limit: `plain` and `flows` per second, `ratio`."""
    rates: dict[str, list[float]] = {"plain": [], "flows": []}
    for _ in range(sizes.burst_pairs):
        for name, system in (("plain", QTask("qtask-plain")), ("flows", _QTaskOfFlows("qtask-of-flows"))):
            with Stage(system, receiver) as stage:
                stage.start_delivering()
                rates[name].append(measures.burst(stage, sizes.flow_burst)["rate"])
    plain, of_flows = (float(np.median(rates[name])) for name in ("plain", "flows"))
    return {"plain": plain, "flows": of_flows, "ratio": of_flows / plain}


def _tasks(due: float, url: str, count: int, each: int) -> Iterator[dict[str, Any]]:
    """The tasks of all flows in turn."""
    for number in range(count * each):
        one = dictionary(due, url, f"/{due:.6f}/{number}")
        one["settings"]["flow"] = f"flow-{number % count}"
        yield one


def _first_arrivals(arrivals: Arrivals, count: int) -> npt.NDArray[np.float64]:
    _, first = np.unique(arrivals.number % count, return_index=True)
    return arrivals.arrival[first]


def rates_of_flows(arrivals: Arrivals, inside: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.float64]:
    """Deliveries per second of each flow between the first and the last of those inside; 0 for fewer than two."""
    flow, arrival = arrivals.number[inside].astype(np.int64) % count, arrivals.arrival[inside]
    number = np.bincount(flow, minlength=count)
    first, last = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(first, flow, arrival)
    np.maximum.at(last, flow, arrival)
    return np.where(number > 1, (number - 1) / np.maximum(last - first, 1e-9), 0.0)


def closest(arrivals: Arrivals, count: int) -> float:
    """The least time between two deliveries of one flow, in seconds."""
    flow = arrivals.number % count
    order = np.lexsort((arrivals.arrival, flow))
    gaps = np.diff(arrivals.arrival[order])[np.diff(flow[order].astype(np.int64)) == 0]
    return float(gaps.min()) if len(gaps) else float("inf")


def _script_us(redis: RedisServer) -> float:
    stats: dict[str, Any] = redis.client.info("commandstats")
    return float(sum(stats[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats))
