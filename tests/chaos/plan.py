"""From a seed to a plan: which tasks are submitted when and how, and all disruptions. Pure and reproducible."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

Way = Literal["socket", "inbox", "client", "fork"]
Kind = Literal["http", "socket", "udp", "pipe", "__graph__"]
Act = Literal["kill", "stop", "restart", "hangup", "fill", "cut"]

GATEWAYS = ("gateway-1", "gateway-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
WORKERS = ("worker-1", "worker-2", "worker-3")
REDIS = "redis"
PROXIED = (REDIS, *GATEWAYS)  # the servers behind the proxy

ATTEMPTS = 6
RETRY = {"attempts": ATTEMPTS, "base": 0.2, "cap": 2.0}  # short, so that a run ends
TIMEOUT_SECONDS = 4.0  # of a delivery, and so of a receiver that hangs
LONGEST_DELAY_SECONDS = 8.0
TWIN_SHARE = 0.04
NO_SUCH_PIPE = "absent"

# Answers of a receiver to one arrival; a task names one for each of its arrivals in turn, and the last one repeats.
OK, FAIL, TOO_MANY, HANG, CLOSE, TORN, GONE, SLOW = "2", "5", "9", "h", "c", "t", "4", "s"
SLOW_SECONDS = 0.05
FAILURES = frozenset((FAIL, TOO_MANY, HANG, CLOSE, GONE))  # not TORN: the status has arrived, and it decides

_HTTP_ANSWERS = {
    OK: 80,
    FAIL + OK: 4,
    TOO_MANY + OK: 3,
    HANG + OK: 2,
    CLOSE + OK: 3,
    TORN + OK: 3,
    FAIL + CLOSE + TOO_MANY + OK: 2,
    FAIL: 2,
    GONE: 1,
}
# The flows that some tasks belong to, each with its limits.
PARALLEL, RATE = 3, 40
FLOWS: dict[str, dict[str, Any]] = {
    "parallel": {"parallel": PARALLEL},
    "ordered": {"ordered": True},
    "rated": {"rate": RATE, "burst": 5},
}
_FLOWS = {"": 85, "parallel": 6, "ordered": 4, "rated": 5}
_FLOW_ANSWERS = {SLOW: 90, FAIL + SLOW: 4, HANG + OK: 1, CLOSE + OK: 4, GONE: 1}
_SOCKET_ANSWERS = {OK: 80, HANG: 5, CLOSE: 15}
_KINDS: dict[Kind, int] = {"http": 80, "socket": 9, "udp": 5, "pipe": 6}
_WAYS: dict[Way, int] = {"socket": 40, "inbox": 20, "client": 20, "fork": 20}
_GRAPH_EACH = 1_500  # a picture takes a second of a core


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """One task.

    Attributes:
        number: from 0; contained in what the receiver gets, for every type.
        at: time of its submission, in seconds after the start.
        ways: the submitters; a second one submits the same task, with the same chosen id, at the same time.
        kind: `address.type`.
        delay: `settings.time`.
        answers: behaviour of the receiver, one letter for each arrival.
        chosen_id: `settings.id`, or nothing.
        flow: key of its flow, or nothing.
    """

    number: int
    at: float
    ways: tuple[Way, ...]
    kind: Kind
    delay: float
    answers: str
    chosen_id: str
    flow: str = ""

    @property
    def title(self) -> str:
        """Contains the number, for code that has only the dict."""
        return f"chaos {self.number}"


@dataclass(frozen=True, slots=True)
class Event:
    """A disruption of a process, or of a connection to it.

    Attributes:
        at: seconds after the start.
        actor: the process.
        act: `kill`, `restart` (by SIGTERM) and `hangup` (by SIGHUP) start it again after `seconds`, `stop` continues
            it after them; `fill` fills the disk of Redis for that time; `cut` cuts one connection in the middle of a
            reply of the actor.
        seconds: see `act`.
        skip: for `cut`: how many replies to pass before.
        share: for `cut`: the share of the reply that is passed.
    """

    at: float
    actor: str
    act: Act
    seconds: float = 0.0
    skip: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run.

    Attributes:
        seed: from which it was made.
        seconds: duration of submissions and events.
        tasks: by number.
        events: by time.
    """

    seed: int
    seconds: float
    tasks: tuple[PlannedTask, ...]
    events: tuple[Event, ...]


def make_plan(seed: int, seconds: float, tasks: int) -> Plan:
    """The plan of a seed: the same arguments make the same plan."""
    return Plan(seed, seconds, _tasks(random.Random(f"{seed} tasks"), seconds, tasks), _events(seed, seconds))


