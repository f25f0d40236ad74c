"""A flow as it is shown."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

Source = Literal["configuration", "set", "task"]
"""Where a limit comes from: a flow rule, people at run time, or a task."""

FlowState = Literal["idle", "waiting", "paused", "resting", "broken", "probing"]
"""`idle`: no task waits. `waiting`: for a slot or a token. `resting`: its destination asked for a pause. `broken`: its
circuit breaker is open. `probing`: one delivery decides whether that closes."""


class FlowRecord(Struct, frozen=True):
    """A flow with state.

    Attributes:
        key: its name.
        state: why its tasks wait, if any do.
        parallel, rate, per, burst, ordered: its limits; None where there is none.
        share: deliveries in flight at most, for a flow that is slow and has no limit of its own; None for others.
        waiting: tasks that wait for a slot or a token.
        in_flight: tasks that are queued or in flight.
        oldest_due: due instant of the task that has waited longest, in Unix seconds; None if none waits.
        until: Unix seconds at which its rest ends, or the next probe is made; None where it does not rest.
        since: Unix seconds at which that rest began.
        why: reason of the rest; empty for none.
        limits_from: where `parallel`, `rate` (with `per` and `burst`) and `ordered` come from, if they are set.
        rule: pattern of the flow rule that gives defaults; empty for none.
    """

    key: str
    state: FlowState
    parallel: int | str | None = None
    rate: float | None = None
    per: float | None = None
    burst: int | None = None
    ordered: bool = False
    share: int | None = None
    waiting: int = 0
    in_flight: int = 0
    oldest_due: float | None = None
    until: float | None = None
    since: float | None = None
    why: str = ""
    limits_from: dict[str, Source] = field(default_factory=dict)
    rule: str = ""
