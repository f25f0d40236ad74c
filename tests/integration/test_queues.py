"""Queues by the scripts on a real Redis: tasks that name one, and pausing, resuming and purging."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from qtask.destinations.parsing import check_task
from qtask.model.errors import NotFound, Refused
from qtask.model.outcome import Outcome, encode_outcome
from qtask.model.queue_record import QueueRecord
from qtask.model.record import STATES, State
from qtask.store import all_queues, flow_records, keys, leases, queues, schedule, stock_delivery, tasks
from qtask.store.audit import audit
from qtask.store.nodes import Nodes
from qtask.store.submit import SUBMIT, Batch, Submission, submit


def http(**settings: Any) -> dict[str, Any]:
    address = {"type": "http", "link": "http://127.0.0.1:1/"}
    return {"title": "t", "address": address, "settings": {"time": 0, **settings}}


def send(redis: Redis, *dicts: dict[str, Any], queue: str = "qtask") -> list[str]:
    """Submits tasks and releases what is due; returns their ids."""
    batch = Batch(queue, [Submission(check_task(one)) for one in dicts])
    places = submit(redis, Nodes(), batch)
    schedule.release(redis, 500)
    schedule.release(redis, 500)
    return [place.id for place in places if place is not None]


def queued(redis: Redis, queue: str) -> list[str]:
    ids: Any = redis.lrange(keys.queue(queue), 0, -1)
    return [task_id.decode() for task_id in ids]


def claimed(redis: Redis, queue: str, limit: int = 10) -> list[str]:
    reply = leases.claim(queue, "alice", limit).run(redis)
    return [raw.decode() for raw, *_ in leases.read_claimed(reply)[1]]


# --- tasks that name their queue -----------------------------------------------------------------------------------


def test_tasks_of_one_batch_go_to_the_queues_they_name(redis: Redis) -> None:
    plain, bulk, own, both = send(
        redis, http(), http(queue="bulk"), http(queue="qtask"), http(queue="bulk", timeout=5, flow="f")
    )
    assert queued(redis, "qtask") == [plain, own]
    assert queued(redis, "bulk") == [bulk, both]
    assert redis.smembers(keys.QUEUES) == {b"rq:queue:qtask", b"rq:queue:bulk"}
    assert redis.hget(keys.LEDGER, "accepted:qtask") == b"2"
    assert redis.hget(keys.LEDGER, "accepted:bulk") == b"2"
    job: Any = redis.hgetall(keys.job(both))
    assert (job[b"origin"], job[b"timeout"], job[b"extra"]) == (b"bulk", b"15", b'{"flow":"f"}')
    assert tasks.show(redis, bulk).queue == "bulk"
    assert tasks.count_tasks(redis, "bulk")["queued"] == 2
    assert audit(redis).balances


def test_batch_with_several_queues_is_one_script_call(redis: Redis) -> None:
    nodes = Nodes()
    submit(redis, nodes, Batch("qtask", [Submission(check_task(http()))]))
    before: Any = redis.info("commandstats")
    submit(redis, nodes, Batch("qtask", [Submission(check_task(http(queue=f"q{n}"))) for n in range(5)]))
    after: Any = redis.info("commandstats")
    calls = after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"]
    assert calls == 1, SUBMIT.name


def test_retry_of_a_dead_letter_goes_to_the_queue_of_the_task(redis: Redis) -> None:
    (task_id,) = send(redis, http(queue="bulk"))
    redis.lrem(keys.queue("bulk"), 1, task_id)
    redis.hset(keys.job(task_id), "status", "failed")
    redis.zadd(keys.failed("bulk"), {task_id: keys.FOREVER_SECONDS + 1})
    assert tasks.retry(redis, [task_id]) == [task_id]
    assert queued(redis, "bulk") == [task_id]


# --- pausing -------------------------------------------------------------------------------------------------------


def test_nothing_is_claimed_from_a_paused_queue(redis: Redis) -> None:
    (bulk, plain) = send(redis, http(queue="bulk"), http())
    assert queues.pause_queue(redis, "bulk") == QueueRecord("bulk", paused=True, queued=1)
    reply = leases.ClaimReply._make(leases.claim("bulk", "alice", 10).run(redis))
    assert (reply.paused, reply.ids) == (1, [])
    assert queued(redis, "bulk") == [bulk]
    assert claimed(redis, "qtask") == [plain]
    assert queues.pause_queue(redis, "bulk", False) == QueueRecord("bulk", queued=1)
    assert claimed(redis, "bulk") == [bulk]
    assert not redis.exists(keys.PAUSED_QUEUES)


def test_paused_queue_leaves_rates_of_flows_alone(redis: Redis) -> None:
    first, second = send(redis, *[http(queue="bulk", flow={"key": key, "rate": 1, "per": 60}) for key in ("f", "g")])
    queues.pause_queue(redis, "bulk")
    begun = stock_delivery.read_begun(stock_delivery.begin(first, "bulk").run(redis))
    assert (begun.may_begin, begun.paused) == (False, True)
    assert redis.hget(keys.FLOW_PREFIX + "f", "tat") is None, "no token was taken"
    queues.pause_queue(redis, "bulk", False)
    begun = stock_delivery.read_begun(stock_delivery.begin(second, "bulk").run(redis))
    assert (begun.may_begin, begun.paused) == (True, False)
    assert redis.hget(keys.FLOW_PREFIX + "g", "tat") is not None


@pytest.mark.parametrize("decide", [queues.pause_queue, queues.purge_queue])
def test_queue_with_an_invalid_name_is_refused(redis: Redis, decide: Any) -> None:
    with pytest.raises(Refused, match="a name of 1 to 64 letters") as error:
        decide(redis, "a b")
    assert error.value.field == "queue"
    assert not redis.exists(keys.PAUSED_QUEUES)


# --- listing -------------------------------------------------------------------------------------------------------


def test_queues_are_listed_with_their_figures(redis: Redis) -> None:
    first, *_ = send(redis, http(queue="bulk"), http(queue="bulk"), http(queue="bulk", flow="f"))
    send(redis, http(queue="later", time=3_600))
    flow_records.pause_flow(redis, "f2")
    send(redis, http(queue="bulk", flow="f2"))
    assert claimed(redis, "bulk", 1) == [first]
    queues.pause_queue(redis, "unknown")
    redis.sadd(keys.rq_workers("bulk"), "rq:worker:a", "rq:worker:b")
    assert queues.list_queues(redis) == [
        QueueRecord("bulk", queued=2, in_flight=1, waiting=1, workers=2),
        QueueRecord("later"),
        QueueRecord("unknown", paused=True),
    ]


@pytest.mark.parametrize("state", ["scheduled", "queued", "dead"])
def test_tasks_of_all_queues_are_listed_in_one_order(redis: Redis, state: State) -> None:
    names = ("a", "b", "a", "b", "c")
    ids = [send(redis, http(queue=name, time=3_600 + n))[0] for n, name in enumerate(names)]
    for number, (task_id, name) in enumerate(zip(ids, names, strict=True)):
        if state != "scheduled":
            due = 1_000.0 + number
            redis.zrem(keys.SCHEDULE, task_id)
            redis.hset(keys.job(task_id), mapping={"due": due, "status": "queued" if state == "queued" else "failed"})
        if state == "queued":
            redis.rpush(keys.queue(name), task_id)
        elif state == "dead":
            outcome = Outcome("failed", due, due, None, 0.0, 1, error="timeout")
            redis.hset(keys.job(task_id), "outcomes", encode_outcome(outcome))
            redis.zadd(keys.failed(name), {task_id: keys.FOREVER_SECONDS + due})
    wanted = ids[::-1] if state == "dead" else ids  # of those that have ended, the newest comes first
    assert [one.id for one in all_queues.list_tasks(redis, None, state)] == wanted
    assert [one.id for one in all_queues.list_tasks(redis, None, state, 2)] == wanted[:2]
    assert [one.id for one in all_queues.each_task(redis, None, state, 4)] == wanted[:4]
    of_b = [one for one in wanted if one in (ids[1], ids[3])]
    assert [one.id for one in all_queues.each_task(redis, "b", state)] == of_b
    assert all_queues.count_tasks(redis, None) == {**dict.fromkeys(STATES, 0), state: 5}
    assert all_queues.count_tasks(redis, "c")[state] == 1
    if state == "dead":
        assert sorted(all_queues.find_dead(redis, None, tasks.Filter(error="timeout"))) == sorted(ids)
        assert all_queues.find_dead(redis, "a", tasks.Filter()) == ids[:3:2]


# --- purging -------------------------------------------------------------------------------------------------------


def test_purge_cancels_what_is_queued_and_nothing_else(redis: Redis) -> None:
    in_flight, *_ = send(redis, *[http(queue="bulk") for _ in range(4)])
    assert claimed(redis, "bulk", 1) == [in_flight]
    (later,) = send(redis, http(queue="bulk", time=3_600))
    (other,) = send(redis, http())
    assert queues.purge_queue(redis, "bulk") == 3
    assert queues.purge_queue(redis, "bulk") == 0
    assert [tasks.show(redis, one).state for one in (in_flight, later, other)] == ["started", "scheduled", "queued"]
    assert redis.hget(keys.LEDGER, "cancelled:bulk") == b"3"
    found = audit(redis)
    assert (found.balances, found.cancelled) == (True, 3)


def test_purge_takes_more_than_one_script(redis: Redis) -> None:
    for _ in range(3):
        send(redis, *[http(queue="bulk") for _ in range(400)])
    schedule.release(redis, 1_000)
    before: Any = redis.info("commandstats")
    assert queues.purge_queue(redis, "bulk") == 1_200
    after: Any = redis.info("commandstats")
    calls = sum(after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in _EVALS if name in after)
    assert calls >= 3
    assert audit(redis).balances


_EVALS = ("cmdstat_evalsha", "cmdstat_eval")


def test_purge_frees_slots_and_cancels_tasks_that_wait_in_flows(redis: Redis) -> None:
    limited = {"key": "f", "parallel": 2}
    bulk = send(redis, *[http(queue="bulk", flow=limited, id=f"b{n}") for n in range(4)])
    others = send(redis, *[http(flow=limited) for _ in range(3)])
    assert len(queued(redis, "bulk")) == 2
    assert queues.purge_queue(redis, "bulk") == 4
    assert queued(redis, "bulk") == []
    assert queued(redis, "qtask") == others[:2], "the slots went to the tasks of the other queue"
    assert redis.zrange(keys.WAITING_PREFIX + "f", 0, -1) == [others[2].encode()]
    assert set(redis.zrange(keys.SLOTS_PREFIX + "f", 0, -1)) == {one.encode() for one in others[:2]}
    for task_id in bulk:
        with pytest.raises(NotFound):
            tasks.show(redis, task_id)
    assert redis.hget(keys.LEDGER, "held:bulk") == b"0"
    assert audit(redis).balances
    assert send(redis, http(id="b0")) == ["b0"], "its id is free again"


def test_purge_counts_deleted_jobs_and_leaves_tasks_in_flight_alone(redis: Redis) -> None:
    deleted, started = send(redis, http(queue="bulk"), http(queue="bulk"))
    assert claimed(redis, "bulk") == [deleted, started]
    redis.rpush(keys.queue("bulk"), started)  # as another program may do
    redis.zrem(keys.started("bulk"), f"{deleted}:alice")
    redis.rpush(keys.queue("bulk"), deleted)
    redis.unlink(keys.job(deleted))
    assert queues.purge_queue(redis, "bulk") == 0
    assert tasks.show(redis, started).state == "started"
    assert redis.hget(keys.LEDGER, "deleted:bulk") == b"1"
    assert audit(redis).balances


def test_purge_removes_a_retry_of_a_stock_worker_from_all_its_places(redis: Redis) -> None:
    """`rq requeue` has put it into the queue before it was due."""
    (task_id,) = send(redis, http(queue="bulk"))
    redis.hset(keys.job(task_id), "exc_info", "why")
    redis.sadd(keys.STOCK_RETRIES, task_id)
    redis.zadd(keys.failed("bulk"), {task_id: keys.FOREVER_SECONDS + 1})
    redis.zadd(keys.SCHEDULE, {task_id: 4_000_000_000})
    assert queues.purge_queue(redis, "bulk") == 1
    assert not redis.exists(keys.STOCK_RETRIES, keys.failed("bulk"), keys.SCHEDULE, keys.job(task_id))
    assert audit(redis).balances
