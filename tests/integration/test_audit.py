"""The audit: the ledger that the scripts keep, compared with what Redis holds; with scripts only, no processes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import rq_scheduler
from msgspec.structs import replace
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.ending import settlement, undelivered, unread
from qtask.delivery.flow_signs import FlowSigns
from qtask.destinations.parsing import check_task
from qtask.model.errors import WrongState
from qtask.model.ids import stored_id
from qtask.model.outcome import Answer, Failure
from qtask.scheduler.housekeeping import Housekeeping
from qtask.scheduler.process import Scheduler
from qtask.store import keys, leases, tasks
from qtask.store.audit import Audit, audit, write_off
from qtask.store.job import is_foreign, read_data
from qtask.store.ledger import read_figures
from qtask.store.nodes import Nodes
from qtask.store.queries import run
from qtask.store.rq_job import TaskJob
from qtask.store.submit import Batch, Submission, submit
from tests.support.command import qtask
from tests.support.redis_server import RedisServer

LATER = 4_000_000_000.0
ONCE = {"retry": {"attempts": 1}}


def one(task_id: str, at: float = 1.0) -> dict[str, Any]:
    settings = {"at": at, "id": task_id, **ONCE}
    return {"title": "t", "address": {"type": "http", "link": "http://127.0.0.1:1/"}, "settings": settings}


def accept(redis: Redis, *ids: str, at: float = 1.0, queue: str = "qtask") -> None:
    submit(redis, Nodes(), Batch(queue, [Submission(check_task(one(task_id, at))) for task_id in ids]))


def release(redis: Redis) -> None:
    Scheduler("qtask", redis).release()


def claim(redis: Redis, most: int = 100, queue: str = "qtask", margin: float = 15.0) -> list[Claim]:
    """Claims and reads tasks as a worker does."""
    reply = leases.claim(queue, "worker", most, margin=margin).run(redis)
    claims = []
    for raw_id, attempt, due, data in leases.read_claimed(reply)[1]:
        read, accepted = read_data(data)
        claims.append(Claim(raw_id.decode(), abs(attempt), read, float(due or 0), attempt < 0, not accepted))
    return claims


def settle(
    redis: Redis, claims: Sequence[Claim], error: Any = "", queue: str = "qtask", dead_retention_count: int = 0
) -> None:
    result = Failure(error, error) if error else Answer(200)
    ended = [settlement(claim, result, 1.0, 1.0, 60) for claim in claims]
    leases.settle(Config(queue=queue, dead_retention_count=dead_retention_count), "worker", ended).run(redis)


def work(redis: Redis, error: Any = "", queue: str = "qtask", dead_retention_count: int = 0) -> None:
    """Releases, claims and settles all that is due."""
    release(redis)
    settle(redis, claim(redis, queue=queue), error, queue, dead_retention_count)


def balanced(redis: Redis) -> Audit:
    """The audit, which must balance, also in a single step, as nothing else runs here."""
    figures = read_figures(redis)
    found = audit(redis)
    assert found.balances, found
    assert figures.held - figures.owed == found.foreign
    counted = (
        found.scheduled,
        found.in_flows,
        found.queued,
        found.started,
        found.delivered,
        found.dead,
        found.cancelled,
    )
    assert found.accepted == sum(counted) + found.removed + found.deleted + found.written_off
    return found


def test_every_task_is_accounted_for(redis: Redis) -> None:
    accept(redis, "a", "b", "c")
    work(redis)
    accept(redis, "a", "d:1", "d:2", "d:3", "d:4")  # the first is remembered, so it is a duplicate
    work(redis, "connect", dead_retention_count=3)
    assert tasks.remove_dead(redis, ["d:2"]) == ["d:2"]
    assert tasks.retry(redis, ["d:3"]) == ["d:3"]
    accept(redis, "e", "f")
    release(redis)
    tasks.cancel(redis, "e")
    settle(redis, claim(redis, 1), "timeout")
    tasks.forget(redis, "a")
    accept(redis, "s1", "s2", "s3", "s3", at=LATER)
    tasks.cancel(redis, "s1")
    accept(redis, "other", queue="other")
    found = balanced(redis)
    assert (found.accepted, found.scheduled, found.queued, found.started) == (13, 3, 1, 0)
    assert (found.delivered, found.dead, found.cancelled, found.removed) == (3, 2, 2, 2)
    assert (found.dropped, found.duplicates, found.expired, found.foreign) == (1, 2, 0, 0)


def test_expired_task_is_dead_and_counted(redis: Redis) -> None:
    accept(redis, "late")
    release(redis)
    (late,) = claim(redis)
    assert balanced(redis).started == 1
    leases.settle(Config(), "worker", [undelivered(late, Failure("expired", "too late"), 9.0)]).run(redis)
    found = balanced(redis)
    assert (found.dead, found.expired) == (1, 1)


def test_resent_batch_is_counted_once(redis: Redis) -> None:
    checked = check_task({**one("x"), "settings": {"time": 0}})
    node, batch = run(redis, Nodes().take()), Batch("qtask", [Submission(checked)])
    for _ in range(2):
        batch.call(node).run(redis)
    release(redis)
    (claimed,) = claim(redis)
    for _ in range(2):
        settle(redis, [claimed])
    found = balanced(redis)
    assert (found.accepted, found.delivered, found.duplicates) == (1, 1, 0)


# --- flows ---------------------------------------------------------------------------------------------------------


def accept_in_flow(redis: Redis, flow: str | dict[str, Any], *ids: str) -> None:
    dicts = [one(task_id) for task_id in ids]
    for each in dicts:
        each["settings"]["flow"] = flow
    submit(redis, Nodes(), Batch("qtask", [Submission(check_task(each)) for each in dicts]))


def test_tasks_of_flows_are_counted_where_they_are(redis: Redis) -> None:
    accept_in_flow(redis, {"key": "two", "parallel": 2}, "a", "b", "c", "d")
    accept_in_flow(redis, {"key": "ordered", "ordered": True}, "e", "f")
    release(redis)
    found = balanced(redis)
    assert (found.scheduled, found.in_flows, found.queued) == (0, 3, 3)
    claims = claim(redis)
    (first,) = [each for each in claims if each.id == stored_id("e")]
    record = settlement(first, Failure("connect", "no"), 1.0, 1.0, 60)
    options = {"flow": "ordered", "delay": 3_600.0}
    record = replace(record, fate="retry", options=json.dumps(options).encode())
    leases.settle(Config(), "worker", [record]).run(redis)
    found = balanced(redis)
    assert (found.scheduled, found.in_flows, found.started) == (1, 3, 2), "a retry keeps its slot in an ordered flow"


def test_task_that_was_deleted_while_it_waited_in_a_flow_is_found(redis: Redis) -> None:
    accept_in_flow(redis, {"key": "one", "parallel": 1}, "a", "b", "c")
    release(redis)
    redis.delete(keys.job(stored_id("c")))
    assert audit(redis).faults == {"ids without a job hash": ["c"]}
    settle_in_flow(redis, "one")
    settle_in_flow(redis, "one")
    found = balanced(redis)
    assert (found.deleted, found.delivered) == (1, 2)


def settle_in_flow(redis: Redis, flow: str) -> None:
    records = [settlement(each, Answer(200), 1.0, 1.0, 60, FlowSigns(flow)) for each in claim(redis)]
    leases.settle(Config(), "worker", records).run(redis)


def test_task_that_waits_in_no_flow_is_found(redis: Redis) -> None:
    accept_in_flow(redis, {"key": "one", "parallel": 1}, "a", "b", "c")
    release(redis)
    redis.zrem(keys.WAITING_PREFIX + "one", *redis.zrange(keys.WAITING_PREFIX + "one", 0, 0))
    assert audit(redis).faults == {"job hashes in no place": ["b"]}
    redis.zrem(keys.FLOWS, "one")  # then no scheduler looks at the flow
    assert audit(redis).faults == {"job hashes in no place": ["b", "c"]}


def test_task_in_its_flow_and_in_the_queue_is_found(redis: Redis) -> None:
    accept_in_flow(redis, {"key": "one", "parallel": 1}, "a", "b")
    release(redis)
    redis.rpush(keys.queue("qtask"), stored_id("b"))
    assert audit(redis).faults == {"tasks in several places (flow, queue)": ["b"]}


def test_slot_without_a_task_in_flight_is_found(redis: Redis) -> None:
    fault = "slots of flows without a task in flight"
    accept_in_flow(redis, {"key": "one", "parallel": 1}, "a", "b")
    accept_in_flow(redis, {"key": "ordered", "ordered": True}, "c")
    release(redis)
    slots = keys.SLOTS_PREFIX + "one"
    redis.zadd(slots, {stored_id("b"): 1.0})
    assert audit(redis).faults == {fault: ["b"]}, "it waits"
    redis.zrem(slots, stored_id("b"))
    accept(redis, "later", at=LATER)
    redis.zadd(slots, {stored_id("later"): 1.0})
    assert audit(redis).faults == {fault: ["later"]}, "it is not due"
    redis.zrem(slots, stored_id("later"))
    redis.zadd(slots, {"gone": 1.0})
    assert audit(redis).faults == {fault: ["gone"]}, "it does not exist"
    redis.zrem(slots, "gone")
    balanced(redis)
    settle_in_flow(redis, "one")
    redis.zadd(keys.SLOTS_PREFIX + "ordered", {stored_id("a"): 1.0})
    assert audit(redis).faults[fault] == ["a", "c"], "they are delivered"


# --- jobs of other programs --------------------------------------------------------------------------------------


def by_rq_scheduler(redis: Redis) -> str:
    """A task that another program schedules with the API of rq-scheduler, so that QTask never accepted it."""
    stock = rq_scheduler.Scheduler("qtask", connection=redis, job_class=TaskJob)
    return str(stock.enqueue_at(datetime(2020, 1, 1, tzinfo=UTC), "qtask.do", one("theirs")).id)


def by_rq(redis: Redis) -> str:
    named = Queue("qtask", connection=redis, serializer=JSONSerializer)
    return named.enqueue("os.getpid").id


def test_foreign_jobs_do_not_affect_the_balance_in_any_state(redis: Redis) -> None:
    accept(redis, "ours")
    theirs = by_rq_scheduler(redis)
    found = balanced(redis)
    assert (found.accepted, found.scheduled, found.foreign) == (1, 1, 1)
    assert tasks.count_tasks(redis, "qtask")["scheduled"] == 2, "they wait for the same queue"
    release(redis)
    found = balanced(redis)
    assert (found.queued, found.foreign) == (1, 1)
    claims = claim(redis)
    assert {claim.id: claim.foreign for claim in claims} == {"ours": False, theirs: True}
    assert balanced(redis).foreign == 1
    settle(redis, claims)
    found = balanced(redis)
    assert (found.delivered, found.foreign) == (1, 0)


@pytest.mark.parametrize("end", ["removed", "dropped", "cancelled"])
def test_dead_foreign_job_is_never_counted(redis: Redis, end: str) -> None:
    accept(redis, "ours")
    by_rq_scheduler(redis)
    refused = by_rq(redis)
    release(redis)
    claimed = leases.read_claimed(leases.claim("qtask", "worker", 10).run(redis))[1]
    data = {raw_id.decode(): data for raw_id, _, _, data in claimed}
    assert is_foreign(data[refused])
    ended = [unread(task_id, 1, Failure("refused", "no task"), 1.0, is_foreign(data[task_id])) for task_id in data]
    leases.settle(Config(), "worker", ended).run(redis)
    found = balanced(redis)
    assert (found.dead, found.foreign) == (1, 2)
    if end == "removed":
        assert len(tasks.remove_dead(redis, list(data))) == 3
    elif end == "cancelled":
        assert len(tasks.retry(redis, list(data))) == 3
        for task_id in data:
            tasks.cancel(redis, task_id)
    else:
        accept(redis, "last")
        work(redis, "timeout", dead_retention_count=1)
    found = balanced(redis)
    assert (found.removed, found.cancelled) == ((0, 1) if end == "cancelled" else (1, 0))


def test_task_that_rq_has_saved_is_not_foreign(redis: Redis) -> None:
    accept(redis, "ours", "theirs")
    work(redis, "connect")
    for task_id in ("ours", "theirs"):
        TaskJob.fetch(task_id, connection=redis).requeue()
    assert balanced(redis).foreign == 0
    tasks.cancel(redis, "ours")
    work(redis, "connect")
    tasks.remove_dead(redis, ["theirs"])
    found = balanced(redis)
    assert (found.cancelled, found.removed) == (1, 1)


# --- deletions by RQ's tools ---------------------------------------------------------------------------------------


def test_tasks_deleted_by_rq_tools_are_missing_until_written_off(redis: Redis) -> None:
    accept(redis, "a", "b", "c")
    release(redis)
    Queue("qtask", connection=redis, serializer=JSONSerializer).empty()
    found = audit(redis)
    assert (found.missing, found.balances, found.faults) == (3, False, {})
    write_off(redis, found.missing)
    assert balanced(redis).written_off == 3


@pytest.mark.parametrize("place", ["schedule", "queue", "started"])
def test_id_without_a_job_is_named_and_counted_by_the_script_that_finds_it(redis: Redis, place: str) -> None:
    accept(redis, "gone:1")
    if place != "schedule":
        release(redis)
    if place == "started":
        claim(redis, margin=-3_600.0)
    redis.delete(keys.job(stored_id("gone:1")))
    assert audit(redis).faults == {"ids without a job hash": ["gone:1"]}
    release(redis)
    assert claim(redis) == []
    Housekeeping(redis).reclaim("qtask")
    assert balanced(redis).deleted == 1


def test_task_cancelled_by_rq_tools_counts_as_cancelled(redis: Redis) -> None:
    accept(redis, "a")
    release(redis)
    Job.fetch("a", connection=redis, serializer=JSONSerializer).cancel()
    assert balanced(redis).cancelled == 1


# --- inconsistencies ---------------------------------------------------------------------------------------------


def remove_from_the_schedule(redis: Redis) -> None:
    redis.zrem(keys.SCHEDULE, "0__b_3A1")


def add_to_a_second_place(redis: Redis) -> None:
    redis.rpush(keys.queue("qtask"), "0__b_3A1")


def change_a_counter(redis: Redis) -> None:
    redis.hincrby(keys.LEDGER, "accepted:qtask", 1)


@pytest.mark.parametrize(
    ("harm", "missing", "faults"),
    [
        (remove_from_the_schedule, 1, {"job hashes in no place": ["b:1"]}),
        (add_to_a_second_place, -1, {"tasks in several places (schedule, queue)": ["b:1"]}),
        (change_a_counter, 1, {}),
    ],
)
def test_inconsistency_is_named(
    redis: Redis, harm: Callable[[Redis], None], missing: int, faults: dict[str, list[str]]
) -> None:
    accept(redis, "a", "b:1", "c", at=LATER)
    balanced(redis)
    harm(redis)
    found = audit(redis)
    assert (found.balances, found.missing, found.faults) == (False, missing, faults)


# --- while everything runs -----------------------------------------------------------------------------------------


def test_audit_balances_at_any_moment(redis_server: RedisServer, redis: Redis) -> None:
    """Four threads take tasks through all transitions, on two queues, while the audit runs repeatedly."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def live_through(number: int) -> None:
        queue = ("one", "two")[number % 2]
        try:
            with redis_server.client() as own:
                turn = 0
                while not stop.is_set():
                    turn += 1
                    ids = [f"{number}:{turn}:{i}" for i in range(20)]
                    accept(own, *ids, *ids[:2], queue=queue)
                    release(own)
                    for task_id in ids[:3]:
                        with suppress(WrongState):
                            tasks.cancel(own, task_id)
                    claims = claim(own, 15, queue)
                    settle(own, claims[:5], queue=queue)
                    settle(own, claims[5:10], "status", queue, 2)
                    leases.nack(queue, "worker", []).run(own)
                    dead = [one.id for one in tasks.list_tasks(own, queue, "dead", 10)]
                    tasks.retry(own, dead[:3])
                    tasks.remove_dead(own, dead[3:6])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=live_through, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            figures = read_figures(redis)
            assert figures.held == figures.owed
        for _ in range(5):
            found = audit(redis)
            assert found.balances, found
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    found = balanced(redis)
    assert min(found.delivered, found.cancelled, found.removed, found.dropped, found.duplicates) > 0


# --- the command ---------------------------------------------------------------------------------------------------


def test_command_reports_whether_the_audit_balances(redis_server: RedisServer, redis: Redis) -> None:
    accept(redis, "a", "b:1", at=LATER)
    done = qtask("audit", "--redis", redis_server.url)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()][:2] == [
        ["accepted", "2"],
        ["=", "waiting", "in", "the", "schedule", "2"],
    ]
    assert done.stdout.endswith("\nbalances\n")
    redis.zrem(keys.SCHEDULE, "0__b_3A1")
    done = qtask("audit", "--redis", redis_server.url)
    assert done.returncode == 1
    assert "job hashes in no place: b:1\nDOES NOT BALANCE\n" in done.stdout
    redis.delete(keys.job("0__b_3A1"))
    read = json.loads(qtask("audit", "--redis", redis_server.url, "--json", "--write-off").stdout)
    assert (read["balances"], read["missing"], read["faults"]) == (False, 1, {})
    assert qtask("audit", "--redis", redis_server.url).returncode == 0
