"""Reading and removing tasks in every state, on a real Redis; claims and outcomes by QTask's own scripts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest
import rq_scheduler
from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.ending import settlement
from qtask.destinations.parsing import check_task
from qtask.model.errors import NotFound, WrongState
from qtask.model.outcome import Answer, Failure
from qtask.scheduler.process import Scheduler
from qtask.store import keys, leases
from qtask.store.flow_records import pause_flow
from qtask.store.ledger import read_figures
from qtask.store.rq_job import TaskJob
from qtask.store.tasks import cancel, count_tasks, forget, list_tasks, remove_one, retry_one, show
from tests.support.claiming import claim

LATER = 4_000_000_000.0


def task(title: str) -> dict[str, Any]:
    return {"title": title, "address": {"type": "http", "link": "http://127.0.0.1:1/"}, "settings": {"time": 0}}


def in_flow(title: str, flow: str) -> dict[str, Any]:
    return {**task(title), "settings": {"time": 0, "flow": flow}}


def submit(redis: Redis, *dues: float, queue: str = "qtask") -> list[str]:
    """Submits a task for each due instant; its title is its index in the list."""
    dicts = [(due, task(str(number))) for number, due in enumerate(dues)]
    return [job.id for job in Scheduler(queue, redis).enqueue_many(dicts)]


def release(redis: Redis) -> None:
    Scheduler("qtask", redis).release()


def settle(redis: Redis, *ids: str, error: Any = "") -> None:
    result = Failure(error, error) if error else Answer(200)
    once = check_task({**task("t"), "settings": {"time": 0, "retry": {"attempts": 1}}}).task
    ended = [settlement(Claim(task_id, 1, once, 0.5), result, 1.0, 1.0, 60) for task_id in ids]
    assert leases.read_settled(leases.settle(Config(), "worker", ended).run(redis)) == (len(ids), [])


def everything(redis: Redis) -> str:
    """All keys and their values."""
    read: dict[Any, Any] = {
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"hash": lambda key: sorted(cast("dict[bytes, bytes]", redis.hgetall(key)).items()),
        b"string": redis.get,
    }
    return str({key: read[redis.type(key)](key) for key in sorted(redis.scan_iter())})


def in_every_state(redis: Redis) -> dict[str, str]:
    """One task in each state."""
    (delivered,) = submit(redis, 1.0)
    release(redis)
    settle(redis, *claim(redis))
    (dead,) = submit(redis, 2.0)
    release(redis)
    settle(redis, *claim(redis), error="timeout")
    (started,) = submit(redis, 3.0)
    release(redis)
    claim(redis)
    (queued,) = submit(redis, 4.0)
    release(redis)
    (scheduled,) = submit(redis, LATER)
    pause_flow(redis, "paused")
    (waiting,) = (job.id for job in Scheduler("qtask", redis).enqueue_many([(5.0, in_flow("5", "paused"))]))
    release(redis)
    return {
        "scheduled": scheduled,
        "waiting": waiting,
        "queued": queued,
        "started": started,
        "delivered": delivered,
        "dead": dead,
    }


def test_task_is_shown_in_every_state(redis: Redis) -> None:
    ids = in_every_state(redis)
    assert {state: show(redis, task_id).state for state, task_id in ids.items()} == {state: state for state in ids}
    assert count_tasks(redis, "qtask") == dict.fromkeys(ids, 1)
    for state, task_id in ids.items():
        assert [record.id for record in list_tasks(redis, "qtask", state)] == [task_id]  # type: ignore[arg-type]


def test_record_holds_the_task_and_its_outcomes(redis: Redis) -> None:
    ids = in_every_state(redis)
    waiting, dead = show(redis, ids["scheduled"]), show(redis, ids["dead"])
    assert (waiting.due, waiting.attempts, waiting.outcomes) == (LATER, 0, [])
    assert (waiting.queue, waiting.title, waiting.type, waiting.link) == ("qtask", "0", "http", "http://127.0.0.1:1/")
    assert waiting.task == task("0") | {"settings": {"at": LATER}}
    assert waiting.accepted is not None
    assert waiting.accepted == pytest.approx(redis.time()[0], abs=5)
    (outcome,) = dead.outcomes
    assert (dead.attempts, outcome.status, outcome.error, outcome.message) == (1, "failed", "timeout", "timeout")
    assert dead.due == pytest.approx(dead.accepted or 0, abs=5), "a due instant in the past becomes now"


def test_waiting_tasks_are_listed_by_due_and_ended_ones_newest_first(redis: Redis) -> None:
    waiting = submit(redis, LATER + 3, LATER + 1, LATER + 2)
    assert [record.title for record in list_tasks(redis, "qtask", "scheduled")] == ["1", "2", "0"]
    assert [record.id for record in list_tasks(redis, "qtask", "scheduled", 1)] == [waiting[1]]
    early = submit(redis, 1.0, 1.0, 1.0)
    release(redis)
    assert [record.id for record in list_tasks(redis, "qtask", "queued")] == early
    for task_id in claim(redis):
        redis.zadd(keys.started("qtask"), {f"{task_id}:worker": 1.0})
        settle(redis, task_id)
        redis.zincrby(keys.finished("qtask"), early.index(task_id), task_id)  # as if they were a second apart
    assert [record.id for record in list_tasks(redis, "qtask", "delivered", 2)] == early[:0:-1]


def test_unknown_task_is_not_found(redis: Redis) -> None:
    with pytest.raises(NotFound, match="no task has the id 'nobody'"):
        show(redis, "nobody")
    with pytest.raises(NotFound, match="nobody"):
        cancel(redis, "nobody")
    assert list_tasks(redis, "qtask", "dead") == []
    assert set(count_tasks(redis, "another").values()) == {0}


def test_each_queue_has_its_own_scheduled_tasks_and_counts(redis: Redis) -> None:
    """Also behind many tasks of another queue, and with jobs of other programs for the same queue."""
    ours = submit(redis, LATER + 1, LATER + 9_000, queue="ours")
    theirs = submit(redis, *(LATER + 2 + number for number in range(2_500)), queue="theirs")
    for _ in range(2):
        assert [record.id for record in list_tasks(redis, "ours", "scheduled")] == ours
        assert [record.id for record in list_tasks(redis, "theirs", "scheduled", 2)] == theirs[:2]
        assert {queue: count_tasks(redis, queue)["scheduled"] for queue in ("ours", "theirs", "none")} == {
            "ours": 2,
            "theirs": 2_500,
            "none": 0,
        }
        assert read_figures(redis).scheduled_of("ours") == 2, "known from the ledger, without a scan of the schedule"
    stock = rq_scheduler.Scheduler("ours", connection=redis, job_class=TaskJob)
    foreign = stock.enqueue_at(datetime(2200, 1, 1, tzinfo=UTC), "os.getpid").id
    assert read_figures(redis).scheduled_of("ours") is None
    assert {queue: count_tasks(redis, queue)["scheduled"] for queue in ("ours", "theirs", "none")} == {
        "ours": 3,
        "theirs": 2_500,
        "none": 0,
    }
    assert [record.id for record in list_tasks(redis, "ours", "scheduled")] == [*ours, foreign]


VERBS = {"cancel": cancel, "forget": forget, "remove": remove_one, "retry": retry_one}
TAKES = {
    "cancel": ("scheduled", "waiting", "queued"),
    "forget": ("delivered",),
    "remove": ("dead",),
    "retry": ("dead",),
}


@pytest.mark.parametrize("verb", ["cancel", "forget", "remove"])
def test_removed_task_leaves_nothing_in_redis(redis: Redis, verb: str) -> None:
    ids = in_every_state(redis)
    redis.delete(keys.COUNTERS, keys.stats("http"))  # statistics outlive tasks
    for state in TAKES[verb]:
        before = count_tasks(redis, "qtask")
        assert VERBS[verb](redis, ids[state]) == state
        assert count_tasks(redis, "qtask") == {**before, state: 0}
        assert ids[state] not in everything(redis)
        with pytest.raises(NotFound):
            VERBS[verb](redis, ids[state])


@pytest.mark.parametrize("verb", VERBS)
def test_task_in_another_state_is_unchanged(redis: Redis, verb: str) -> None:
    ids = in_every_state(redis)
    for state, task_id in ids.items():
        if state not in TAKES[verb]:
            before = everything(redis)
            with pytest.raises(WrongState) as error:
                VERBS[verb](redis, task_id)
            assert error.value.state == state
            assert everything(redis) == before
    settle(redis, ids["started"])


def test_cancelled_task_is_not_claimed(redis: Redis) -> None:
    ids = submit(redis, 1.0, 1.0, 1.0)
    release(redis)
    cancel(redis, ids[1])
    assert claim(redis) == [ids[0], ids[2]]


def test_task_in_the_schedule_is_scheduled_whatever_its_status(redis: Redis) -> None:
    """rq-scheduler's tools, such as `change_execution_time`, change only the sorted set."""
    ids = in_every_state(redis)
    redis.zadd(keys.SCHEDULE, {ids["dead"]: LATER})
    assert (show(redis, ids["dead"]).state, show(redis, ids["dead"]).retry_at) == ("scheduled", LATER)
    assert cancel(redis, ids["dead"]) == "scheduled"
    assert count_tasks(redis, "qtask")["dead"] == 0


def test_job_that_is_not_a_task_is_shown_and_can_be_removed(redis: Redis) -> None:
    redis.hset(keys.job("foreign"), mapping={"data": '["os.getpid",null,[],{}]', "status": "failed"})
    redis.zadd(keys.failed(""), {"foreign": 1})
    record = show(redis, "foreign")
    assert (record.state, record.type, record.title, record.link, record.due) == ("dead", "unknown", "", "", 0.0)
    assert record.task is None
    assert remove_one(redis, "foreign") == "dead"
    assert redis.exists(keys.job("foreign"), keys.failed("")) == 0
