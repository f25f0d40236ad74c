"""The scheduler on a real Redis: release to the microsecond, never early, together with others, and reclaim."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from redis import Redis
from rq.serializers import JSONSerializer

from qtask.config import Config
from qtask.model.errors import Refused
from qtask.scheduler.housekeeping import FORGET_BATCH, Housekeeping
from qtask.scheduler.process import Scheduler
from qtask.store import keys, leases
from qtask.store.rq_job import TaskJob
from tests.support.claiming import claim
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

TASK: dict[str, Any] = {
    "title": "t",
    "address": {"type": "http", "link": "http://127.0.0.1:1/"},
    "settings": {"time": 0},
}


def redis_now(redis: Redis) -> float:
    seconds, microseconds = redis.time()
    return float(seconds) + microseconds / 1e6


@contextmanager
def running(*schedulers: Scheduler) -> Iterator[None]:
    threads = [threading.Thread(target=scheduler.run) for scheduler in schedulers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for scheduler in schedulers:
            scheduler.stop()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def queued(redis: Redis, queue: str) -> list[str]:
    ids: Any = redis.lrange(keys.queue(queue), 0, -1)
    return [job_id.decode() for job_id in ids]


def test_enqueue_at_keeps_fractions_of_a_second(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    due = datetime.now(UTC) + timedelta(seconds=60, microseconds=123_456)
    task = scheduler.enqueue_at(due, "qtask.do", TASK)
    other = scheduler.enqueue_at(due.replace(tzinfo=None), "os.getpid")
    assert redis.zscore(keys.SCHEDULE, task.id) == pytest.approx(due.timestamp(), abs=1e-6)
    assert redis.zscore(keys.SCHEDULE, other.id) == pytest.approx(due.timestamp(), abs=1e-6)


def test_enqueue_many_is_one_round_trip_and_refuses_as_a_whole(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    now = redis_now(redis)
    scheduler.enqueue_many([(now + 60, TASK)])
    redis.config_resetstat()
    jobs = scheduler.enqueue_many([(now + 60 + i, TASK) for i in range(300)])
    assert redis.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert redis.zcard(keys.SCHEDULE) == 301
    assert len({job.id for job in jobs}) == 300
    with pytest.raises(Refused, match="title"):
        scheduler.enqueue_many([(now, TASK), (now, {**TASK, "title": ""})])
    assert redis.zcard(keys.SCHEDULE) == 301


def test_task_is_an_rq_job_in_json(redis: Redis) -> None:
    job = Scheduler("qtask", redis).enqueue_at(datetime.now(UTC), "qtask.do", TASK)
    fetched = TaskJob.fetch(job.id, connection=redis)
    assert fetched.func_name == "qtask.do"
    assert fetched.args[0]["title"] == "t"
    assert fetched.origin == "qtask"
    assert fetched.serializer is JSONSerializer


def test_release_is_never_early_and_prompt(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    now = redis_now(redis)
    jobs = scheduler.enqueue_many([(now + 0.5 + i * 0.01, TASK) for i in range(50)])
    assert scheduler.release()[0] == 0
    with running(scheduler):
        seen: dict[str, float] = {}

        def all_released() -> bool:
            with redis.pipeline(transaction=True) as at_once:  # the queue and the time at the same instant
                at_once.lrange(keys.queue("qtask"), 0, -1)
                at_once.time()
                ids, (seconds, microseconds) = at_once.execute()
            for job_id in ids:
                seen.setdefault(job_id.decode(), seconds + microseconds / 1e6)
            return len(seen) == 50

        until(all_released)
    for position, job in enumerate(jobs):
        assert seen[job.id] >= now + 0.5 + position * 0.01
    assert [job.id for job in jobs] == sorted(seen, key=lambda job_id: seen[job_id])
    assert redis.smembers(keys.QUEUES) == {keys.queue("qtask").encode()}


def test_earlier_task_wakes_a_sleeping_scheduler(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    with running(scheduler):
        scheduler.enqueue_at(datetime.now(UTC) + timedelta(hours=1), "qtask.do", TASK)
        until(lambda: redis.pubsub_numsub(keys.WAKE)[0][1] == 1)
        scheduler.enqueue_at(datetime.now(UTC), "qtask.do", TASK)
        until(lambda: redis.llen(keys.queue("qtask")) == 1, 0.9, "woken before its next tick")
    assert redis.zcard(keys.SCHEDULE) == 1


def test_three_schedulers_move_each_task_once(redis_server: RedisServer, redis: Redis) -> None:
    schedulers = [Scheduler("qtask", redis_server.client()) for _ in range(3)]
    now = redis_now(redis)
    with running(*schedulers):
        for start in range(0, 3000, 500):
            schedulers[0].enqueue_many([(now + (start + i) / 3000, TASK) for i in range(500)])
        until(lambda: redis.zcard(keys.SCHEDULE) == 0)
    ids = queued(redis, "qtask")
    assert len(ids) == len(set(ids)) == 3000


def test_foreign_jobs_are_moved_by_the_rules_of_rq_scheduler(redis: Redis) -> None:
    import rq_scheduler

    stock = rq_scheduler.Scheduler("other", connection=redis)
    once = stock.enqueue_in(timedelta(seconds=-1), "os.getpid")
    repeated = stock.schedule(datetime.now(UTC) - timedelta(seconds=1), "os.getpid", interval=60)
    scheduler = Scheduler("qtask", redis)
    mine = scheduler.enqueue_at(datetime.now(UTC) - timedelta(seconds=1), "qtask.do", TASK)
    with running(scheduler):
        until(lambda: redis.llen(keys.queue("other")) == 2 and redis.llen(keys.queue("qtask")) == 1)
    assert redis.zrange(keys.SCHEDULE, 0, -1) == [repeated.id.encode()], "the repeated one is scheduled again"
    assert {once.id, repeated.id} == set(queued(redis, "other"))
    assert redis.lrange(keys.queue("qtask"), 0, -1) == [mine.id.encode()]


def test_broken_foreign_job_does_not_stop_other_tasks(redis: Redis) -> None:
    redis.hset(keys.job("broken"), mapping={"created_at": "2026-01-01T00:00:00.000000Z", "data": "?", "origin": "x"})
    redis.zadd(keys.SCHEDULE, {"broken": 1})
    scheduler = Scheduler("qtask", redis)
    with running(scheduler):
        scheduler.enqueue_at(datetime.now(UTC), "qtask.do", TASK)
        until(lambda: redis.llen(keys.queue("qtask")) == 1)


def test_retry_wakes_the_schedulers_when_it_is_due_first(redis: Redis) -> None:
    """Otherwise they may sleep for a second."""
    scheduler = Scheduler("qtask", redis)
    now = redis_now(redis)
    jobs = scheduler.enqueue_many([(now - 1, TASK), (now - 1, TASK), (now + 60, TASK)])
    scheduler.release()
    assert claim(redis, "worker") == [job.id for job in jobs[:2]]
    with redis.pubsub(ignore_subscribe_messages=True) as wake:
        wake.subscribe(keys.WAKE)
        wake.get_message(timeout=30)
        for job, delay in zip(jobs, (90.0, 30.0), strict=False):
            options = msgspec.json.encode(leases.SettleOptions(delay=delay))
            retry = leases.Settlement(job.id, "retry", b"{}", "why", "http:status", "1.0", f"{job.id}:1", options)
            assert leases.read_settled(leases.settle(Config(), "worker", [retry]).run(redis)).settled == 1
        message = wake.get_message(timeout=30)
        assert message is not None
        assert float(message["data"]) == redis.zscore(keys.SCHEDULE, jobs[1].id)
        assert wake.get_message(timeout=0.1) is None, "the other one is due after a task that is already scheduled"


def test_stock_scheduler_stays_passive_while_ours_runs(redis: Redis) -> None:
    import rq_scheduler

    with running(Scheduler("qtask", redis)):
        until(lambda: redis.get(keys.SCHEDULER_LOCK) == b"qtask")
        assert not rq_scheduler.Scheduler("x", connection=redis).acquire_lock()


def test_tasks_of_a_dead_worker_are_reclaimed_and_those_of_a_live_one_are_not(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    now = redis_now(redis)
    first, second = (job.id for job in scheduler.enqueue_many([(now - 1, TASK), (now - 1, TASK)]))
    scheduler.release()
    assert claim(redis, "dead", limit=1) == [first]
    assert claim(redis, "alive", limit=1) == [second]
    redis.zadd(keys.WORKERS, {"dead": now - 60, "alive": now})
    assert scheduler.housekeeping.reclaim("qtask") == [first]
    assert redis.lrange(keys.queue("qtask"), 0, -1) == [first.encode()]
    assert redis.zrange(keys.started("qtask"), 0, -1) == [f"{second}:alive".encode()]
    assert redis.zrange(keys.WORKERS, 0, -1) == [b"alive"]
    assert claim(redis, "next") == [first]
    assert redis.hget(keys.job(first), "attempt") == b"2"


def test_tasks_of_a_dead_worker_are_reclaimed_from_every_queue_behind_many_others(
    redis: Redis,
) -> None:
    """Leases of living workers, which expire earlier, precede those of the dead one in the registry."""
    queues = [f"queue-{number}" for number in range(4)]
    now = redis_now(redis)
    for queue in queues:
        (job,) = Scheduler(queue, redis).enqueue_many([(now - 1, TASK)])
        redis.zadd(keys.started(queue), {f"other-{n}:alive": keys.FOREVER_SECONDS + now + 10 for n in range(6_000)})
        redis.zadd(keys.started(queue), {f"{job.id}:dead": keys.FOREVER_SECONDS + now + 45})
    Scheduler("any", redis).release()
    for queue in queues:
        redis.delete(keys.queue(queue))
    redis.zadd(keys.WORKERS, {"dead": now - 60, "alive": now})
    assert len(Housekeeping(redis).reclaim(*queues)) == 4
    assert [redis.llen(keys.queue(queue)) for queue in queues] == [1] * 4
    assert [redis.zcard(keys.started(queue)) for queue in queues] == [6_000] * 4
    assert redis.zrange(keys.WORKERS, 0, -1) == [b"alive"]


def test_expired_lease_of_a_live_worker_is_reclaimed(redis: Redis) -> None:
    scheduler = Scheduler("qtask", redis)
    (job,) = scheduler.enqueue_many([(redis_now(redis), TASK)])
    scheduler.release()
    redis.zadd(keys.WORKERS, {"alive": redis_now(redis)})
    assert claim(redis, "alive", margin=-31) == [job.id]
    assert scheduler.housekeeping.reclaim("qtask") == [job.id]


def test_rq_cleanup_does_not_touch_leases(redis: Redis) -> None:
    from rq import Queue
    from rq.registry import FailedJobRegistry, StartedJobRegistry, clean_registries

    scheduler = Scheduler("qtask", redis)
    (job,) = scheduler.enqueue_many([(redis_now(redis), TASK)])
    scheduler.release()
    assert claim(redis, margin=-31) == [job.id]
    queue = Queue("qtask", connection=redis, serializer=JSONSerializer)
    clean_registries(queue)
    assert StartedJobRegistry(queue=queue).get_job_ids() == [job.id]
    assert FailedJobRegistry(queue=queue).get_job_ids() == []


def test_scheduler_survives_a_restart_of_redis(tmp_path: Any) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    try:
        redis = server.client()
        scheduler = Scheduler("qtask", server.client())
        with running(scheduler):
            scheduler.enqueue_at(datetime.now(UTC) + timedelta(seconds=1.0), "qtask.do", TASK)
            server.kill()
            server.start()
            until(lambda: redis.llen(keys.queue("qtask")) == 1)
    finally:
        server.kill()


# --- forgetting --------------------------------------------------------------------------------------------------


def test_delivered_tasks_are_forgotten_at_the_end_of_their_retention(redis: Redis) -> None:
    queues = ("one", "two")
    later = redis.time()[0] + keys.FOREVER_SECONDS
    for queue in queues:
        for name, end in {"old": later - 1, "new": later + 60, "of-rq": redis.time()[0] - 1}.items():
            redis.zadd(keys.finished(queue), {f"{queue}-{name}": end})
            redis.hset(keys.job(f"{queue}-{name}"), "data", "x")
            redis.xadd(keys.results(f"{queue}-{name}"), {"type": 1})
    assert Housekeeping(redis).forget(*queues) == 2
    for queue in queues:
        assert redis.zrange(keys.finished(queue), 0, -1) == [f"{queue}-of-rq".encode(), f"{queue}-new".encode()]
        assert not redis.exists(keys.job(f"{queue}-old"), keys.results(f"{queue}-old"))
        for name in ("new", "of-rq"):
            assert redis.exists(keys.job(f"{queue}-{name}"), keys.results(f"{queue}-{name}")) == 2
    assert Housekeeping(redis).forget() == 0, "before there is any queue"


def test_many_tasks_are_forgotten_in_batches(redis: Redis) -> None:
    ended = {f"task-{number}": keys.FOREVER_SECONDS + 1 + number for number in range(FORGET_BATCH + 500)}
    redis.zadd(keys.finished("qtask"), ended)
    scheduler = Scheduler("qtask", redis)
    assert [scheduler.housekeeping.forget("qtask") for _ in range(3)] == [FORGET_BATCH, 500, 0]
