"""Tasks of flows, by the scripts on a real Redis in random order: what must hold after each step.

A flow never has more tasks queued and in flight than it may, no slot leaks or is missing, nothing waits that could be
admitted, each task is in exactly one place, the ledger balances, and an ordered flow keeps its order.

Time in Redis cannot be moved. So a rate has one token a day, and a day passes when `tat` is moved back; a rest lasts an
hour, and ends when its end is moved back; a retry that is due later gets a score in the past.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

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
from qtask.store import flow_records, flows, keys, leases, queues, schedule, stock_delivery, tasks, workers
from qtask.store.leases import LEASE_MARGIN_SECONDS, Fate, Settlement
from qtask.store.ledger import read_figures
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

QUEUE = "qtask"
TOKENS = ("alice", "bob")  # of workers
DAY = 86_400.0
HOUR = 3_600.0
BURST = 3
FLOWS: Mapping[str, Limits] = {
    "two": Limits(parallel=2),
    "ordered": Limits(ordered=True),
    "rated": Limits(rate=1.0, per=DAY, burst=BURST),
    "free": Limits(),
    "auto": Limits(parallel="auto"),
    "ruled": Limits(),  # it has the limits of a flow rule
}
RULES = check_rules({"rule*": {"parallel": 2}}, "flow")
DESTINATION = "http://127.0.0.1:1"  # the flow of tasks that name none
NAMES = (*FLOWS, DESTINATION)
FATES = ("finished", "finished", "failed", "retry", "retry far", "expired", "asks for a pause", "trouble", "trouble")
BREAKER = Config(circuit_breaker=3)
MOST_TASKS = 12
STEPS = ("submit", "claim", "claim", "settle", "settle", "lose", "decide", "stock", "time passes")


@dataclass
class FlowTask:
    """What the test knows of a task; where it is, it asks Redis.

    Attributes:
        flow: its name.
        number: in the order of submission.
        loose: its order is not checked, because it was dead, or its flow was without limits meanwhile.
        dead: it is a dead letter.
        claims: how often it was claimed.
    """

    flow: str
    number: int
    loose: bool = False
    dead: bool = False
    claims: int = 0


class Seen(NamedTuple):
    """What Redis has after a step, read at once.

    Attributes:
        places: ids of the tasks in each place.
        statuses: of the jobs, by the ids of their tasks.
        retries: ids of the tasks that a stock worker retries, as Redis has them.
        slots: of each flow: ids as Redis has them, with their scores.
        flows: fields of each flow that has state.
        looks: score of each flow in the set of all flows.
    """

    places: dict[str, list[str]]
    statuses: dict[str, bytes]
    retries: set[bytes]
    slots: dict[str, dict[bytes, float]]
    flows: dict[str, dict[bytes, bytes]]
    looks: dict[str, float]


class FlowPlaces(RuleBasedStateMachine):
    """Every step of a task that belongs to a flow."""

    redis: Redis  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, FlowTask] = {}
        self.nodes = Nodes(RULES)
        self.numbers = count()
        self.paused: set[str] = set()
        self.parallel: dict[str, int] = {}  # of flows that have such a limit now
        self.rated = False  # whether the flow `rated` has its limit now
        self.tokens = BURST
        self.probes: set[str] = set()  # tasks in flight that were claimed while the breaker was half open
        self.slots_before: dict[str, set[str]] = {}
        self.seen: Seen
        self.scheduler = Scheduler(QUEUE, self.redis)

    @initialize()
    def empty(self) -> None:
        self.redis.flushall()
        self.redis.sadd(keys.QUEUES, keys.queue(QUEUE))
        self.seen = self.look()

    @rule(data=st.data(), step=st.sampled_from(STEPS))
    def step(self, step: str, data: st.DataObject) -> None:
        getattr(self, step.replace(" ", "_"))(data)
        self.release()
        self.seen = self.look()

    def release(self) -> None:
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
            if name in ("two", "ordered", "ruled"):
                self.parallel[name] = 1 if name == "ordered" else 2
            if name == "rated" and not self.rated:
                self.rated, self.tokens = True, BURST

    def claim(self, data: st.DataObject) -> None:
        token, ends_at_once = data.draw(st.sampled_from(TOKENS)), data.draw(st.booleans())
        workers.heartbeat(token, f"rq:worker:{token}", 420, {"last_heartbeat": "now"}).run(self.redis)
        margin = -HOUR if ends_at_once else LEASE_MARGIN_SECONDS
        closed = {name for name in NAMES if self.rests(name)}
        half_open = {name for name in NAMES if self.trips(name)}
        reply = leases.claim(QUEUE, token, data.draw(st.integers(1, 6)), margin=margin).run(self.redis)
        for raw_id, *_ in leases.read_claimed(reply)[1]:
            self.note_begun(client_id(raw_id.decode()), closed, half_open)

    def note_begun(self, task_id: str, closed: set[str], half_open: set[str]) -> None:
        task = self.tasks[task_id]
        assert task.flow not in self.paused, "a paused flow begins no delivery"
        assert task.flow not in closed, "a flow that rests begins no delivery"
        if task.flow in half_open:
            others = {one for one in self.probes if self.tasks[one].flow == task.flow} - {task_id}
            assert not others & {one for one, _ in self.held()}, "one probe decides"
            self.probes.add(task_id)
            event("a probe is claimed")
        task.claims += 1
        if task.flow == "rated" and self.rated:
            assert self.tokens > 0, "a claim takes a token"
            self.tokens -= 1
        if task.flow == "ordered" and not task.loose:
            before = [one.number for one in self.tasks.values() if one.flow == "ordered" and not one.loose | one.dead]
            assert task.number == min(before), "those before it have ended"

    def settle(self, data: st.DataObject) -> None:
        held = self.held()
        if not held:
            return
        token = data.draw(st.sampled_from(sorted({token for _, token in held})))
        mine = [task_id for task_id, holder in held if holder == token]
        self.run_settle(token, {task_id: data.draw(st.sampled_from(FATES)) for task_id in mine[:3]})

    def run_settle(self, token: str, fates: Mapping[str, str], stock: bool = False) -> None:
        now = f"{time.time():.6f}"
        records = []
        for task_id, what in fates.items():
            task = self.tasks[task_id]
            fate: Fate = "finished" if what == "finished" else "retry" if what.startswith("retry") else "failed"
            options: dict[str, Any] = {"flow": task.flow, "stock": stock}
            if fate == "retry":
                options |= {"delay": HOUR if what == "retry far" else 0.0, "again": True}
            if what == "expired":
                options |= {"unbegun": True, "again": True}
            if what == "asks for a pause":
                options["rest"] = HOUR
            if what == "trouble":
                options["health"] = "bad"
            event(f"settled: {what}")
            member = f"{task_id}:{next(self.numbers)}"
            line = json.dumps(options).encode()
            records.append(Settlement(stored_id(task_id), fate, b"{}", "why", "http:delivered", now, member, line))
        call = leases.settle(BREAKER, token, records)
        assert leases.read_settled(call.run(self.redis)).settled == len(records)
        assert leases.read_settled(call.run(self.redis)).settled == 0, "sent again, it changes nothing"
        for task_id, what in fates.items():
            flow = self.tasks[task_id].flow
            if task_id in self.probes:
                self.probes.discard(task_id)
                if what == "finished" and len(fates) == 1:
                    assert not self.trips(flow), "a probe that succeeds closes the breaker"
                if what == "trouble":
                    assert self.rests(flow), "a probe that fails opens the breaker again"
            if what == "finished":
                del self.tasks[task_id]
            elif not what.startswith("retry"):
                self.tasks[task_id].dead = True

    def stock(self, data: st.DataObject) -> None:
        """A stock worker takes a task out of the queue and delivers it."""
        raw: Any = self.redis.lpop(keys.queue(QUEUE))
        if raw is None:
            return
        task_id, execution = client_id(raw.decode()), f"execution{next(self.numbers)}"
        self.redis.zadd(keys.started(QUEUE), {f"{raw.decode()}:{execution}": 1.0})
        self.redis.hset(keys.job(raw.decode()), "status", "started")
        task = self.tasks[task_id]
        closed = {name for name in NAMES if self.rests(name)}
        half_open = {name for name in NAMES if self.trips(name)}
        destination = "" if task.flow in FLOWS else DESTINATION
        begun = stock_delivery.read_begun(stock_delivery.begin(raw.decode(), QUEUE, destination).run(self.redis))
        event(f"a stock worker may begin: {begun.may_begin}")
        if not begun.may_begin:
            options = {"again": True, "unbegun": True, "delay": 0.0, "stock": True}
            one = Settlement(raw.decode(), "retry", b"", "waits", "", "", "", json.dumps(options).encode())
            leases.settle(BREAKER, execution, [one]).run(self.redis)
            return
        self.note_begun(task_id, closed, half_open)
        if data.draw(st.integers(0, 3)):
            what = data.draw(st.sampled_from(FATES))
            # The slot of a task that names no flow was given when its flow had no state yet.
            self.run_settle(execution, {task_id: what}, stock=True)

    def lose(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(("reclaim", "nack", "park")))
        held = [(task_id, holder) for task_id, holder in self.held() if holder in TOKENS]
        if what == "reclaim" or not held:
            if data.draw(st.booleans()):
                self.redis.zadd(keys.WORKERS, {data.draw(st.sampled_from(TOKENS)): time.time() - 60})
            self.scheduler.housekeeping.reclaim(QUEUE)
            return
        token = data.draw(st.sampled_from(sorted({token for _, token in held})))
        mine = [task_id for task_id, holder in held if holder == token]
        if what == "nack":
            leases.nack(QUEUE, token, map(stored_id, mine[1:])).run(self.redis)
            return
        flow = self.tasks[mine[0]].flow
        of_flow = [stored_id(task_id) for task_id in mine if self.tasks[task_id].flow == flow]
        event(f"parked: {flow}")
        flows.park(QUEUE, token, flow, of_flow[:1], of_flow[1:]).run(self.redis)
        slots: Any = self.redis.zrange(keys.SLOTS_PREFIX + flow, 0, -1)
        assert of_flow[0].encode() in slots, "a task in flight holds a slot from now on"

    def decide(self, data: st.DataObject) -> None:
        actions = ("cancel", "cancel", "pause", "set", "remove limits", "retry", "remove dead", "purge")
        what = data.draw(st.sampled_from(actions))
        dead = sorted(task_id for task_id, task in self.tasks.items() if task.dead)
        if what == "cancel" and self.tasks:
            task_id = data.draw(st.sampled_from(sorted(self.tasks)))
            if not self.tasks[task_id].dead and task_id not in {one for one, _ in self.held()}:
                event(f"cancelled: {self.place_of(task_id)}")
                tasks.cancel(self.redis, task_id)
                del self.tasks[task_id]
        elif what == "purge":
            places = self.places()
            gone = places["queue"] + places["waiting"]
            event("purged" if places["waiting"] else "purged, and nothing waits")
            assert queues.purge_queue(self.redis, QUEUE) == len(gone)
            for task_id in gone:
                del self.tasks[task_id]
        elif what == "pause":
            name = data.draw(st.sampled_from(NAMES))
            flow_records.pause_flow(self.redis, name, name not in self.paused)
            self.paused ^= {name}
        elif what == "set":
            self.parallel["two"] = data.draw(st.integers(1, 4))
            flow_records.set_flow(self.redis, "two", Limits(parallel=self.parallel["two"]))
        elif what == "remove limits":
            self.remove_limits(data.draw(st.sampled_from(("two", "ordered", "rated"))))
        elif what == "retry" and dead:
            task_id = data.draw(st.sampled_from(dead))
            assert tasks.retry(self.redis, [stored_id(task_id)])
            self.tasks[task_id].dead, self.tasks[task_id].loose = False, True
        elif what == "remove dead" and dead:
            assert tasks.remove_dead(self.redis, dead[:1])
            del self.tasks[dead[0]]

    def remove_limits(self, name: str) -> None:
        if not self.redis.exists(keys.FLOW_PREFIX + name):
            return
        flow_records.remove_flow(self.redis, name)
        self.parallel.pop(name, None)
        self.paused.discard(name)
        self.probes = {one for one in self.probes if self.tasks[one].flow != name}
        if name == "rated":
            self.rated = False
        for task in self.tasks.values():
            task.loose = task.loose or task.flow == name

    def time_passes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(NAMES))
        key = keys.FLOW_PREFIX + name
        what = data.draw(st.sampled_from(("rest", "day", "retry", "retry")))
        if what == "rest" and self.rests(name):
            self.redis.hset(key, "rest", time.time() - 1)
            self.redis.zadd(keys.FLOWS, {name: 0})
        elif (
            what == "day"
            and self.rated
            and self.tokens < BURST
            and self.redis.hexists(keys.FLOW_PREFIX + "rated", "tat")
        ):
            self.redis.hincrbyfloat(keys.FLOW_PREFIX + "rated", "tat", -DAY - 1)
            self.redis.zadd(keys.FLOWS, {"rated": 0})
            self.tokens += 1
        elif what == "retry":
            for raw in _members(self.redis, keys.SCHEDULE):
                self.redis.zadd(keys.SCHEDULE, {raw: time.time() - 1})

    # --- what must hold ------------------------------------------------------------------------------------------

    @invariant()
    def each_is_in_one_place(self) -> None:
        found: dict[str, list[str]] = {task_id: [] for task_id in self.tasks}
        for place, ids in self.seen.places.items():
            for task_id in ids:
                if place != "dead" or stored_id(task_id).encode() not in self.seen.retries:
                    found.setdefault(task_id, []).append(place)
        assert all(len(places) == 1 for places in found.values()), found
        for task_id, (place,) in found.items():
            assert self.tasks[task_id].dead == (place == "dead")
            status = self.seen.statuses[task_id]
            wanted = {"schedule": b"scheduled", "waiting": b"deferred", "queue": b"queued", "started": b"started"}
            if place == "schedule" and stored_id(task_id).encode() in self.seen.retries:
                wanted["schedule"] = b"failed"
            assert status == wanted.get(place, b"failed"), (task_id, place, status)

    @invariant()
    def slots_belong_to_tasks_and_limits_hold(self) -> None:
        places = self.seen.places
        for name in NAMES:
            fields = self.seen.flows.get(name, {})
            slots = {client_id(one.decode()) for one in self.seen.slots[name]}
            mine = {task_id for task_id, task in self.tasks.items() if task.flow == name}
            active = mine & {*places["queue"], *places["started"]}
            may_hold = active | (mine & {*places["schedule"]} if name == "ordered" else set())
            assert slots <= may_hold, "no slot of a task that has ended or waits"
            before = self.slots_before.get(name, set())
            self.slots_before[name] = slots
            limit = self.limit_of(name)
            if limit is not None:
                assert len(slots) <= limit or slots <= before, "no more than may be"
                assert mine & {*places["started"]} <= slots
            if not fields or name in self.paused or float(fields.get(b"rest", 0)) > time.time():
                continue
            waits = mine & {*places["waiting"]}
            free = float("inf") if limit is None else limit - len(slots)
            if limit is None and not (name == "rated" and self.rated):
                free = 0 if slots else 1  # its share is not known here
            if int(fields.get(b"trips", 0)):
                free = min(free, 0 if slots else 1)
            if name == "rated" and self.rated:
                unclaimed = sum(score <= keys.FOREVER_SECONDS for score in self.seen.slots[name].values())
                free = min(free, self.tokens - unclaimed)
            assert not waits or free <= 0, ("nothing waits that could be admitted", name, waits, free)

    @invariant()
    def the_set_of_flows_agrees_with_their_state(self) -> None:
        assert self.seen.looks.keys() == self.seen.flows.keys()
        waiting = {self.tasks[task_id].flow for task_id in self.seen.places["waiting"]}
        for name, fields in self.seen.flows.items():
            look = self.seen.looks[name]
            assert name not in waiting or (b"waits" in fields and look < keys.SIMPLE_FLOW) or name in self.paused
            if keys.SIMPLE_FLOW <= look < float("inf"):
                assert fields.keys() <= {b"made", b"parallel", b"parallel_by"}
                assert look - keys.SIMPLE_FLOW == int(fields[b"parallel"])

    @invariant()
    def the_ledger_balances(self) -> None:
        figures = read_figures(self.redis)
        assert figures.total("held") == len(self.seen.places["waiting"])
        assert figures.owed == figures.held

    def teardown(self) -> None:
        """Everything ends; nothing is left but limits, pauses and breakers."""
        for name in self.paused | set(NAMES):
            if self.redis.exists(keys.FLOW_PREFIX + name):
                flow_records.remove_flow(self.redis, name)
        self.release()
        for token in {holder for _, holder in self.held()}:
            leases.nack(QUEUE, token, []).run(self.redis)
        for task_id, task in self.tasks.items():
            if not task.dead:
                tasks.cancel(self.redis, task_id)
        self.redis.delete(keys.STARTED_PREFIX + QUEUE)
        self.release()
        found = [key.decode() for key in self.redis.scan_iter()]
        assert not [key for key in found if key.startswith((keys.FLOW_PREFIX, keys.SLOTS_PREFIX, keys.WAITING_PREFIX))]
        assert not self.redis.exists(keys.FLOWS, keys.FLOW_DESTINATIONS)

    # --- looking -------------------------------------------------------------------------------------------------

    def limit_of(self, name: str) -> int | None:
        """How many tasks of a flow may be queued and in flight; None for no limit that is known here."""
        if name != "auto" or name not in self.seen.flows:
            return self.parallel.get(name)
        limit = flow_records.show_flow(self.redis, name).adapted
        assert limit is None or 1 <= limit <= Config().flow_parallel_limit
        return limit

    def rests(self, name: str) -> bool:
        raw: Any = self.redis.hget(keys.FLOW_PREFIX + name, "rest")
        return float(raw or 0) > time.time()

    def trips(self, name: str) -> int:
        raw: Any = self.redis.hget(keys.FLOW_PREFIX + name, "trips")
        return int(raw or 0)

    def place_of(self, task_id: str) -> str:
        return ", ".join(place for place, ids in self.places().items() if task_id in ids)

    def places(self) -> dict[str, list[str]]:
        return self.look().places

    def look(self) -> Seen:
        with self.redis.pipeline() as pipe:
            pipe.lrange(keys.queue(QUEUE), 0, -1)
            for key in (keys.SCHEDULE, keys.failed(QUEUE), keys.started(QUEUE)):
                pipe.zrange(key, 0, -1)
            pipe.smembers(keys.STOCK_RETRIES)
            pipe.zrange(keys.FLOWS, 0, -1, withscores=True)
            for name in NAMES:
                pipe.zrange(keys.WAITING_PREFIX + name, 0, -1)
                pipe.zrange(keys.SLOTS_PREFIX + name, 0, -1, withscores=True)
                pipe.hgetall(keys.FLOW_PREFIX + name)
            for task_id in self.tasks:
                pipe.hget(keys.job(stored_id(task_id)), "status")
            queued, scheduled, dead, started, retries, looks, *rest = pipe.execute()
        of_flows = {name: rest[3 * number : 3 * number + 3] for number, name in enumerate(NAMES)}
        raw = {
            "schedule": scheduled,
            "waiting": [one.rpartition(b":")[2] for waiting, _, _ in of_flows.values() for one in waiting],
            "queue": queued,
            "dead": dead,
            "started": [one.partition(b":")[0] for one in started],
        }
        return Seen(
            {place: [client_id(one.decode()) for one in ids] for place, ids in raw.items()},
            dict(zip(self.tasks, rest[3 * len(NAMES) :], strict=True)),
            retries,
            {name: dict(slots) for name, (_, slots, _) in of_flows.items()},
            {name: fields for name, (_, _, fields) in of_flows.items() if fields},
            {name.decode(): look for name, look in looks},
        )

    def held(self) -> list[tuple[str, str]]:
        """Ids of the tasks that are in flight, and the worker that has each."""
        parted = (one.decode().partition(":") for one in _members(self.redis, keys.started(QUEUE)))
        return [(client_id(task_id), token) for task_id, _, token in parted]


def _members(redis: Redis, key: str) -> list[bytes]:
    found: Any = redis.zrange(key, 0, -1)
    return list(found)


def _fields(limits: Limits) -> dict[str, Any]:
    given: dict[str, Any] = json.loads(flows.limit_fields(limits) or "{}")
    given = {name: value for name, value in given.items() if value != ""}
    return {name: True if name == "ordered" else value for name, value in given.items()}


@pytest.mark.timeout(300)
def test_flows_in_random_order(redis: Redis) -> None:
    class OnThisRedis(FlowPlaces):
        pass

    OnThisRedis.redis = redis
    run_machine(
        OnThisRedis,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
