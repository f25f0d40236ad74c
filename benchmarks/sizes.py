"""The sizes of all measures: for a full run, a quick run, and a check that everything works."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.bad_hosts import TROUBLES


@dataclass(frozen=True)
class Sizes:
    """The sizes of one form.

    Attributes:
        share: share of each system's burst.
        waiting: waiting tasks whose bytes are counted.
        rates: tasks per second at which lateness is measured.
        lateness_seconds: how long that takes.
        slow_delays: seconds after which slow receivers answer.
        slow_seconds: how long they are measured.
        crowds: waiting tasks, two numbers that are compared.
        crowd_burst: tasks delivered in addition to them.
        idle_seconds: how long idle processes are observed.
        scaling: numbers of workers.
        scaling_seconds: how long each number is measured.
        many_in_flight, many_seconds: deliveries in flight in one worker, and how long.
        round_trips: requests sent one at a time.
        limit_seconds: how long the raw limits are measured.
        ways: tasks for each way of submission.
        flows, flow_seconds: flows with one delivery a second each, and how long they are measured.
        flow_burst: tasks of a burst over many flows.
        bad_tasks, isolation_seconds: tasks for hosts in trouble, and how long the healthy ones beside them are due.
        isolation: which hosts in trouble, perhaps followed by `together`; see `qtask_isolation`.
        burst_pairs: how often a plain burst and one over many flows are measured in turn.
        flow_tasks: tasks whose cost in Redis is measured with and without flows.
        starts: how often `qtask --help` is started.
    """

    share: float
    waiting: int
    rates: tuple[int, ...]
    lateness_seconds: float
    slow_delays: tuple[float, ...]
    slow_seconds: float
    crowds: tuple[int, ...]
    crowd_burst: int
    idle_seconds: float
    scaling: tuple[int, ...]
    scaling_seconds: float
    many_in_flight: int
    many_seconds: float
    round_trips: int
    limit_seconds: float
    ways: int
    flows: int
    flow_seconds: float
    flow_burst: int
    bad_tasks: int
    isolation_seconds: float
    isolation: tuple[str, ...]
    burst_pairs: int
    flow_tasks: int
    starts: int


FULL = Sizes(
    share=1.0,
    waiting=20_000,
    rates=(200, 1000, 5000),
    lateness_seconds=10.0,
    slow_delays=(0.1, 1.0),
    slow_seconds=6.0,
    crowds=(10_000, 1_000_000),
    crowd_burst=40_000,
    idle_seconds=20.0,
    scaling=(1, 2, 4, 8),
    scaling_seconds=8.0,
    many_in_flight=5000,
    many_seconds=10.0,
    round_trips=3000,
    limit_seconds=3.0,
    ways=60_000,
    flows=10_000,
    flow_seconds=20.0,
    flow_burst=60_000,
    bad_tasks=12_000,
    isolation_seconds=20.0,
    isolation=tuple(f"{trouble}{when}" for trouble in TROUBLES for when in ("", " together")),
    burst_pairs=3,
    flow_tasks=1_000_000,
    starts=11,
)

QUICK = Sizes(
    share=0.4,
    waiting=20_000,
    rates=(200, 1000, 5000),
    lateness_seconds=4.0,
    slow_delays=(0.1,),
    slow_seconds=2.0,
    crowds=(),
    crowd_burst=0,
    idle_seconds=5.0,
    scaling=(1, 2),
    scaling_seconds=3.0,
    many_in_flight=5000,
    many_seconds=5.0,
    round_trips=1000,
    limit_seconds=2.0,
    ways=20_000,
    flows=200,
    flow_seconds=3.0,
    flow_burst=20_000,
    bad_tasks=12_000,
    isolation_seconds=5.0,
    isolation=("hang",),
    burst_pairs=1,
    flow_tasks=4_000,
    starts=5,
)

CHECK = Sizes(
    share=0.02,
    waiting=500,
    rates=(50,),
    lateness_seconds=2.0,
    slow_delays=(0.1,),
    slow_seconds=1.0,
    crowds=(100, 2000),
    crowd_burst=500,
    idle_seconds=2.0,
    scaling=(1, 2),
    scaling_seconds=1.0,
    many_in_flight=300,
    many_seconds=3.0,
    round_trips=50,
    limit_seconds=0.3,
    ways=500,
    flows=50,
    flow_seconds=3.0,
    flow_burst=600,
    bad_tasks=600,
    isolation_seconds=2.0,
    isolation=("hang", "fail together"),
    burst_pairs=1,
    flow_tasks=1_000,
    starts=2,
)
