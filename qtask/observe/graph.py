"""Draws the graph of lateness, duration and outcomes of deliveries.

It uses matplotlib's objects, not pyplot, and no global state, so several threads may draw at the same time.
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
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from redis import Redis

from qtask.observe import stats
from qtask.observe.stats import Samples

Format = Literal["png", "svg"]

_DOTS = 5_000  # with more, dots would hide one another, so the density is drawn
_TIME_BINS = 60
_LEGEND_ROWS = 6  # of the outcomes; more make two columns
_FLOOR_SECONDS = 1e-5  # shorter values are drawn here, since a logarithmic axis has no zero
_SECONDS_A_DAY = 86_400.0

# Colours after Okabe and Ito, which colour-blind readers can tell apart.
_INK = "#2b2b33"
_FAINT = "#8a8a96"
_GRID = "#e4e4ea"
_BODY = "#56b4e9"
_LINES = (("p50", 50, "#0072b2"), ("p95", 95, "#e69f00"), ("p99", 99, "#d55e00"))
_SHADE = "#6aaed6"
# Each status always has the same colour, so that pictures can be compared. Bars and legend have this order.
_STATUSES = {
    "delivered": "#009e73",
    "status": "#d55e00",
    "timeout": "#e69f00",
    "connect": "#7a5195",
    "no_reader": "#cc79a7",
    "dns": "#0072b2",
    "tls": "#8c564b",
    "protocol": "#3d3d46",
    "redirect": "#56b4e9",
    "refused": "#a0a0ac",
    "internal": "#f0e442",
}
_OTHER_STATUS = "#c8c8d0"
_STATUS_NAMES = {"status": "HTTP status", "no_reader": "no reader", "dns": "DNS", "tls": "TLS"}
_TYPE_NAMES = {"__graph__": "graph"}

_TICKS = tuple(10.0**power for power in range(-5, 6))


def render(redis: Redis, format: Format = "png") -> bytes:
    """Reads the statistics and draws them; returns the picture."""
    return draw(stats.read(redis), format)


def draw(samples: Sequence[Samples], format: Format = "png") -> bytes:
    """Draws outcomes.

    Args:
        samples: one item per type; types without outcomes are left out.
        format: format of the picture.

    Returns the picture, 1,300 by 900 pixels as PNG.
    """
    drawn = [one for one in samples if len(one)]
    figure = Figure(
        figsize=(13, 9),
        dpi=100,
        facecolor="white",
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, hspace=0.04, wspace=0.03),
    )
    if drawn:
        _draw_all(figure, drawn)
    else:
        _draw_nothing(figure)
    target = io.BytesIO()
    if format == "svg":
        FigureCanvasSVG(figure)
        figure.savefig(target, format="svg", metadata={"Title": "QTask deliveries", "Date": None})
    else:
        FigureCanvasAgg(figure)
        figure.savefig(target, format="png", metadata={"Title": "QTask deliveries"})
    return target.getvalue()


def _draw_nothing(figure: Figure) -> None:
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.text(0.5, 0.56, "no deliveries yet", ha="center", va="center", fontsize=26, color=_INK)
    words = "send a task and draw again: this picture will show how late and how long each delivery was"
    axes.text(0.5, 0.48, words, ha="center", va="center", fontsize=12, color=_FAINT)


def _draw_all(figure: Figure, samples: Sequence[Samples]) -> None:
    ended = np.concatenate([np.asarray(one.ended) for one in samples])
    order = np.argsort(ended, kind="stable")
    ended = ended[order]
    lateness = np.concatenate([np.asarray(one.lateness) for one in samples])[order]
    duration = np.concatenate([np.asarray(one.duration) for one in samples])[order]
    totals = {one.type: Counter(one.status) for one in samples}
    statuses = _ranked({status for counts in totals.values() for status in counts})
    bars_height = max(0.55 + 0.42 * len(samples), 0.3 + 0.24 * _legend_rows(len(statuses)))
    grid = figure.add_gridspec(3, 2, width_ratios=(2.7, 1), height_ratios=(3, 3, bars_height))
    limits = _time_limits(ended)
    for row, (name, about, values) in enumerate(
        (
            ("Lateness", "start of a task's first delivery after due", lateness),
            ("Duration", "start to end of a delivery", duration),
        )
    ):
        known = ~np.isnan(values)  # retries have no lateness
        shown = np.maximum(values[known], _FLOOR_SECONDS)
        over_time = figure.add_subplot(grid[row, 0])
        _head(over_time, name, about)
        if not len(shown):
            _say_none(over_time)
            continue
        _draw_over_time(over_time, ended[known], shown, limits)
        spread = figure.add_subplot(grid[row, 1], sharey=over_time)
        _draw_distribution(spread, shown)
        _head(spread, "Distribution", "")
        _seconds_axis(over_time, shown)
        spread.tick_params(labelleft=False)
    _draw_counts(figure.add_subplot(grid[2, 0]), figure.add_subplot(grid[2, 1]), totals, statuses)
    figure.suptitle(_title(ended), x=0.012, ha="left", fontsize=17, color=_INK, fontweight="bold")


def _say_none(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "none among these", ha="center", va="center", fontsize=12, color=_FAINT)


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
        size, alpha = (9, 0.9) if len(values) < 50 else (5, 0.75) if len(values) < 500 else (5, 0.35)
        axes.plot(days, values, ".", color=_BODY, alpha=alpha, markersize=size, rasterized=True)
        legend = [Line2D([], [], color=_BODY, marker=".", linestyle="", markersize=9, label="a delivery")]
    else:
        _draw_density(axes, days, values, limits)
        legend = [Line2D([], [], color=_SHADE, marker="s", linestyle="", markersize=7, label="darker: more")]
    if len(values) >= 20:
        edges = np.linspace(limits[0], limits[1], min(_TIME_BINS, max(4, len(values) // 20)) + 1)
        starts = np.searchsorted(ended, edges)
        spans = [(a, b) for a, b in pairwise(starts) if b > a]
        middles = [float(days[a:b].mean()) for a, b in spans]
        for _, percent, colour in _LINES:
            heights = [float(np.percentile(values[a:b], percent)) for a, b in spans]
            outline = [withStroke(linewidth=3.4, foreground="white")]
            axes.plot(middles, heights, color=colour, linewidth=1.8, path_effects=outline)
    _style(axes)
    locator = AutoDateLocator(minticks=3, maxticks=8)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(
        ConciseDateFormatter(
            locator,
            formats=["%Y", "%b %Y", "%b %d", "%H:%M", "%H:%M", "%H:%M:%S.%f"],
            zero_formats=["", "%Y", "%b %d", "%b %d", "%H:%M", "%H:%M:%S"],
            show_offset=False,
        )
    )
    axes.set_xlabel("time (UTC)", color=_FAINT, fontsize=10)
    for name, percent, colour in _LINES:
        words = f"{name}  {_words(float(np.percentile(values, percent)))}"
        legend.append(Line2D([], [], color=colour, linewidth=2, label=words))
    axes.legend(
        handles=legend,
        loc="lower right",
        bbox_to_anchor=(1, 1),  # above the axes, where it hides no deliveries
        borderaxespad=0.25,
        ncols=len(legend),
        columnspacing=1.3,
        handlelength=1.4,
        handletextpad=0.5,
        frameon=False,
        fontsize=10,
        labelcolor=_INK,
    ).set_in_layout(False)


def _draw_density(axes: Axes, days: Any, values: Any, limits: tuple[float, float]) -> None:
    low, high = _value_limits(values)
    columns = np.linspace(limits[0] / _SECONDS_A_DAY, limits[1] / _SECONDS_A_DAY, 141)
    rows = np.geomspace(low, high, 71)
    counts, _, _ = np.histogram2d(days, values, bins=(columns, rows))
    shade = np.ma.masked_equal(np.log1p(counts.T), 0)
    # The darkest blues are left out, so that the line of p50 remains visible.
    axes.pcolormesh(columns, rows, shade, cmap="Blues", vmin=-0.6, vmax=float(shade.max()) * 1.4, rasterized=True)


def _draw_distribution(axes: Axes, values: Any) -> None:
    low, high = _value_limits(values)
    bins = np.geomspace(low, high, 46)
    axes.hist(values, bins=bins, orientation="horizontal", color=_BODY, alpha=0.8)  # type: ignore[arg-type]
    for _, percent, colour in _LINES:
        axes.axhline(float(np.percentile(values, percent)), color=colour, linewidth=1.6)
    _style(axes)
    axes.set_xlabel("deliveries", color=_FAINT, fontsize=10)
    _count_axis(axes, 4)


def _draw_counts(axes: Axes, legend: Axes, totals: dict[str, Counter[str]], statuses: Sequence[str]) -> None:
    names = [_TYPE_NAMES.get(one, one) for one in totals]
    left = np.zeros(len(totals))
    for status in statuses:
        widths = np.array([counts[status] for counts in totals.values()], dtype=float)
        label = f"{_STATUS_NAMES.get(status, status)}  {int(widths.sum()):,}"
        axes.barh(names, widths, left=left, color=_STATUSES.get(status, _OTHER_STATUS), height=0.62, label=label)
        left += widths
    _style(axes)
    _head(axes, "Outcomes", "by type of address")
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlim(0, float(left.max()) * 1.3)  # room for the text after the longest bar
    _count_axis(axes, 8)
    axes.set_xlabel("deliveries", color=_FAINT, fontsize=10)
    for row, counts in enumerate(totals.values()):
        words = f"{counts.total():,}  ({_failed_share(counts)})"
        place = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(words, (counts.total(), row), fontsize=10, color=_INK, **place)  # type: ignore[arg-type]
    legend.set_axis_off()
    handles, labels = axes.get_legend_handles_labels()
    legend.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        ncols=1 if len(labels) <= _LEGEND_ROWS else 2,
        columnspacing=1.0,
        handlelength=1.2,
        frameon=False,
        fontsize=10 if len(labels) <= _LEGEND_ROWS else 9,
        labelcolor=_INK,
    ).set_in_layout(False)


def _ranked(statuses: set[str]) -> list[str]:
    order = {status: place for place, status in enumerate(_STATUSES)}
    return sorted(statuses, key=lambda status: (order.get(status, len(order)), status))


def _legend_rows(labels: int) -> int:
    return labels if labels <= _LEGEND_ROWS else -(-labels // 2)


def _failed_share(counts: Counter[str]) -> str:
    failed = counts.total() - counts["delivered"]
    if not failed:
        return "all delivered"
    if failed == counts.total():
        return "all failed"
    percent = 100 * failed / counts.total()
    return f"{percent:.1f} % failed" if percent >= 0.1 else "< 0.1 % failed"


def _head(axes: Axes, name: str, about: str) -> None:
    title = axes.set_title(name, loc="left", fontsize=12.5, color=_INK, fontweight="bold", pad=8)
    if about:
        look = {"fontsize": 10, "color": _FAINT}
        axes.annotate(
            about,
            xy=(1, 0.5),
            xycoords=title,
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            **look,  # type: ignore[arg-type]
        ).set_in_layout(False)


def _style(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=10, length=0)
    axes.tick_params(axis="x", pad=6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)


def _count_axis(axes: Axes, intervals: int) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    axes.locator_params(axis="x", nbins=intervals, integer=True)


def _seconds_axis(axes: Axes, values: Any) -> None:
    low, high = _value_limits(values)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _TICKS if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _words(value, round_only=True)))


def _value_limits(values: Any) -> tuple[float, float]:
    """A power of ten below the smallest value and one above the largest, so that the axis always has labels."""
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