def _tasks(generator: random.Random, seconds: float, count: int) -> tuple[PlannedTask, ...]:
    instants = sorted(generator.uniform(0.0, seconds) for _ in range(count))
    return tuple(_task(generator, number, at) for number, at in enumerate(instants))


def _task(generator: random.Random, number: int, at: float) -> PlannedTask:
    kind = _choose(generator, _KINDS)
    ways: tuple[Way, ...] = (_choose(generator, _WAYS),)
    delay = 0.0 if generator.random() < 0.2 else round(generator.triangular(0.0, LONGEST_DELAY_SECONDS, 0.5), 6)
    answers = OK
    chosen = generator.random() < 0.4
    if number % _GRAPH_EACH == _GRAPH_EACH // 3:
        kind, delay, chosen = "__graph__", 0.0, True
    elif kind == "http":
        answers = _choose(generator, _HTTP_ANSWERS)
    elif kind == "socket":
        answers = _choose(generator, _SOCKET_ANSWERS)
    elif kind == "pipe" and generator.random() < 0.1:
        answers = GONE
    if generator.random() < TWIN_SHARE:
        ways, chosen = (*ways, _choose(generator, _WAYS)), True
    flow = _choose(generator, _FLOWS) if kind == "http" else ""
    if flow:
        answers = _choose(generator, _FLOW_ANSWERS)
    return PlannedTask(number, at, ways, kind, delay, answers, f"chaos-{number}" if chosen else "", flow)


def _events(seed: int, seconds: float) -> tuple[Event, ...]:
    events: list[Event] = []
    for actor in (*GATEWAYS, *SCHEDULERS, *WORKERS, REDIS):
        events += _life(random.Random(f"{seed} {actor}"), actor, seconds)
    for actor in PROXIED:
        events += _cuts(random.Random(f"{seed} cuts {actor}"), actor, seconds)
    return tuple(sorted(events, key=lambda event: event.at))


def _life(generator: random.Random, actor: str, seconds: float) -> list[Event]:
    """The disruptions of one process, one after the other."""
    events = []
    now = generator.uniform(1.0, 8.0)
    acts: dict[Act, int] = {"kill": 45, "stop": 30, "restart": 15, "fill" if actor == REDIS else "hangup": 10}
    while now < seconds:
        act = _choose(generator, acts)
        if act == "stop":
            # Mostly short; sometimes so long that others take it for dead.
            away = generator.uniform(0.1, 2.0) if generator.random() < 0.6 else generator.uniform(5.0, 9.0)
        else:
            away = generator.uniform(0.0, 1.5) if generator.random() < 0.85 else generator.uniform(5.0, 8.0)
        events.append(Event(now, actor, act, away))
        now += away + generator.uniform(4.0, 12.0)
    return events


def _cuts(generator: random.Random, actor: str, seconds: float) -> list[Event]:
    events = []
    now = generator.uniform(0.5, 2.0)
    while now < seconds:
        events.append(Event(now, actor, "cut", skip=generator.randrange(30), share=generator.random()))
        now += generator.uniform(0.2, 2.5)
    return events


def _choose(generator: random.Random, weights: dict[Any, int]) -> Any:
    return generator.choices(list(weights), list(weights.values()))[0]


def dict_of(task: PlannedTask, places: dict[str, str]) -> dict[str, Any]:
    """The dict of a task.

    Args:
        task: of the plan.
        places: addresses of the receivers: `HOST:PORT` of `http`, `socket` and `udp`, the name of the `pipe`.
    """
    settings: dict[str, Any] = {"time": task.delay, "timeout": TIMEOUT_SECONDS, "retry": RETRY}
    address: dict[str, Any] = {"type": task.kind}
    said = {"number": task.number, "answers": task.answers}
    if task.kind == "http":
        address["link"] = f"http://{places['http']}/{task.number}/{task.answers}"
        settings["data"] = {"method": "POST", "json": said}
    elif task.kind == "pipe":
        address["link"] = NO_SUCH_PIPE if task.answers == GONE else places["pipe"]
        settings["data"] = {"data": said}
    elif task.kind == "__graph__":
        settings["timeout"] = 30.0
    else:
        address["link"] = places[task.kind]
        settings["data"] = said
    if task.flow:
        settings["flow"] = {"key": task.flow, **FLOWS[task.flow]}
    if task.chosen_id:
        settings["id"] = task.chosen_id
    return {"title": task.title, "address": address, "settings": settings}
