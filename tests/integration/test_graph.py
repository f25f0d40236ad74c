"""The picture of lateness and duration: correct for no data, for one delivery, and for a million."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qtask.observe.graph import draw
from qtask.observe.stats import Samples
from tests.support.pictures import check_png, texts

NOW = 1_795_489_515.0  # 2026-11-24 03:05:15 UTC


def samples(kind: str, count: int, seconds: float = 3_600.0, failures: tuple[str, ...] = ()) -> Samples:
    """Outcomes as in practice: milliseconds late, sometimes much more, a few failed."""
    random = np.random.default_rng(count)
    ended = NOW + np.sort(random.random(count)) * seconds
    lateness = random.lognormal(np.log(0.002), 0.6, count)
    duration = random.lognormal(np.log(0.005), 0.8, count)
    status = np.full(count, "delivered", dtype=object)
    for number, failure in enumerate(failures):
        status[number :: 29 + number] = failure
    return Samples(kind, ended.tolist(), lateness.tolist(), duration.tolist(), status.tolist())


DATA: dict[str, Callable[[], list[Samples]]] = {
    "no deliveries": lambda: [Samples("http"), Samples("pipe")],
    "one delivery": lambda: [samples("http", 1)],
    "one delivery without delay": lambda: [Samples("http", [NOW], [0.0], [0.0], ["delivered"])],
    "the same again and again": lambda: [Samples("pipe", [NOW] * 30, [0.001] * 30, [0.001] * 30, ["no_reader"] * 30)],
    "two kinds": lambda: [samples("http", 200), samples("__graph__", 2)],
    "5,000": lambda: [samples("http", 4_000, failures=("status", "timeout")), samples("socket", 1_000)],
    "5,001 over a year": lambda: [samples("http", 5_001, seconds=31_536_000)],
    "every status": lambda: [
        samples("http", 2_000, failures=("dns", "connect", "timeout", "tls", "protocol")),
        samples("pipe", 2_000, failures=("redirect", "status", "no_reader", "internal", "odd")),
    ],
    "very late": lambda: [Samples("http", [NOW, NOW + 1], [86_400.0, 1.0], [600.0, 0.1], ["delivered"] * 2)],
}


@pytest.mark.parametrize("name", DATA)
def test_any_data_makes_a_valid_svg_with_its_count(name: str) -> None:
    data = DATA[name]()
    written = texts(draw(data, "svg"))
    deliveries = sum(len(kind) for kind in data)
    assert (f"{deliveries:,} deliver" if deliveries else "no deliveries yet") in written


@pytest.mark.parametrize("name", ["no deliveries", "one delivery", "5,000"])
def test_any_data_makes_a_valid_png(name: str) -> None:
    check_png(draw(DATA[name]()))


def test_picture_has_title_units_and_legends() -> None:
    data = [samples("http", 1_000, failures=("status", "timeout")), samples("__graph__", 3), Samples("pipe")]
    written = texts(draw(data, "svg"))
    for text in (
        "QTask: 1,003 deliveries, 2026-11-24 03:05:1",
        "UTC",
        "Lateness",
        "Duration",
        "Distribution",
        "Outcomes",
        "time (UTC)",
        "a delivery",
        "p50  ",
        "p95  ",
        "p99  ",
        " ms",
        "1 ms",
        "10 ms",
        "http",
        "graph",
        "HTTP status  34",
        "timeout  34",
        "delivered  935",
        "3  (all delivered)",
    ):
        assert text in written, text
    assert "pipe" not in written, "a type without deliveries has no bar"


def test_percentiles_in_the_legend_match_the_data() -> None:
    data = Samples(
        "http", [NOW + n for n in range(101)], [n / 1_000 for n in range(101)], [0.25] * 101, ["delivered"] * 101
    )
    written = texts(draw([data], "svg"))
    for text in ("p50  50 ms", "p95  95 ms", "p99  99 ms", "p50  250 ms"):
        assert text in written, text


def test_million_deliveries_are_drawn_with_bounded_size() -> None:
    data = [samples("http", 900_000, seconds=86_400, failures=("status",)), samples("socket", 100_000, seconds=86_400)]
    picture = draw(data, "svg")
    assert "1,000,000 deliveries" in texts(picture)
    assert len(picture) < 1_000_000
    check_png(draw(data))


@pytest.mark.slow
def test_several_threads_can_draw_at_once() -> None:
    names = ["one delivery", "two kinds", "very late"]
    with ThreadPoolExecutor(len(names)) as threads:
        together = list(threads.map(lambda name: draw(DATA[name]()), names))
    assert together == [draw(DATA[name]()) for name in names]


def test_drawing_changes_no_global_state_of_matplotlib() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from qtask.observe.graph import draw; from qtask.observe.stats import Samples\n"
        "draw([Samples('http', [1.0, 2.0], [0.1, 0.2], [0.1, 0.2], ['delivered'] * 2)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams.copy() == before\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("process", ["gateway", "scheduler", "worker"])
def test_processes_do_not_import_matplotlib(process: str) -> None:
    """test_up.py checks running processes from outside; this test also names the module that imports it."""
    code = (
        "import sys\n"
        f"import qtask.cli.main, qtask.{process}.process\n"
        "from qtask.config import Config\n"
        "from qtask.delivery.deliverer import deliverer\n"
        "from qtask.delivery.loop import Loop\n"
        "for kind in ('http', 'socket', 'pipe', '__graph__'): deliverer(kind, Loop(), Config()).close()\n"
        "sys.exit(', '.join({'matplotlib', 'numpy', 'qtask.observe.graph'} & sys.modules.keys()) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
