"""The measures of every system: submission, burst, lateness, slow receivers."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.stage import Stage

Values = dict[str, float]

BURST_SECONDS = 90.0  # the longest that a burst may take after it is due
BEHIND_SECONDS = 10.0  # a system that has not delivered everything this long after the last due instant falls behind
_FAR_SECONDS = 3600.0
_TAIL_SECONDS = 0.5  # in which the last outcomes are settled


class FellBehind(Exception):
    """The system could not keep up, and the rest of its tasks would spoil the next measure.

    Attributes:
        values: the values measured so far.
    """

    def __init__(self, values: Values) -> None:
        super().__init__("fell behind")
        self.values = values


def waiting(stage: Stage, count: int) -> Values:
    """Submits tasks that are due in an hour, without delivery: `rate` per second, `bytes` in Redis per task."""
    before = stage.redis.used_memory()
    submitted = stage.submit_far(count, _FAR_SECONDS)
    time.sleep(_TAIL_SECONDS)
    whole = (stage.redis.used_memory() - before) / count
    return {"rate": count / submitted.seconds, "bytes": whole - stage.system.payload_bytes, "whole_bytes": whole}


def burst(stage: Stage, count: int) -> Values:
    """All tasks due at one instant: `rate` per second from the first arrival to the last, and CPU time per task.

    `cpu_us` is the time of schedulers and workers since the submission, because some fetch tasks long before they are
    due; the other times are since the due instant.
    """
    stage.receiver.reset()
    start = stage.used()
    submitted = stage.submit(count)
    time.sleep(max(0.0, submitted.first_due - time.time()))
    due = stage.used()
    whole = stage.wait(submitted.last_due + BURST_SECONDS)
    end = stage.used()
    time.sleep(_TAIL_SECONDS)
    settled = stage.used()
    arrivals = stage.arrivals()
    came = max(1, len(arrivals.arrival))
    since_due, since_start = settled.minus(due), settled.minus(start)
    values = {
        "rate": arrivals.rate,
        "count": float(count),
        "cpu_us": since_start.delivering / came * 1e6,
        "redis_us": since_due.redis / came * 1e6,
        "receiver_us": since_due.receiver / came * 1e6,
        "accept_us": since_start.accepting / came * 1e6,
        "busy": end.minus(due).busy / max(end.minus(due).machine, 0.01),
        "in_time": float(submitted.in_time),
        "submit_rate": count / submitted.seconds,
        **_counted(stage, count),
    }
    if not whole:
        raise FellBehind(values)
    return values


def lateness(stage: Stage, rate: int, seconds: float) -> Values:
    """`rate` tasks per second at random instants: arrival at the receiver minus due, in ms."""
    stage.receiver.reset()
    count = int(rate * seconds)
    start = stage.used()
    submitted = stage.submit(count, seconds)
    whole = stage.wait(submitted.last_due + BEHIND_SECONDS)
    used = stage.used().minus(start)
    late = stage.arrivals().lateness * 1000
    values = {"in_time": float(submitted.in_time), "cpu_us": used.delivering / count * 1e6, **_counted(stage, count)}
    if len(late):
        p50, p99 = np.percentile(late, [50, 99])
        values |= {"p50": float(p50), "p99": float(p99), "max": float(late.max()), "earliest": float(late.min())}
    if not whole:
        raise FellBehind(values)
    return values


def slow_receiver(stage: Stage, delay: float, seconds: float) -> Values:
    """A burst to a receiver that answers after `delay` seconds: `rate` per second, and the `most` in flight."""
    system = stage.system
    expected = min(system.burst / 6, system.in_flight[1] / delay)
    count = max(20, int(expected * seconds))
    stage.receiver.reset(delay)
    submitted = stage.submit(count)
    whole = stage.wait(submitted.last_due + BURST_SECONDS)
    arrivals = stage.arrivals()
    most = float(stage.receiver.stats()["most_waiting"])
    time.sleep(delay + _TAIL_SECONDS)
    # The last wave takes the receiver's delay as well; without it two waves would look like one.
    took = arrivals.arrival[-1] - arrivals.arrival[0] + delay if len(arrivals.arrival) else delay
    values = {
        "rate": float(len(arrivals.arrival) / took),
        "count": float(count),
        "most": most,
        "in_time": float(submitted.in_time),
        **_counted(stage, count),
    }
    if not whole:
        raise FellBehind(values)
    return values


def _counted(stage: Stage, count: int) -> Values:
    """`lost`: tasks that did not arrive; `twice`: arrivals beyond the first of a task; `early`: arrivals before due."""
    arrivals = stage.arrivals()
    return {
        "lost": float(count - arrivals.distinct),
        "twice": float(len(arrivals.number) - arrivals.distinct),
        "early": float(np.count_nonzero(arrivals.lateness < 0)),
        "bad": float(stage.receiver.stats()["bad"]),
    }
