"""Reports the results: tables for the terminal, and `RESULTS.md`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import picture
from benchmarks.measures import Values
from benchmarks.peers.catalogue import PEERS
from benchmarks.results import Results
from benchmarks.targets import QTASK, RATES, targets

RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURE = Path(__file__).with_name("results.svg")

_OWN = ("qtask", "qtask-one", "qtask-memory")
_COLUMNS: tuple[tuple[str, str, str, bool], ...] = (  # title, measure, value, whether more is better
    ("tasks submitted a second", "submit", "rate", True),
    ("bytes in Redis per waiting task", "submit", "bytes", False),
    ("deliveries a second of a burst", "burst", "rate", True),
    ("CPU time per task", "burst", "cpu_us", False),
    ("p99 of lateness at 200/s", "lateness 200", "p99", False),
    ("p99 of lateness at 1,000/s", "lateness 1000", "p99", False),
    ("p99 of lateness at 5,000/s", "lateness 5000", "p99", False),
    ("deliveries a second, receiver answers after 100 ms", "slow 0.1", "rate", True),
    ("deliveries a second, receiver answers after 1 s", "slow 1", "rate", True),
)


def one_line(values: Values) -> str:
    """Values in one line, to follow a run."""
    return ", ".join(
        f"{name} {value:,.4g}" if abs(value) < 10 else f"{name} {value:,.0f}" for name, value in values.items()
    )


def text(kept: Results) -> str:
    """All tables, as Markdown."""
    blocks = [_targets(kept), _comparison(kept), _losses(kept), _limits(kept), _burst_costs(kept), _alone(kept)]
    blocks += [_trust(kept), _versions(kept)]
    return "\n\n".join(block for block in blocks if block)


def write(kept: Results) -> list[Path]:
    """Writes `RESULTS.md` and `results.svg`; returns their paths."""
    instants = [row["at"] for row in kept.rows]
    repetitions = max((row["repetition"] for row in kept.rows), default=0) + 1
    day = time.strftime("%Y-%m-%d", time.gmtime(min(instants))) if instants else "?"
    minutes = (max(instants) - min(instants)) / 60 if instants else 0
    head = (
        "# Results\n\n"
        "Written by `make bench`. [README.md](README.md) explains each figure and how it is measured.\n\n"
        f"One run on {day}, {minutes:.0f} minutes, {repetitions} repetitions: the median, and in brackets the least "
        f"and the greatest. {kept.machine.get('cores', '?')} cores ({kept.machine.get('processor', '?')}), shared by "
        "Redis, the system that is measured and the receiver.\n\n"
        "![Deliveries, lateness and processor time of QTask and its peers](results.svg)\n\n"
    )
    RESULTS.write_text(head + text(kept) + "\n")
    picture.draw(kept, PICTURE)
    return [RESULTS, PICTURE]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _names(kept: Results) -> list[str]:
    return [name for name in (*_OWN, *(peer.name for peer in PEERS)) if name in kept.titles]


def _spread(kept: Results, system: str, measure: str, value: str, form: str = ",.0f") -> str:
    """The median, and the least and the greatest value if there are several."""
    found = kept.all(system, measure, value)
    median = kept.median(system, measure, value)
    if median is None:
        return ""
    middle, least, greatest = (format(number, form) for number in (median, min(found), max(found)))
    return middle if least == greatest else f"{middle} ({least}–{greatest})"


def _behind(kept: Results, system: str, measure: str) -> bool:
    return bool(kept.all(system, measure, "behind"))


# --- tables ------------------------------------------------------------------------------------------------------


def _targets(kept: Results) -> str:
    rows = []
    for target in targets(kept):
        verdict = {True: "met", False: "**missed**", None: "not measured"}[target.met]
        rows.append([target.measure, target.wanted, target.found, verdict])
    return "## Targets\n\n" + _table(["measure", "target", "measured", ""], rows)


def _comparison(kept: Results) -> str:
    rates = [rate for rate in RATES if any(row["measure"] == f"lateness {rate}" for row in kept.rows)]
    delays = [delay for delay in ("0.1", "1") if any(row["measure"] == f"slow {delay}" for row in kept.rows)]
    head = ["", "submit/s", "bytes per waiting task", "burst/s", "CPU µs per task"]
    head += [f"lateness at {rate:,}/s, p50 / p99 ms" for rate in rates] + ["earliest ms"]
    head += [f"receiver answers after {delay} s, /s" for delay in delays]
    rows = []
    for name in _names(kept):
        row = [f"**{kept.titles[name]}**" if name in _OWN else kept.titles[name]]
        row += [_spread(kept, name, "submit", "rate"), _bytes_cell(kept, name)]
        row += [_spread(kept, name, "burst", "rate"), _spread(kept, name, "burst", "cpu_us")]
        row += [_lateness_cell(kept, name, f"lateness {rate}") for rate in rates]
        earliest = [value for rate in rates for value in kept.all(name, f"lateness {rate}", "earliest")]
        row.append(f"{min(earliest):,.1f}" if earliest else "")
        row += [_spread(kept, name, f"slow {delay}", "rate") for delay in delays]
        rows.append(row)
    if not rows:
        return ""
    remarks = [f"- {kept.titles[name]}: {kept.remarks[name]}." for name in _names(kept) if kept.remarks.get(name)]
    return "## QTask and its peers\n\n" + _table(head, rows) + ("\n\n" + "\n".join(remarks) if remarks else "")


def _bytes_cell(kept: Results, system: str) -> str:
    own, whole = (_spread(kept, system, "submit", value) for value in ("bytes", "whole_bytes"))
    return f"{own} ({whole} with the dict)" if system in _OWN and own else own


def _lateness_cell(kept: Results, system: str, measure: str) -> str:
    p50, p99 = (_spread(kept, system, measure, value, ",.1f") for value in ("p50", "p99"))
    cell = f"{p50} / {p99}" if p50 else ""
    return f"falls behind {cell}".strip() if _behind(kept, system, measure) else cell


def _losses(kept: Results) -> str:
    """The columns in which QTask loses and those in which it wins, in the same words."""
    lost: list[str] = []
    won: list[str] = []
    for title, measure, value, more in _COLUMNS:
        own = kept.median(QTASK, measure, value)
        others = {
            peer.name: median
            for peer in PEERS
            if (median := kept.median(peer.name, measure, value)) is not None and not _behind(kept, peer.name, measure)
        }
        if own is None or not others:
            continue
        best = (max if more else min)(others, key=lambda name: others[name])
        ratio = own / others[best] if more else others[best] / own
        line = f"- {title}: {own:,.1f} against {others[best]:,.1f} of {kept.titles[best]}"
        (won if ratio >= 1 else lost).append(f"{line} ({ratio:.2f} times as good)")
    if not lost and not won:
        return ""
    nothing = "- nothing in this run"
    return "\n\n".join(
        [
            "## Where QTask loses and wins\n\nQTask as shipped, with two workers, against the best peer of each column "
            "(those that fall behind left out).",
            "Lost:\n\n" + ("\n".join(lost) or nothing),
            "Won:\n\n" + ("\n".join(won) or nothing),
        ]
    )


def _limits(kept: Results) -> str:
    rows = []
    for measure, words in (
        ("receiver", "the receiver alone, pipelined requests (it must sustain 50,000/s)"),
        ("libcurl", "libcurl's multi interface alone, `perform` and `select`, 128 connections"),
        ("set", "pipelined `SET` of a task's JSON, Redis without persistence"),
        ("set, as shipped", "pipelined `SET` of a task's JSON, Redis as shipped"),
    ):
        if kept.median("limit", measure, "rate") is not None:
            cpu = _spread(kept, "limit", measure, "cpu_us", ",.1f")
            rows.append([words, _spread(kept, "limit", measure, "rate"), cpu])
    return "## The limit of the machine\n\n" + _table(["", "a second", "client's CPU µs each"], rows) if rows else ""


def _burst_costs(kept: Results) -> str:
    """What limits a burst: the CPU time of each part."""
    rows = []
    for name in (name for name in _names(kept) if name in _OWN):
        if kept.median(name, "burst", "rate") is None:
            continue
        cells = [
            _spread(kept, name, "burst", value, ",.1f") for value in ("cpu_us", "redis_us", "receiver_us", "accept_us")
        ]
        busy = kept.median(name, "burst", "busy") or 0.0
        rows.append([kept.titles[name], *cells, f"{busy:.0%}"])
    head = [
        "µs of a core per task",
        "scheduler and workers",
        "Redis",
        "receiver",
        "gateway (accepting)",
        "machine busy",
    ]
    return "## CPU time of a burst\n\n" + _table(head, rows) if rows else ""


def _alone(kept: Results) -> str:
    blocks = [block for block in (table(kept) for table in _ALONE) if block]
    return "## QTask alone\n\n" + "\n\n".join(blocks) if blocks else ""


def _ways(kept: Results) -> str:
    rows = []
    for way, words in (
        ("client", "`qtask.Client` over one socket connection"),
        ("lines", "a bare client over one socket connection"),
        ("redis", '`qtask.Client("redis://…")`'),
    ):
        cells = [_spread(kept, QTASK, "ways", value) for value in (way, f"{way}_gateway_us", f"{way}_redis_us")]
        if cells[0]:
            rows.append([words, *cells])
    return _table(["submitting", "tasks/s", "gateway's CPU µs per task", "Redis's"], rows) if rows else ""


def _round_trips(kept: Results) -> str:
    rows = []
    for name, words in (
        ("gateway", "a task over the gateway's socket"),
        ("client", "the same with `qtask.Client.send`"),
        ("redis", "bare Redis: `SET` of the same bytes"),
    ):
        cells = [_spread(kept, QTASK, "round-trips", f"{name}_{value}", ".3f") for value in ("p50", "p99")]
        if cells[0]:
            rows.append([words, *cells])
    return _table(["one at a time", "p50 ms", "p99 ms"], rows) if rows else ""


def _scaling(kept: Results) -> str:
    rows = []
    for workers in (1, 2, 4, 8):
        measure = f"scaling {workers}"
        if kept.median(QTASK, measure, "rate") is None:
            continue
        rate, ideal = _spread(kept, QTASK, measure, "rate"), kept.median(QTASK, measure, "ideal") or 0.0
        rows.append([str(workers), rate, f"{ideal:,.0f}", f"{kept.median(QTASK, measure, 'busy') or 0.0:.0%}"])
    head = ["workers, 100 in flight each, receiver answers after 100 ms", "deliveries/s", "ideal", "machine busy"]
    return _table(head, rows) if rows else ""


def _many(kept: Results) -> str:
    if kept.median(QTASK, "many", "rate") is None:
        return ""
    cells = [_spread(kept, QTASK, "many", value) for value in ("rate", "most", "memory_mb")]
    cells += [
        _spread(kept, QTASK, "many", "delivering_cores", ".2f"),
        f"{kept.median(QTASK, 'many', 'busy') or 0.0:.0%}",
    ]
    head = ["one worker, receiver answers after 1 s: deliveries/s", "in flight at most", "memory of the worker, MB"]
    return _table([*head, "cores of scheduler and worker", "machine busy"], [cells])


def _crowds(kept: Results) -> str:
    rows = []
    for waiting in (10_000, 1_000_000):
        measure = f"crowd {waiting}"
        cells = [_spread(kept, QTASK, measure, value, ",.1f") for value in ("release_us", "claim_us")]
        cells += [_spread(kept, QTASK, measure, "rate"), _spread(kept, QTASK, measure, "memory_mb")]
        if cells[0]:
            rows.append([f"{waiting:,}", *cells])
    head = [
        "tasks waiting",
        "release, µs of Redis per task",
        "claim",
        "burst/s with them waiting",
        "Redis's memory, MB",
    ]
    return _table(head, rows) if rows else ""


def _flows(kept: Results) -> str:
    if kept.median(QTASK, "flow-rates", "share") is None:
        return ""
    cells = [f"{kept.median(QTASK, 'flow-rates', 'flows'):,.0f}"]
    cells += [_spread(kept, QTASK, "flow-rates", value, ".1%") for value in ("share", "slowest")]
    cells.append(_spread(kept, QTASK, "flow-rates", "closest", ".3f"))
    cells.append(_spread(kept, QTASK, "flow-rates", "script_us", ".1f"))
    head = ["flows, one delivery a second each", "delivered of what the rates allow", "slowest flow"]
    return _table([*head, "least seconds between two of a flow", "scripts, µs of Redis per delivery"], [cells])


def _flow_burst(kept: Results) -> str:
    cells = [_spread(kept, QTASK, "flow-burst", value, ",.0f") for value in ("plain", "flows")]
    if not cells[0]:
        return ""
    cells.append(_spread(kept, QTASK, "flow-burst", "ratio", ".2f"))
    return _table(["burst/s of plain tasks", "of 1,000 flows, 50 in parallel", "ratio"], [cells])


def _isolation(kept: Results) -> str:
    words = {
        "hang": "never answer",
        "refuse": "refuse connections",
        "fail": "answer 500",
        "trickle": "send a byte a second",
    }
    rows = []
    for trouble, what in words.items():
        for ending, when in (("", "one after another"), (" together", "at the same instant")):
            name = f"isolation {trouble}{ending}"
            cells = [_spread(kept, QTASK, name, value, ",.0f") for value in ("p50", "p99", "max")]
            if cells[0]:
                rows.append([what, when, *cells])
    return (
        _table(["beside 12,000 tasks for hosts that", "200 tasks due", "p50 ms late", "p99", "max"], rows)
        if rows
        else ""
    )


def _flow_costs(kept: Results) -> str:
    steps = ("submit", "release", "claim", "settle", "all")
    words = {
        "plain": "none, plain tasks",
        "one": "one, no limits",
        "one-parallel": "one, 50 in parallel",
        "many": "five tasks each, no limits",
        "many-parallel": "five tasks each, 2 in parallel",
    }
    rows = []
    for shape, title in words.items():
        cells = [_spread(kept, QTASK, f"flows {shape}", f"{step}_us", ",.1f") for step in steps]
        if cells[0]:
            rows.append([title, *cells])
    return _table(["flows: µs of Redis per task", *steps], rows) if rows else ""


_ALONE: tuple[Callable[[Results], str], ...] = (
    _ways,
    _round_trips,
    _scaling,
    _many,
    _crowds,
    _flows,
    _flow_burst,
    _isolation,
    _flow_costs,
)


def _trust(kept: Results) -> str:
    """Problems of the run: missing or duplicate deliveries, tasks due before all were submitted, errors."""
    lines = [*_miscounts(kept), *(f"- {place}: not measured, {words}" for place, words in kept.errors.items())]
    alone = kept.all("limit", "receiver", "rate")
    if alone and min(alone) < 50_000:
        lines.append(f"- the receiver alone sustained only {min(alone):,.0f}/s: it limits the burst figures")
    head = "## Problems of this run\n\n"
    return head + ("\n".join(lines) or "- every delivery arrived exactly once, and every measure was taken")


def _miscounts(kept: Results) -> Iterator[str]:
    for row in kept.rows:
        values, words = row["values"], []
        if values.get("lost") and not values.get("behind"):
            words.append(f"{values['lost']:.0f} deliveries are missing")
        if values.get("twice"):
            words.append(f"{values['twice']:.0f} came twice")
        if values.get("bad"):
            words.append(f"{values['bad']:.0f} requests were not HTTP that the receiver understands")
        if values.get("in_time") == 0.0:
            words.append("the first tasks were due before the last was submitted")
        if words:
            name = kept.titles.get(row["system"], row["system"])
            yield f"- {name}, {row['measure']}, repetition {row['repetition'] + 1}: {', '.join(words)}"


def _versions(kept: Results) -> str:
    rows = [["machine", ", ".join(f"{name} {version}" for name, version in kept.machine.items())]]
    leave_out = ("pip", "setuptools")
    for name in _names(kept):
        listed = (
            f"{package} {version}" for package, version in kept.versions[name].items() if package not in leave_out
        )
        rows.append([name, ", ".join(listed)])
    return "## Versions\n\n" + _table(["", ""], rows)
