"""The performance targets of QTask, each with the measured figure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.peers.catalogue import PEERS
from benchmarks.results import Results
from tests.support.bad_hosts import TROUBLES

QTASK = "qtask"
NODE_PEERS = ("bullmq",)
RATES = (200, 1000, 5000)
FULL_CORES = 0.9  # of the machine's time; above it more workers cannot deliver more


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        measure: name of the measure.
        wanted: the target in words.
        found: the figure in words; empty if it was not measured.
        met: whether the target is met; None if it was not measured.
    """

    measure: str
    wanted: str
    found: str
    met: bool | None


def targets(kept: Results) -> list[Target]:
    """All targets."""
    return [
        *_burst(kept),
        *_lateness(kept),
        *_submission(kept),
        *_slow(kept),
        *_scaling(kept),
        *_crowd(kept),
        *_flows(kept),
        *_isolation(kept),
        *_idle(kept),
        _start(kept),
    ]


def _target(measure: str, wanted: str, figures: list[float | None], words: str, met: bool | None) -> Target:
    """A target whose words have `{}` for the figures; not measured if one of them is missing."""
    if any(figure is None for figure in figures):
        return Target(measure, wanted, "", None)
    return Target(measure, wanted, words.format(*figures), met)


def _times(value: float | None, other: float | None) -> float | None:
    return value / other if value is not None and other else None


def _least(value: float | None, bound: float) -> bool | None:
    return None if value is None else value >= bound


def _most(value: float | None, bound: float) -> bool | None:
    return None if value is None else value <= bound


def best_peer(kept: Results, measure: str, value: str, python_only: bool = False) -> float | None:
    """The greatest median of all peers."""
    names = [peer.name for peer in PEERS if not (python_only and peer.name in NODE_PEERS)]
    found = [median for name in names if (median := kept.median(name, measure, value)) is not None]
    return max(found, default=None)


def _burst(kept: Results) -> Iterator[Target]:
    own = kept.median(QTASK, "burst", "rate")
    python = best_peer(kept, "burst", "rate", python_only=True)
    node = kept.median("bullmq", "burst", "rate")
    raw = kept.median("limit", "libcurl", "rate")
    for other, name, bound in (
        (python, "the best Python peer", 7.0),
        (python, "the best Python peer (stretch goal)", 10.0),
        (node, "BullMQ", 5.0),
        (raw, "raw libcurl", 0.35),
    ):
        ratio = _times(own, other)
        words = "{:.2f} times ({:,.0f}/s against {:,.0f}/s)"
        yield _target("burst", f"at least {bound:g} times {name}", [ratio, own, other], words, _least(ratio, bound))


def _lateness(kept: Results) -> Iterator[Target]:
    for rate, bound in zip(RATES, (5.0, 5.0, 10.0), strict=True):
        p99 = kept.median(QTASK, f"lateness {rate}", "p99")
        yield _target(f"lateness at {rate:,}/s", f"p99 at most {bound:g} ms", [p99], "{:.1f} ms", _most(p99, bound))
    names = ["burst", *(f"lateness {rate}" for rate in RATES)]
    early = [count for name in names for count in kept.all(QTASK, name, "early")]
    total = sum(early) if early else None
    yield _target("never early", "no task before it is due", [total], "{:.0f} early", _most(total, 0.0))


def _submission(kept: Results) -> Iterator[Target]:
    own = kept.median(QTASK, "submit", "rate")
    lines = kept.median(QTASK, "ways", "lines")
    stock = kept.median("rq", "submit", "rate")
    ratio = _times(own, stock)
    words = "{:.1f} times ({:,.0f}/s against {:,.0f}/s)"
    yield _target(
        "submission, one connection", "at least 15 times `enqueue_at`", [ratio, own, stock], words, _least(ratio, 15.0)
    )
    yield _target(
        "submission, one connection",
        "in the order of 25,000/s",
        [own, lines],
        "{:,.0f}/s with `qtask.Client`, {:,.0f}/s with a bare client",
        _least(own, 20_000.0),
    )
    gateway, bare = (kept.median(QTASK, "round-trips", f"{name}_p50") for name in ("gateway", "redis"))
    more = gateway - bare if gateway is not None and bare is not None else None
    yield _target(
        "submission, one at a time",
        "a bare Redis round trip plus at most 0.3 ms",
        [more, gateway, bare],
        "plus {:.2f} ms ({:.2f} ms against {:.2f} ms)",
        _most(more, 0.3),
    )
    size = kept.median(QTASK, "submit", "bytes")
    yield _target("a waiting task", "at most 300 bytes beyond its JSON", [size], "{:.0f} bytes", _most(size, 300.0))


