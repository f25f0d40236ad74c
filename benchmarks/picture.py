"""Draws the results: bars for all systems, those of QTask in colour."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.peers.catalogue import PEERS
from benchmarks.results import Results

_OWN_COLOUR, _PEER_COLOUR, _LIMIT_COLOUR, _INK, _FAINT = "#0b7a75", "#b9c2cc", "#e4a853", "#22303c", "#6b7884"
_OWN = {"qtask": "QTask", "qtask-one": "QTask, one worker", "qtask-memory": "QTask, no persistence"}
_LABELS = {**_OWN, **{peer.name: peer.label for peer in PEERS}}


@dataclass(frozen=True)
class _Panel:
    """One part of the picture; `limit` is the measure of the raw limit that is drawn with it."""

    title: str
    unit: str
    measure: str
    value: str
    more_is_better: bool
    logarithmic: bool = False
    limit: str = ""


@dataclass(frozen=True)
class _Bar:
    label: str
    median: float
    found: list[float]
    colour: str


_PANELS = (
    _Panel("Burst", "deliveries a second", "burst", "rate", True, limit="libcurl"),
    _Panel("Lateness at 200 a second", "p99 in ms", "lateness 200", "p99", False, logarithmic=True),
    _Panel("Processor time", "µs per task", "burst", "cpu_us", False, logarithmic=True, limit="libcurl"),
    _Panel("Submitting", "tasks a second", "submit", "rate", True),
    _Panel("Receiver that answers after 1 s", "deliveries a second", "slow 1", "rate", True),
    _Panel("A waiting task", "bytes in Redis; for QTask without the dict", "submit", "bytes", False),
)


def draw(kept: Results, path: Path) -> None:
    """Draws the picture to a file, in the format of its extension."""
    settings: Any = {"svg.hashsalt": "qtask", "font.size": 9, "text.color": _INK, "ytick.color": _INK}
    with matplotlib.rc_context(settings):
        figure, axes = plt.subplots(3, 2, figsize=(11.5, 13), layout=ConstrainedLayoutEngine(h_pad=0.18, w_pad=0.12))
        for axis, panel in zip(axes.flat, _PANELS, strict=True):
            _draw_panel(axis, kept, panel)
        figure.suptitle("QTask and its peers on one machine", fontsize=16, fontweight="bold", x=0.015, ha="left")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _draw_panel(axis: Any, kept: Results, panel: _Panel) -> None:
    bars = _bars(kept, panel)
    axis.set_xscale("log" if panel.logarithmic and all(bar.median > 0 for bar in bars) else "linear")
    for place, bar in enumerate(bars):
        axis.barh(place, bar.median, color=bar.colour, height=0.74)
        if len(bar.found) > 1:
            axis.plot([min(bar.found), max(bar.found)], [place, place], color=_INK, linewidth=1)
        words = f"{bar.median:,.0f}" if abs(bar.median) >= 20 else f"{bar.median:,.1f}"
        axis.annotate(words, (max(bar.found), place), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
    for label, bar in zip(axis.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if bar.colour == _OWN_COLOUR else "normal")
    axis.invert_yaxis()
    axis.margins(x=0.16, y=0.02)
    axis.spines[:].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    unit = f"{panel.unit}; {'more' if panel.more_is_better else 'less'} is better"
    unit += ", logarithmic scale" if panel.logarithmic else ""
    axis.set_title(f"{panel.title}\n", fontsize=11.5, fontweight="bold", loc="left", pad=2)
    axis.annotate(unit, (0, 1), (0, 4), xycoords="axes fraction", textcoords="offset points", color=_FAINT, va="bottom")
    behind = _fell_behind(kept, panel)
    if behind:
        axis.set_xlabel(f"left out because they fall behind: {', '.join(behind)}", loc="left", color=_FAINT)


def _bars(kept: Results, panel: _Panel) -> list[_Bar]:
    bars = []
    for name, label in _LABELS.items():
        found = kept.all(name, panel.measure, panel.value)
        if found and not kept.all(name, panel.measure, "behind"):
            median = kept.median(name, panel.measure, panel.value) or 0.0
            bars.append(_Bar(label, median, found, _OWN_COLOUR if name in _OWN else _PEER_COLOUR))
    bars.sort(key=lambda bar: bar.median, reverse=panel.more_is_better)
    limit = kept.median("limit", panel.limit, panel.value) if panel.limit else None
    if limit is not None:
        found = kept.all("limit", panel.limit, panel.value)
        bars.insert(0, _Bar("the limit: bare libcurl", limit, found, _LIMIT_COLOUR))
    return bars


def _fell_behind(kept: Results, panel: _Panel) -> list[str]:
    return [label for name, label in _LABELS.items() if kept.all(name, panel.measure, "behind")]
