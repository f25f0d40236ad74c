"""A flow as it is shown, and what a task waits for in it. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from qtask.model.timing import format_instant, format_second

Source = Literal["configuration", "set", "task"]
"""Where a limit comes from: a flow rule, people at run time, or a task."""

FlowState = Literal["idle", "active", "waiting", "paused", "resting", "open", "half-open"]
"""`idle`: it has no tasks. `active`: tasks are queued or in flight, and none waits. `waiting`: tasks wait for a slot or
a token. `resting`: the destination asked for a pause. `open` and `half-open`: states of the circuit breaker. An open
one lets no delivery begin; a half-open one lets one begin, and its outcome decides."""

Breaker = Literal["closed", "open", "half-open"]

Reason = Literal["paused", "resting", "open", "half-open", "ordered", "parallel", "rate", "next"]
"""Why a task waits in its flow. The first four are states of the flow; `ordered`: another task is delivered before;
`parallel`, `rate`: the flow is at that limit; `next`: nothing holds it back, and a scheduler will queue it."""

_STATE_WORDS: dict[FlowState, str] = {"open": "breaker open", "half-open": "breaker half-open"}


class FlowRecord(Struct, frozen=True):
    """A flow with state.

    Attributes:
        key: its name.
        state: why its tasks wait, if any do.
        breaker: state of its circuit breaker.
        parallel, rate, per, burst, ordered: its limits; None where there is none.
        share: deliveries in flight at most, for a flow that is slow and has no limit of its own; None for others.
        waiting: tasks that wait in the flow.
        queued: tasks that it has admitted, and that no worker has claimed yet. They hold a slot.
        in_flight: tasks that are being delivered. They hold a slot, as does a task of an ordered flow that waits for a
            retry.
        begun: deliveries that began in the last `per` seconds, against `rate`; estimated from the numbers of this span
            and the one before. None without a rate.
        next_token: Unix seconds at which the rate lets the next delivery begin; None without a rate, or if that is now.
        oldest_due: due instant of the task that has waited longest, in Unix seconds; None if none waits.
        oldest_seconds: for how long it has waited.
        until: Unix seconds at which its rest ends or the next probe is made; None if it does not rest.
        since: Unix seconds at which that rest began, or since when the breaker is open or half-open.
        why: reason of the rest in words; empty for none.
        adapted: its limit if `parallel` is `auto`; else None.
        adapted_why: why that limit changed last; empty if it has not.
        adapted_at: Unix seconds at which it changed.
        timeout: seconds that tasks with `timeout: auto` have; None if no such task was delivered lately.
        duration_mean, duration_deviation: smoothed durations in seconds, which give that timeout.
        limits_from: where `parallel`, `rate` (with `per` and `burst`) and `ordered` come from, if they are set.
        rule: pattern of the flow rule that gives defaults; empty for none.
    """

    key: str
    state: FlowState = "idle"
    breaker: Breaker = "closed"
    parallel: int | str | None = None
    rate: float | None = None
    per: float | None = None
    burst: int | None = None
    ordered: bool = False
    share: int | None = None
    waiting: int = 0
    queued: int = 0
    in_flight: int = 0
    begun: int | None = None
    next_token: float | None = None
    oldest_due: float | None = None
    oldest_seconds: float | None = None
    until: float | None = None
    since: float | None = None
    why: str = ""
    limits_from: dict[str, Source] = field(default_factory=dict)
    rule: str = ""
    adapted: int | None = None
    adapted_why: str = ""
    adapted_at: float | None = None
    timeout: float | None = None
    duration_mean: float | None = None
    duration_deviation: float | None = None

    @property
    def state_words(self) -> str:
        """The state for people."""
        return _STATE_WORDS.get(self.state, self.state)

    @property
    def limit(self) -> int | None:
        """How many slots it has; None for no limit."""
        if self.ordered:
            return 1
        return self.parallel if isinstance(self.parallel, int) else self.share

    @property
    def slots_used(self) -> int:
        """How many slots are taken."""
        return self.queued + self.in_flight


class Wait(Struct, frozen=True):
    """What a task waits for in its flow.

    Attributes:
        flow: name of the flow.
        position: 1 for the task that is next.
        reason: why it waits.
        until: Unix seconds at which the flow lets the next task begin, as far as that is known; else None.
        words: all of it in one line.
    """

    flow: str
    position: int
    reason: Reason
    until: float | None
    words: str


def wait_in(flow: FlowRecord, position: int, holder: str = "", holder_retry: float | None = None) -> Wait:
    """What the task at a position of a flow waits for.

    Args:
        flow: the flow, as it was when the position was read.
        position: 1 for the task that is next.
        holder: the id of the task that has the slot of an ordered flow; empty if it is not known.
        holder_retry: Unix seconds of the retry that this one waits for; None if it does not.
    """
    reason, until, words = _reason(flow, holder, holder_retry)
    return Wait(flow.key, position, reason, until, f"{_ordinal(position)} in flow {flow.key}, {words}")


def _reason(flow: FlowRecord, holder: str, holder_retry: float | None) -> tuple[Reason, float | None, str]:
    """The first reason for which no task of a flow begins, in the order in which flows.lua looks for one."""
    if flow.state == "paused":
        return "paused", None, "which is paused"
    if flow.state == "open":
        next_probe = "" if flow.until is None else f", and the next probe is at {format_second(flow.until)}"
        return "open", flow.until, f"whose circuit breaker is open{next_probe} ({flow.why})"
    if flow.state == "resting" and flow.until is not None:
        return "resting", flow.until, f"which rests until {format_second(flow.until)} ({flow.why})"
    if flow.ordered and flow.slots_used:
        if holder_retry is not None:
            words = f"which is ordered, and task {holder} before it waits for a retry at {format_second(holder_retry)}"
            return "ordered", holder_retry, words
        before = f"task {holder}" if holder else "another task"
        return "ordered", None, f"which is ordered, and {before} before it is not delivered yet"
    if flow.state == "half-open":
        return "half-open", None, "whose circuit breaker is half-open: the outcome of one delivery decides"
    if flow.limit is not None and flow.slots_used >= flow.limit:
        where = "queued or in flight" if flow.queued else "in flight"
        slow = "is slow and " if flow.parallel is None else ""
        return "parallel", None, f"which {slow}has {flow.slots_used} of {flow.limit} deliveries {where}"
    if flow.next_token is not None:
        return "rate", flow.next_token, f"whose rate admits the next at {format_instant(flow.next_token)}"
    if flow.queued and flow.rate is not None:
        return "rate", None, f"whose rate is used up by {flow.queued} queued {_plural('task', flow.queued)}"
    return "next", None, "which a scheduler will admit to its queue"


def _ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `11th`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
