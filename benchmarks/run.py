"""The command line: `python -m benchmarks.run`."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

from redis.exceptions import RedisError

from benchmarks import flow_costs, limit, measures, qtask_flows, qtask_isolation, qtask_measures, report, results
from benchmarks.measures import FellBehind, Values
from benchmarks.peers.catalogue import PEERS, PeerSystem
from benchmarks.qtask_system import QTask
from benchmarks.receiver import Receiver
from benchmarks.results import Results
from benchmarks.sizes import CHECK, FULL, QUICK, Sizes
from benchmarks.stage import Stage
from benchmarks.system import System

FORMS = {"full": FULL, "quick": QUICK, "check": CHECK}
COMMON = ("submit", "burst", "lateness", "slow")
QTASK_ONLY = (
    "ways",
    "round-trips",
    "idle",
    "scaling",
    "many",
    "crowd",
    "flow-rates",
    "flow-burst",
    "isolation",
    "flows",
    "start",
)
_LOAD_THAT_SPOILS = 0.5
_FAILURES = (RuntimeError, OSError, RedisError, subprocess.SubprocessError, TimeoutError)


class Run:
    """One run over systems and measures.

    Args:
        form: `full`, `quick` or `check`.
        receiver: the receiver of all deliveries.
        kept: the results; measures that it has already are not repeated.
        wanted: names of the measures.
    """

    def __init__(self, form: str, receiver: Receiver, kept: Results, wanted: set[str]) -> None:
        self._sizes: Sizes = FORMS[form]
        self._receiver = receiver
        self._kept = kept
        self._wanted = wanted
        self._began = time.monotonic()

    def limits(self, repetition: int) -> None:
        """Measures the limits of the machine."""
        seconds = self._sizes.limit_seconds
        self._receiver.reset()  # the last measure of the repetition before may have made it slow
        self._measure("limit", "receiver", repetition, partial(limit.receiver_alone, self._receiver, seconds))
        self._measure("limit", "libcurl", repetition, partial(limit.libcurl, self._receiver, seconds))
        self._measure("limit", "set", repetition, partial(limit.redis_set, False, seconds))
        self._measure("limit", "set, as shipped", repetition, partial(limit.redis_set, True, seconds))

    def system(self, system: System, repetition: int) -> None:
        """Takes the measures of every system."""
        sizes, name = self._sizes, system.name
        try:
            system.prepare()
        except _FAILURES as error:
            self._failed(name, "its environment", error)
            return
        self._kept.titles[name], self._kept.remarks[name] = system.title, system.remark
        self._kept.versions[name] = system.versions()
        submit = partial(measures.waiting, count=sizes.waiting)
        self._on_stage(system, False, repetition, {"submit": submit}, False)
        fast: dict[str, Callable[[Stage], Values]] = {
            "burst": partial(measures.burst, count=max(20, int(system.burst * sizes.share)))
        }
        for rate in sizes.rates:
            fast[f"lateness {rate}"] = partial(measures.lateness, rate=rate, seconds=sizes.lateness_seconds)
        self._on_stage(system, False, repetition, fast)
        if repetition and isinstance(system, PeerSystem):
            return  # for peers, slow receivers are measured once, or a run would take hours
        slow: dict[str, Callable[[Stage], Values]] = {}
        for delay in sizes.slow_delays:
            slow[f"slow {delay:g}"] = partial(measures.slow_receiver, delay=delay, seconds=sizes.slow_seconds)
        self._on_stage(system, True, repetition, slow)

    def qtask_only(self, repetition: int) -> None:
        """Takes the measures of QTask alone."""
        sizes, receiver = self._sizes, self._receiver
        self._measure("qtask", "ways", repetition, partial(qtask_measures.ways_of_submitting, receiver, sizes))
        self._measure("qtask", "round-trips", repetition, partial(qtask_measures.round_trips, receiver, sizes))
        self._measure("qtask", "idle", repetition, partial(qtask_measures.idle, receiver, sizes))
        for workers in sizes.scaling:
            self._measure(
                "qtask", f"scaling {workers}", repetition, partial(qtask_measures.scaling, receiver, sizes, workers)
            )
        self._measure("qtask", "many", repetition, partial(qtask_measures.many_in_flight, receiver, sizes))
        for waiting in () if repetition else sizes.crowds:  # once, because a million tasks take long
            self._measure(
                "qtask", f"crowd {waiting}", repetition, partial(qtask_measures.crowd, receiver, sizes, waiting)
            )
        self._measure("qtask", "flow-rates", repetition, partial(qtask_flows.many_flows, receiver, sizes))
        self._measure("qtask", "flow-burst", repetition, partial(qtask_flows.flow_burst, receiver, sizes))
        for name in sizes.isolation:
            self._measure(
                "qtask", f"isolation {name}", repetition, partial(qtask_isolation.isolation, receiver, sizes, name)
            )
        for shape in () if repetition else flow_costs.SHAPES:  # once, because a million tasks take long
            self._measure(
                "qtask", f"flows {shape}", repetition, partial(flow_costs.flow_costs, shape, sizes.flow_tasks)
            )
        self._measure("qtask", "start", repetition, partial(qtask_measures.starting, sizes))

    def _on_stage(
        self,
        system: System,
        slow: bool,
        repetition: int,
        todo: dict[str, Callable[[Stage], Values]],
        delivering: bool = True,
    ) -> None:
        """Measures on one stage, and on a new one after a measure in which the system fell behind."""
        left = [name for name in todo if self._is_wanted(name) and not self._kept.has(system.name, name, repetition)]
        while left:
            try:
                with Stage(system, self._receiver) as stage:
                    if delivering:
                        stage.start_delivering(slow)
                    self._until_spoiled(stage, left, todo, repetition)
            except _FAILURES as error:  # it does not start, or does not stop
                self._failed(system.name, ", ".join(left) or "its end", error)
                return

    def _until_spoiled(
        self, stage: Stage, left: list[str], todo: dict[str, Callable[[Stage], Values]], repetition: int
    ) -> None:
        """Takes measures from `left` until one spoils the stage for the next."""
        system = stage.system.name
        clean = True
        while left and clean:
            name = left.pop(0)
            if not self._is_hopeless(system, name, repetition):
                clean = self._measure(system, name, repetition, partial(_in_time, todo[name], stage))

    def _measure(self, system: str, measure: str, repetition: int, take: Callable[[], Values]) -> bool:
        """Takes a measure and stores its values; returns False if the stage is spoiled."""
        if not self._is_wanted(measure) or self._kept.has(system, measure, repetition):
            return True
        try:
            values = take()
        except FellBehind as behind:
            values = {**behind.values, "behind": 1.0}
        except _FAILURES as error:
            self._failed(system, measure, error)
            return False
        self._kept.add(system, measure, repetition, values)
        self._say(f"{repetition + 1} {system:14} {measure:16} {report.one_line(values)}")
        return "behind" not in values

    def _is_wanted(self, measure: str) -> bool:
        first = measure.split()[0].rstrip(",")
        return ("limit" if first in ("receiver", "libcurl", "set") else first) in self._wanted

    def _is_hopeless(self, system: str, measure: str, repetition: int) -> bool:
        """Records without measuring that a system falls behind, if its burst is slower or it did at a lower rate."""
        if self._sizes is CHECK or not measure.startswith("lateness"):
            return False
        rate = int(measure.split()[1])
        burst = self._kept.median(system, "burst", "rate")
        lower = (f"lateness {other}" for other in self._sizes.rates if other < rate)
        if (burst is None or burst >= rate) and not any(self._kept.all(system, other, "behind") for other in lower):
            return False
        self._kept.add(system, measure, repetition, {"behind": 1.0})
        return True

    def _failed(self, system: str, measure: str, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        self._kept.errors[f"{system}, {measure}"] = text[:1000]
        self._kept.save()
        self._say(f"{system}, {measure}: {text}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {text}", flush=True)


def _in_time(take: Callable[[Stage], Values], stage: Stage) -> Values:
    """Takes a measure, and repeats it if tasks were due before the last was submitted, which spoils the figures."""
    values = take(stage)
    return values if values.get("in_time", 1.0) else take(stage)


def _systems() -> list[System]:
    return [
        QTask("qtask"),
        QTask("qtask-one", workers=1),
        QTask("qtask-memory", shipped=False),
        *(PeerSystem(peer) for peer in PEERS),
    ]


def _arguments() -> argparse.Namespace:
    names = ["limit", *(system.name for system in _systems())]
    measure_names = ["limit", *COMMON, *QTASK_ONLY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--form", choices=list(FORMS), default="full", help="size of the run [full]")
    parser.add_argument("--only", help=f"systems, with commas: {', '.join(names)}")
    parser.add_argument("--measures", help=f"measures, with commas: {', '.join(measure_names)}")
    parser.add_argument("--repetitions", type=int, help="repetitions of each measure [3; 1 unless full]")
    parser.add_argument("--resume", action="store_true", help="continue the last run of this form")
    parser.add_argument("--report", action="store_true", help="measure nothing, but write the report of the last run")
    arguments = parser.parse_args()
    for given, known in ((arguments.only, names), (arguments.measures, measure_names)):
        for name in given.split(",") if given else ():
            if name not in known:
                parser.error(f"{name!r} is none of: {', '.join(known)}")
    return arguments


def _run(arguments: argparse.Namespace) -> Results:
    quick = arguments.form == "quick" and not arguments.only
    only = set(arguments.only.split(",")) if arguments.only else None
    wanted = set(arguments.measures.split(",")) if arguments.measures else {"limit", *COMMON, *QTASK_ONLY}
    kept = results.load(arguments.form)
    if not arguments.resume:
        kept = Results(arguments.form, kept.path)
    kept.errors = {}
    kept.machine = {**qtask_measures.versions(), "load before": f"{os.getloadavg()[0]:.2f}"}
    if os.getloadavg()[0] > _LOAD_THAT_SPOILS:
        print(
            f"The machine is busy (load {os.getloadavg()[0]:.2f}): the figures will be worse than on an idle machine."
        )
    systems = [
        system for system in _systems() if (system.name == "qtask" if quick else not only or system.name in only)
    ]
    repetitions = arguments.repetitions or (3 if arguments.form == "full" else 1)
    with Receiver() as receiver:
        run = Run(arguments.form, receiver, kept, wanted)
        for repetition in range(repetitions):
            if not only or "limit" in only:
                run.limits(repetition)
            for system in systems:
                run.system(system, repetition)
            if not only or "qtask" in only:
                run.qtask_only(repetition)
    kept.save()
    return kept


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # so that all started processes are ended


def main() -> None:
    """Measures and prints the tables; after a full run of everything, writes RESULTS.md and results.svg."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, _end)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept = results.load(arguments.form) if arguments.report else _run(arguments)
    print(report.text(kept))
    if arguments.form == "full" and (arguments.report or not (arguments.only or arguments.measures)):
        for path in report.write(kept):
            print(path)
    sys.exit(1 if kept.errors else 0)


if __name__ == "__main__":
    main()
