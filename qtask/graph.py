"""The picture of how punctual and how fast deliveries were.

Drawn with matplotlib's objects only: no pyplot and no global state, so several threads may draw at once.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from redis import Redis

from qtask import stats
from qtask.stats import Samples

Format = Literal["png", "svg"]

_DOTS = 5_000  # beyond this many, dots would hide one another, and density is drawn
_TIME_BINS = 60
_FLOOR_SECONDS = 1e-5  # what is shorter is drawn here: a logarithmic axis has no zero
_SECONDS_A_DAY = 86_400.0

# Colours after Okabe and Ito, which colour-blind readers can tell apart.
_INK = "#2b2b33"
_FAINT = "#8a8a96"
_GRID = "#e4e4ea"
_BODY = "#56b4e9"
_LINES = (("p50", 50, "#0072b2"), ("p95", 95, "#e69f00"), ("p99", 99, "#d55e00"))
_DELIVERED = "#009e73"
_FAILURES = ("#d55e00", "#cc79a7", "#e69f00", "#7a5195", "#666666", "#b5651d")
_KIND_NAMES = {"__graph__": "graph"}

_TICKS = tuple(10.0**power for power in range(-5, 6))


def render(redis: Redis, format: Format = "png") -> bytes:
    """Reads the statistics and draws them; returns the picture."""
    return draw(stats.read(redis), format)


def draw(samples: Sequence[Samples], format: Format = "png") -> bytes:
    """Draws outcomes.

    Args:
        samples: one item a kind; kinds without outcomes are left out.
        format: of the picture.

    Returns the picture, 1,300 by 900 pixels as PNG.
    """
    kinds = [kind for kind in samples if len(kind)]
    figure = Figure(
        figsize=(13, 9),
        dpi=100,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, hspace=0.04, wspace=0.03),
    )
    if kinds:
        _draw_all(figure, kinds)
    else:
        _draw_nothing(figure)
    target = io.BytesIO()
    if format == "svg":
        FigureCanvasSVG(figure)
        figure.savefig(target, format="svg", metadata={"Date": None})
    else:
        FigureCanvasAgg(figure)
        figure.savefig(target, format="png")
    return target.getvalue()


def _draw_nothing(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.56, "no deliveries yet", ha="center", va="center", fontsize=26, color=_INK)
    words = "send a task and ask again: this picture will show how late and how long each delivery was"
    axes.text(0.5, 0.48, words, ha="center", va="center", fontsize=12, color=_FAINT)


def _draw_all(figure: Figure, kinds: Sequence[Samples]) -> None:
    ended = np.concatenate([np.asarray(kind.ended) for kind in kinds])
    order = np.argsort(ended, kind="stable")
    ended = ended[order]
    lateness = np.concatenate([np.asarray(kind.lateness) for kind in kinds])[order]
    duration = np.concatenate([np.asarray(kind.duration) for kind in kinds])[order]
    grid = figure.add_gridspec(3, 2, width_ratios=(2.6, 1), height_ratios=(3, 3, 0.55 + 0.42 * len(kinds)))
    limits = _time_limits(ended)
    for row, (name, about, values) in enumerate(
        (
            ("Lateness", "start of the delivery after its due instant", lateness),
            ("Duration", "end of the delivery after its start", duration),
        )
    ):
        shown = np.maximum(values, _FLOOR_SECONDS)
        over_time = figure.add_subplot(grid[row, 0])
        _draw_over_time(over_time, ended, shown, limits)
        _head(over_time, name, about)
        spread = figure.add_subplot(grid[row, 1], sharey=over_time)
        _draw_distribution(spread, shown)
        _head(spread, "Distribution", "")
        _seconds_axis(over_time, shown)
        spread.tick_params(labelleft=False)
    _draw_counts(figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1]), kinds)
    figure.suptitle(_title(ended), x=0.012, ha="left", fontsize=17, color=_INK, fontweight="bold")


def _title(ended: Any) -> str:
    first, last = (datetime.fromtimestamp(float(value), UTC) for value in (ended[0], ended[-1]))
    count = f"{len(ended):,} deliveries" if len(ended) != 1 else "1 delivery"
    if last.date() == first.date():
        when = (
            f"{first:%Y-%m-%d %H:%M:%S} to {last:%H:%M:%S} UTC" if len(ended) > 1 else f"{first:%Y-%m-%d %H:%M:%S} UTC"
        )
    else:
        when = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    return f"QTask: {count}, {when}"


def _time_limits(ended: Any) -> tuple[float, float]:
    first, last = float(ended[0]), float(ended[-1])
    margin = max(0.5, (last - first) * 0.01)
    return first - margin, last + margin


def _draw_over_time(axes: Axes, ended: Any, values: Any, limits: tuple[float, float]) -> None:
    days = ended / _SECONDS_A_DAY
    axes.set_xlim(limits[0] / _SECONDS_A_DAY, limits[1] / _SECONDS_A_DAY)
    axes.set_yscale("log")
    if len(values) <= _DOTS:
        alpha = 0.75 if len(values) < 500 else 0.35
        axes.plot(days, values, ".", color=_BODY, alpha=alpha, markersize=5, label="a delivery", rasterized=True)
    else:
        _draw_density(axes, days, values, limits)
    if len(values) >= 20:
        edges = np.linspace(limits[0], limits[1], min(_TIME_BINS, max(4, len(values) // 20)) + 1)
        starts = np.searchsorted(ended, edges)
        for name, percent, colour in _LINES:
            spans = [(a, b) for a, b in pairwise(starts) if b > a]
            middles = [float(days[a:b].mean()) for a, b in spans]
            heights = [float(np.percentile(values[a:b], percent)) for a, b in spans]
            outline = [withStroke(linewidth=3.2, foreground="white")]
            axes.plot(middles, heights, color=colour, linewidth=1.8, label=name, path_effects=outline)
    _style(axes)
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))
    axes.set_xlabel("time (UTC)", color=_FAINT, fontsize=10)
    axes.legend(loc="upper left", ncols=4, frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, labelcolor=_INK)


def _draw_density(axes: Axes, days: Any, values: Any, limits: tuple[float, float]) -> None:
    low, high = _value_limits(values)
    columns = np.linspace(limits[0] / _SECONDS_A_DAY, limits[1] / _SECONDS_A_DAY, 141)
    rows = np.geomspace(low, high, 71)
    counts, _, _ = np.histogram2d(days, values, bins=(columns, rows))
    shade = np.ma.masked_equal(np.log1p(counts.T), 0)
    axes.pcolormesh(columns, rows, shade, cmap="Blues", vmin=-0.6, alpha=0.85, rasterized=True)
    axes.plot([], [], "s", color="#6aaed6", label="deliveries (darker: more)")


def _draw_distribution(axes: Axes, values: Any) -> None:
    low, high = _value_limits(values)
    bins = np.geomspace(low, high, 46)
    axes.hist(values, bins=bins, orientation="horizontal", color=_BODY, alpha=0.8)  # type: ignore[arg-type]
    for name, percent, colour in _LINES:
        height = float(np.percentile(values, percent))
        axes.axhline(height, color=colour, linewidth=1.6, label=f"{name}  {_words(height)}")
    _style(axes)
    axes.set_xlabel("deliveries", color=_FAINT, fontsize=10)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", fontsize=10, labelcolor=_INK)


def _draw_counts(axes: Axes, legend: Axes, kinds: Sequence[Samples]) -> None:
    totals = {kind.kind: Counter(kind.status) for kind in kinds}
    statuses = sorted(
        {status for counts in totals.values() for status in counts}, key=lambda one: (one != "delivered", one)
    )
    names = [_KIND_NAMES.get(kind, kind) for kind in totals]
    left = np.zeros(len(totals))
    failures = iter(_FAILURES * (1 + len(statuses) // len(_FAILURES)))
    for status in statuses:
        widths = np.array([counts[status] for counts in totals.values()], dtype=float)
        colour = _DELIVERED if status == "delivered" else next(failures)
        label = f"{status.replace('_', ' ')}  {int(widths.sum()):,}"
        axes.barh(names, widths, left=left, color=colour, height=0.62, label=label)
        left += widths
    _style(axes)
    _head(axes, "Outcomes", "by type of address")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlim(0, float(left.max()) * 1.02)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("deliveries", color=_FAINT, fontsize=10)
    legend.set_axis_off()
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if len(labels) <= 4 else 2
    legend.legend(handles, labels, loc="upper left", ncols=columns, frameon=False, fontsize=10.5, labelcolor=_INK)


def _head(axes: Axes, name: str, about: str) -> None:
    axes.set_title(name, loc="left", fontsize=12.5, color=_INK, fontweight="bold", pad=8)
    if about:
        axes.set_title(about, loc="right", fontsize=10, color=_FAINT, pad=8)


def _style(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=10, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)


def _seconds_axis(axes: Axes, values: Any) -> None:
    low, high = _value_limits(values)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _words(value, round_only=True)))


def _value_limits(values: Any) -> tuple[float, float]:
    """From a power of ten below the least to one above the largest, so that the axis always has labels."""
    low = 10.0 ** np.floor(np.log10(float(values.min()) * 0.999))
    high = 10.0 ** np.ceil(np.log10(float(values.max()) * 1.5))
    return float(low), float(max(high, low * 100))


def _words(seconds: float, round_only: bool = False) -> str:
    if seconds <= _FLOOR_SECONDS and not round_only:
        return f"≤ {_FLOOR_SECONDS * 1e6:.0f} µs"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size * 0.9995:
            return f"{seconds / size:.0f} {unit}" if round_only else f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.0f} µs"