def _slow(kept: Results) -> Iterator[Target]:
    rate, most, memory = (kept.median(QTASK, "many", name) for name in ("rate", "most", "memory_mb"))
    measure = "one worker, receiver answers after 1 s"
    yield _target(measure, "5,000 in flight", [most], "{:,.0f}", _least(most, 5000.0))
    yield _target(measure, "4,500 deliveries/s", [rate], "{:,.0f}/s", _least(rate, 4500.0))
    yield _target(measure, "memory below 250 MB", [memory], "{:.0f} MB", _most(memory, 250.0))


def _scaling(kept: Results) -> Iterator[Target]:
    one = kept.median(QTASK, "scaling 1", "rate")
    for workers in (2, 4, 8):
        rate = kept.median(QTASK, f"scaling {workers}", "rate")
        busy = kept.median(QTASK, f"scaling {workers}", "busy")
        share = _times(rate, one * workers if one else None)
        met = None if share is None or busy is None else share >= 0.9 or busy >= FULL_CORES
        full = f", cores full ({busy:.0%} busy)" if busy is not None and busy >= FULL_CORES else ""
        yield _target(
            f"{workers} workers, 100 in flight each, receiver answers after 100 ms",
            f"{workers} times one worker within 10 %, until the cores are full",
            [share, rate],
            "{:.0%} of it ({:,.0f}/s)" + full,
            met,
        )


def _crowd(kept: Results) -> Iterator[Target]:
    for step in ("release", "claim"):
        small, large = (kept.median(QTASK, f"crowd {waiting}", f"{step}_us") for waiting in (10_000, 1_000_000))
        ratio = _times(large, small)
        yield _target(
            f"{step}, 1,000,000 waiting against 10,000",
            "at most 1.2 times the time",
            [ratio, large, small],
            "{:.2f} times ({:.1f} µs against {:.1f} µs of Redis per task)",
            _most(ratio, 1.2),
        )


def _isolation(kept: Results) -> Iterator[Target]:
    for trouble in TROUBLES:
        for value, limit in (("p99", 100.0), ("max", 500.0)):
            late = kept.median(QTASK, f"isolation {trouble}", value)
            yield _target(
                f"healthy tasks beside hosts that {trouble}, {value}",
                f"at most {limit:.0f} ms late",
                [late],
                "{:.0f} ms",
                _most(late, limit),
            )


def _flows(kept: Results) -> Iterator[Target]:
    share = kept.median(QTASK, "flow-rates", "share")
    yield _target(
        "10,000 flows, one delivery a second each", "at least 97 % of the rate", [share], "{:.1%}", _least(share, 0.97)
    )
    ratio = kept.median(QTASK, "flow-burst", "ratio")
    yield _target(
        "burst over 1,000 flows, 50 in parallel",
        "at least 0.8 of the plain burst",
        [ratio],
        "{:.2f}",
        _least(ratio, 0.8),
    )
    plain = kept.median(QTASK, "flows plain", "all_us")
    for shape, words in (
        ("one", "one flow"),
        ("one-parallel", "one flow, 50 in parallel"),
        ("many", "flows of five tasks"),
        ("many-parallel", "flows of five tasks, 2 in parallel"),
    ):
        cost = kept.median(QTASK, f"flows {shape}", "all_us")
        ratio = _times(cost, plain)
        yield _target(
            f"Redis's time for tasks of {words}, against plain tasks",
            "at most 1.3 times the time",
            [ratio, cost, plain],
            "{:.2f} times ({:.1f} µs against {:.1f} µs per task)",
            _most(ratio, 1.3),
        )


def _idle(kept: Results) -> Iterator[Target]:
    rows = [row["values"] for row in kept.rows if row["system"] == QTASK and row["measure"] == "idle"]
    names = [name for name in (rows[0] if rows else {}) if name.endswith("%")]
    shares = {name.removesuffix(" %"): kept.median(QTASK, "idle", name) or 0.0 for name in names}
    worst = max(shares.values(), default=None)
    words = ", ".join(f"{name} {share:.2f} %" for name, share in shares.items())
    yield _target("idle", "each process below 1 % of a core", [worst], words, _most(worst, 1.0))
    after = kept.median(QTASK, "idle", "after_p50")
    load = kept.median(QTASK, "lateness 1000", "p50")
    met = None if after is None or load is None else after <= load
    words = "median {:.2f} ms after idling, {:.2f} ms at 1,000/s"
    yield _target("a delivery after idling", "no later than under load", [after, load], words, met)
    loaded = kept.median(QTASK, "idle", "matplotlib")
    words = "{:.0f} processes have matplotlib loaded"
    yield _target("imports", "no matplotlib until a graph is drawn", [loaded], words, _most(loaded, 0.0))


def _start(kept: Results) -> Target:
    took = kept.median(QTASK, "start", "median")
    return _target("`qtask --help`", "below 150 ms", [took], "{:.0f} ms", _most(took, 150.0))
