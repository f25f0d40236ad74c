"""Tasks of flows, by the scripts on a real Redis in random order: what must hold after each step.

A flow never has more tasks queued and in flight than it may, no slot leaks or is missing, nothing waits that could be
admitted, each task is in exactly one place, the ledger balances, and an ordered flow keeps its order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from redis import Redis

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.model.flow import Limits
from qtask.model.flow_rule import check_rules
from qtask.model.ids import client_id, stored_id
from qtask.scheduler.process import Scheduler
from qtask.store import flow_records, flows, keys, leases, schedule, tasks, workers
from qtask.store.leases import LEASE_MARGIN_SECONDS, Fate, Settlement
from qtask.store.ledger import read_figures
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

QUEUE = "qtask"
TOKENS = ("alice", "bob")  # of workers
FLOWS: Mapping[str, Limits] = {
    "two": Limits(parallel=2),
    "ordered": Limits(ordered=True),
    "free": Limits(),
    "ruled": Limits(),  # it has the limits of a flow rule
}
RULES = check_rules({"rule*": {"parallel": 2}}, "flow")
DESTINATION = "http://127.0.0.1:1"  # the flow of tasks that name none
FATES: tuple[Fate, ...] = ("finished", "failed", "retry")
MOST_TASKS = 12


@dataclass
class FlowTask:
    """What the test knows of a task; where it is, it asks Redis.

    Attributes:
        flow: its name.
        number: in the order of submission.
        claims: how often it was claimed.
    """

    flow: str
    number: int
    claims: int = 0


class FlowPlaces(RuleBasedStateMachine):
    """Every step of a task that belongs to a flow."""

    redis: Redis  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, FlowTask] = {}
        self.nodes = Nodes(RULES)
        self.numbers = count()
        self.paused: set[str] = set()
        self.parallel = {"two": 2, "ordered": 1, "ruled": 2}
        self.last_ended = -1  # number of the task of the ordered flow that ended last
        self.scheduler = Scheduler(QUEUE, self.redis)

    @initialize()
    def empty(self) -> None:
        self.redis.flushall()
        self.redis.sadd(keys.QUEUES, keys.queue(QUEUE))

    @rule(data=st.data(), step=st.sampled_from(("submit", "claim", "claim", "settle", "settle", "lose", "decide")))
    def step(self, step: str, data: st.DataObject) -> None:
        getattr(self, step)(data)
        for _ in range(3):  # what is due or may be admitted is, at once
            schedule.release(self.redis, 500)

    # --- steps ---------------------------------------------------------------------------------------------------

    def submit(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from((*FLOWS, "")), min_size=1, max_size=5))
        chosen = data.draw(st.booleans())
        submissions = []
        numbers = []
        for name in names[: MOST_TASKS - len(self.tasks)]:
            number = next(self.numbers)
            given: dict[str, Any] = {"time": 0}
            if name:
                given["flow"] = {"key": name, **_fields(FLOWS[name])}
            if chosen:
                given["id"] = f"z{1_000 - number}"  # the later, the earlier in the alphabet
            one = {"title": "t", "address": {"type": "http", "link": f"{DESTINATION}/"}, "settings": given}
            submissions.append(Submission(check_task(one)))
            numbers.append((name or DESTINATION, number))
        places = submit(self.redis, self.nodes, Batch(QUEUE, submissions)) if submissions else []
        for place, (name, number) in zip(places, numbers, strict=True):
            assert place is not None
            self.tasks[place.id] = FlowTask(name, number)
            if name == "two":
                self.parallel[name] = 2

    def claim(self, data: st.DataObject) -> None:
        token, ends_at_once = data.draw(st.sampled_from(TOKENS)), data.draw(st.booleans())
        workers.heartbeat(token, f"rq:worker:{token}", 420, {"last_heartbeat": "now"}).run(self.redis)
        margin = -3_600.0 if ends_at_once else LEASE_MARGIN_SECONDS
        reply = leases.claim(QUEUE, token, data.draw(st.integers(1, 6)), margin=margin).run(self.redis)
        for raw_id, *_ in leases.read_claimed(reply)[1]:
            task = self.tasks[client_id(raw_id.decode())]
            assert task.flow not in self.paused, "a paused flow begins no delivery"
            task.claims += 1
            if task.flow == "ordered":
                earlier = [one.number for one in self.tasks.values() if one.flow == "ordered"]
                assert task.number == min(earlier), "those before it have ended"

    def settle(self, data: st.DataObject) -> None:
        held = self.held()
        if not held:
            return
        token = data.draw(st.sampled_from(sorted({token for _, token in held})))
        mine = [task_id for task_id, holder in held if holder == token]
        self.run_settle(token, {task_id: data.draw(st.sampled_from(FATES)) for task_id in mine[:3]})

    def run_settle(self, token: str, fates: Mapping[str, Fate]) -> None:
        now = f"{time.time():.6f}"
        records = []
        for task_id, fate in fates.items():
            task = self.tasks[task_id]
            options = {"flow": task.flow, **({"delay": 0.0, "again": True} if fate == "retry" else {})}
            member = f"{task_id}:{next(self.numbers)}"
            records.append(
                Settlement(
                    stored_id(task_id), fate, b"{}", "why", "http:delivered", now, member, json.dumps(options).encode()
                )
            )
            if fate != "retry":
                del self.tasks[task_id]
        call = leases.settle(Config(), token, records)
        assert leases.read_settled(call.run(self.redis)).settled == len(records)
        assert leases.read_settled(call.run(self.redis)).settled == 0, "sent again, it changes nothing"

    def lose(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(("reclaim", "nack", "park")))
        held = self.held()
        if what == "reclaim" or not held:
            if data.draw(st.booleans()):
                self.redis.zadd(keys.WORKERS, {data.draw(st.sampled_from(TOKENS)): time.time() - 60})
            self.scheduler.housekeeping.reclaim(QUEUE)
            return
        token = data.draw(st.sampled_from(sorted({token for _, token in held})))
        mine = [task_id for task_id, holder in held if holder == token]
        if what == "nack":
            leases.nack(QUEUE, token, map(stored_id, mine[:1])).run(self.redis)
            return
        flow = self.tasks[mine[0]].flow
        of_flow = [stored_id(task_id) for task_id in mine if self.tasks[task_id].flow == flow]
        event(f"parked: {flow}")
        flows.park(QUEUE, token, flow, of_flow[:1], of_flow[1:]).run(self.redis)

    def decide(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(("cancel", "pause", "set", "retry")))
        if what == "cancel" and self.tasks:
            task_id = data.draw(st.sampled_from(sorted(self.tasks)))
            if task_id not in {one for one, _ in self.held()}:
                tasks.cancel(self.redis, task_id)
                del self.tasks[task_id]
        elif what == "pause":
            name = data.draw(st.sampled_from(tuple(FLOWS)))
            flow_records.pause_flow(self.redis, name, name not in self.paused)
            self.paused ^= {name}
        elif what == "set":
            self.parallel["two"] = data.draw(st.integers(1, 4))
            flow_records.set_flow(self.redis, "two", Limits(parallel=self.parallel["two"]))

    retry = decide

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def each_is_in_one_place(self) -> None:
        found: dict[str, list[str]] = {task_id: [] for task_id in self.tasks}
        for place, ids in self.places().items():
            for task_id in ids:
                found.setdefault(task_id, []).append(place)
        assert all(len(places) == 1 for places in found.values()), found
        for task_id, (place,) in found.items():
            status: Any = self.redis.hget(keys.job(stored_id(task_id)), "status")
            wanted = {"schedule": b"scheduled", "waiting": b"deferred", "queue": b"queued", "started": b"started"}
            assert status == wanted[place], (task_id, place, status)

    @invariant()
    def slots_belong_to_tasks_and_limits_hold(self) -> None:
        places = self.places()
        for name in {*FLOWS, DESTINATION}:
            raw: Any = self.redis.zrange(keys.SLOTS_PREFIX + name, 0, -1)
            slots = {client_id(one.decode()) for one in raw}
            active = {one for one in places["queue"] + places["started"] if self.tasks[one].flow == name}
            assert slots <= set(self.tasks), "no slot of a task that has ended"
            if name == "ordered":
                active |= {one for one in slots if one in places["schedule"]}
            has_state = self.redis.exists(keys.FLOW_PREFIX + name)
            if has_state and name in self.parallel:
                assert slots <= active
                waits = [one for one in places["waiting"] if self.tasks[one].flow == name]
                free = self.parallel[name] - len(slots)
                assert not waits or free <= 0 or name in self.paused, "nothing waits that could be admitted"
            if name in self.parallel:
                started = {one for one in places["started"] if self.tasks[one].flow == name}
                assert started <= slots

    @invariant()
    def the_ledger_balances(self) -> None:
        figures = read_figures(self.redis)
        assert figures.total("held") == len(self.places()["waiting"])
        assert figures.owed == figures.held

    def places(self) -> dict[str, list[str]]:
        sets: list[Any] = [self.redis.zrange(keys.WAITING_PREFIX + name, 0, -1) for name in {*FLOWS, DESTINATION}]
        waiting = [one.decode().rpartition(":")[2] for members in sets for one in members]
        raw: dict[str, Any] = {
            "schedule": self.redis.zrange(keys.SCHEDULE, 0, -1),
            "queue": self.redis.lrange(keys.queue(QUEUE), 0, -1),
        }
        found = {place: [client_id(one.decode()) for one in ids] for place, ids in raw.items()}
        return {**found, "waiting": list(map(client_id, waiting)), "started": [one for one, _ in self.held()]}

    def held(self) -> list[tuple[str, str]]:
        """Ids of the tasks that are in flight, and the worker that has each."""
        found: Any = self.redis.zrange(keys.started(QUEUE), 0, -1)
        parted = (one.decode().partition(":") for one in found)
        return [(client_id(task_id), token) for task_id, _, token in parted]


def _fields(limits: Limits) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(flows.limit_fields(limits) or "{}")
    return {name: True if name == "ordered" else value for name, value in given.items()}


@pytest.mark.timeout(300)
def test_flows_in_random_order(redis: Redis) -> None:
    class OnThisRedis(FlowPlaces):
        pass

    OnThisRedis.redis = redis
    run_machine(
        OnThisRedis,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
