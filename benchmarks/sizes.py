"""How much of everything is measured: in full, in the short form, and just enough to see that all of it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of one form.

    Attributes:
        share: of each system's burst.
        waiting: tasks that wait while their bytes are counted.
        rates: a second, at which lateness is measured.
        lateness_seconds: for how long.
        slow_delays: seconds after which slow receivers answer.
        slow_seconds: for how long they are measured.
        crowds: tasks waiting, of the two crowds that are compared.
        crowd_burst: tasks delivered beside them.
        idle_seconds: for how long idle processes are watched.
        scaling: numbers of workers.
        scaling_seconds: for how long each is measured.
        many_in_flight, many_seconds: deliveries in flight in one worker, and for how long.
        round_trips: requests sent one at a time.
        limit_seconds: for how long the raw limits are measured.
        ways: tasks for each way of submitting.
        starts: of `qtask --help`.
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
    starts=2,
)
