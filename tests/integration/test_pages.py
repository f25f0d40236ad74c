"""Pages of tasks on a real Redis, with redis-py and with redis.asyncio: the queries have one source."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.ending import settlement
from qtask.destinations.parsing import check_task
from qtask.model.errors import NotFound, Refused, WrongState
from qtask.model.outcome import Answer, Failure
from qtask.model.record import STATES, State
from qtask.store import graphs, keys, leases, schedule, tasks
from qtask.store.connect import connect_async
from qtask.store.flow_records import pause_flow
from qtask.store.nodes import Nodes
from qtask.store.pages import LIMIT, Cursor, encode_cursor
from qtask.store.queries import Query
from qtask.store.submit import Batch, Submission, submit
from qtask.store.tasks import Filter
from tests.support.claiming import claim
from tests.support.redis_server import RedisServer

LATER = 4_000_000_000.0

Ask = Callable[..., Any]


@pytest.fixture(params=["redis", "asyncio"])
def ask(request: pytest.FixtureRequest, redis_server: RedisServer, redis: Redis) -> Ask:
    """Runs a query with one kind of client."""

    def with_redis(query: Query[..., Any], *args: Any, **named: Any) -> Any:
        return query(redis, *args, **named)

    def with_asyncio(query: Query[..., Any], *args: Any, **named: Any) -> Any:
        async def run() -> Any:
            client = connect_async(redis_server.url)
            try:
                return await query.run_async(client, *args, **named)
            finally:
                await client.aclose()

        return asyncio.run(run())

    return with_redis if request.param == "redis" else with_asyncio


def task(**settings: Any) -> dict[str, Any]:
    return {"title": "t", "address": {"type": "http", "link": "http://127.0.0.1:1/"}, "settings": settings}


def accept(redis: Redis, number: int, queue: str = "qtask", at: float = 1.0, **settings: Any) -> list[str]:
    """Submits tasks that are all due at the same instant."""
    checked = check_task(task(at=at, retry={"attempts": 1}, **settings))
    places = submit(redis, Nodes(), Batch(queue, [Submission(checked)] * number))
    return [place.id for place in places if place is not None]


def make_tasks(redis: Redis, state: State, number: int) -> list[str]:
    """Makes tasks in one state; entries of sorted sets share few scores."""
    if state == "waiting":
        pause_flow(redis, "paused")
        ids = accept(redis, number, flow="paused")
        assert schedule.release(redis, number).moved == number
        return ids
    ids = accept(redis, number, at=LATER if state == "scheduled" else 1.0)
    if state == "scheduled":
        return ids
    assert schedule.release(redis, number).moved == number
    if state == "queued":
        return ids
    assert sorted(claim(redis, limit=number)) == sorted(ids)
    if state != "started":
        end(redis, ids, "timeout" if state == "dead" else "")
    return ids


def end(redis: Redis, ids: list[str], error: str) -> None:
    once = check_task(task(time=0, retry={"attempts": 1})).task
    result: Any = Failure(error, error) if error else Answer(200)  # type: ignore[arg-type]
    ended = [settlement(Claim(one, 1, once, 0.5), result, 1.0, 1.0, 60) for one in ids]
    leases.settle(Config(), "worker", ended).run(redis)


def pages(ask: Ask, state: State, limit: int, between: Callable[[int], None] = lambda _: None) -> list[list[str]]:
    """All pages of a list; `between` is called after each with the number of pages so far."""
    found: list[list[str]] = []
    cursor = ""
    while True:
        page = ask(tasks.list_page, "qtask", state, limit, cursor)
        found.append([record.id for record in page.items])
        assert len(found[-1]) <= limit
        if not page.cursor:
            return found
        cursor = page.cursor
        between(len(found))


def flat(found: list[list[str]]) -> list[str]:
    return [task_id for page in found for task_id in page]


@pytest.mark.parametrize("state", STATES)
def test_every_task_is_on_one_page_and_in_order(ask: Ask, redis: Redis, state: State) -> None:
    """Also with equal scores, and when a page ends with the last task."""
    ids = make_tasks(redis, state, 20)
    whole = [record.id for record in ask(tasks.list_tasks, "qtask", state, 100)]
    assert sorted(whole) == sorted(ids)
    for limit in (7, 10, 19, 20, 21):
        found = pages(ask, state, limit)
        assert flat(found) == whole
        assert len(found) == -(-20 // limit)
    assert [record.id for record in ask(tasks.list_tasks, "qtask", state, 12)] == whole[:12]
    assert ask(tasks.list_page, "another", state).items == []


@pytest.mark.parametrize("state", STATES)
def test_unchanged_tasks_are_on_a_page_while_others_are_added_and_removed(ask: Ask, redis: Redis, state: State) -> None:
    """After each page its last task and a later one are removed; others are added before, after and in between."""
    ids = make_tasks(redis, state, 40)
    chance = random.Random(5)
    gone: set[str] = set()

    def remove(task_id: str) -> None:
        gone.add(task_id)
        redis.lrem(keys.queue("qtask"), 1, task_id)
        redis.zrem(keys.started("qtask"), f"{task_id}:worker")
        for key in (keys.SCHEDULE, keys.finished("qtask"), keys.failed("qtask")):
            redis.zrem(key, task_id)

    def change(pages_read: int) -> None:
        left = [task_id for task_id in whole if task_id not in gone]
        remove(left[min(len(left) - 1, pages_read * 6)])
        remove(chance.choice([task_id for task_id in ids if task_id not in gone]))
        if state == "queued":
            redis.lpop(keys.queue("qtask"))
            redis.lpush(keys.queue("qtask"), *accept(redis, 2, at=LATER))
            redis.rpush(keys.queue("qtask"), *accept(redis, 1, at=LATER))
        elif state == "scheduled":
            accept(redis, 2, at=1.0)
            accept(redis, 1, at=LATER)
            accept(redis, 1, at=LATER + 1)

    whole = [record.id for record in tasks.list_tasks(redis, "qtask", state, 100)]
    head = [whole[0]] if state == "queued" else []
    found = pages(ask, state, 6, change)
    seen = flat(found)
    stayed = [task_id for task_id in whole if task_id not in gone and task_id not in head]
    assert len(found) > 3
    assert [task_id for task_id in whole if task_id in seen and task_id in stayed] == stayed, "none is left out"
    if state != "queued":
        assert len(seen) == len(set(seen)), "none is on two pages"
        assert [task_id for task_id in seen if task_id in stayed] == stayed, "they are in order"


def test_queue_page_continues_at_the_head_when_the_read_part_was_claimed(ask: Ask, redis: Redis) -> None:
    ids = make_tasks(redis, "queued", 30)
    page = ask(tasks.list_page, "qtask", "queued", 10)
    assert [record.id for record in page.items] == ids[:10]
    claim(redis, limit=25)
    rest = ask(tasks.list_page, "qtask", "queued", 10, page.cursor)
    assert [record.id for record in rest.items] == ids[25:]
    assert rest.cursor == ""


def test_task_that_returned_to_the_end_of_its_queue_hides_no_others(ask: Ask, redis: Redis) -> None:
    ids = make_tasks(redis, "queued", 30)
    page = ask(tasks.list_page, "qtask", "queued", 10)
    assert claim(redis, limit=20) == ids[:20]
    for task_id in ids[:10]:  # those that were read are retried and released
        redis.zrem(keys.started("qtask"), f"{task_id}:worker")
        redis.rpush(keys.queue("qtask"), task_id)
    rest = ask(tasks.list_page, "qtask", "queued", 10, page.cursor)
    assert [record.id for record in rest.items] == ids[20:]


def test_page_of_one_queue_among_many_tasks_of_another(ask: Ask, redis: Redis) -> None:
    """The schedule is shared by all queues: a page may need several script calls, and ends at its last task."""
    for at in (LATER, LATER + 1):
        accept(redis, 2, at=at)
        accept(redis, 900, "another", at=at + 0.5)
        accept(redis, 900, "another", at=at + 0.6)
    assert [len(page) for page in pages(ask, "scheduled", 3)] == [3, 1]
    assert len(ask(tasks.list_tasks, "another", "scheduled", 10_000)) == 3_600
    assert len(ask(tasks.list_page, "another", "scheduled", 10_000).items) == LIMIT
    assert ask(tasks.count_tasks, "qtask")["scheduled"] == 4
    redis.hdel(keys.LEDGER, "accepted:another")  # so that the schedule is scanned
    assert ask(tasks.count_tasks, "qtask")["scheduled"] == 4


def test_search_finds_the_dead_letters_of_its_start_and_no_later_ones(ask: Ask, redis: Redis) -> None:
    """Otherwise a client that retries all results would find the same tasks again and again."""
    ids = make_tasks(redis, "dead", 25)
    found: list[str] = []
    cursor = ""
    while True:
        page = ask(tasks.find_dead_page, "qtask", Filter(), cursor, 10)
        found += page.items
        assert ask(tasks.retry, page.items) == page.items
        claim(redis, limit=100)
        end(redis, page.items, "timeout")  # they are dead again, and the newest of all
        for task_id in page.items:
            redis.zincrby(keys.failed("qtask"), 1, task_id)
        cursor = page.cursor
        if not cursor:
            break
    assert found == sorted(ids)
    assert ask(tasks.find_dead, "qtask", Filter(error="timeout")) == sorted(ids)
    assert ask(tasks.find_dead, "qtask", Filter(error="connect")) == []


@pytest.mark.parametrize(
    "cursor",
    ["?", "AAAA", "bm90aGluZw", "ü", encode_cursor(Cursor("dead", "qtask", "no number", "x")), "W10", "WzEsMl0"],
)
def test_invalid_cursor_is_refused(ask: Ask, redis: Redis, cursor: str) -> None:
    with pytest.raises(Refused) as refused:
        ask(tasks.list_page, "qtask", "dead", 10, cursor)
    assert (refused.value.code, refused.value.field) == ("invalid_value", "cursor")
    assert "none for the first page" in refused.value.message


def test_cursor_of_another_list_is_refused(ask: Ask, redis: Redis) -> None:
    make_tasks(redis, "dead", 3)
    cursor = ask(tasks.list_page, "qtask", "dead", 1).cursor
    for queue, state in (("qtask", "delivered"), ("another", "dead")):
        with pytest.raises(Refused, match=f"belongs to another list: dead tasks .* not {state} tasks of '{queue}'"):
            ask(tasks.list_page, queue, state, 1, cursor)
    with pytest.raises(Refused, match="another list"):
        ask(tasks.find_dead_page, "qtask", Filter(), cursor)


def test_queries_of_one_task(ask: Ask, redis: Redis) -> None:
    order: tuple[State, ...] = ("dead", "delivered", "started", "waiting", "queued", "scheduled")
    ids = {state: make_tasks(redis, state, 1)[0] for state in order}
    assert {state: ask(tasks.show, task_id).state for state, task_id in ids.items()} == {state: state for state in ids}
    assert ask(tasks.count_tasks, "qtask") == dict.fromkeys(STATES, 1)
    with pytest.raises(NotFound, match="nobody"):
        ask(tasks.show, "nobody")
    with pytest.raises(WrongState):
        ask(tasks.retry_one, ids["queued"])
    with pytest.raises(WrongState):
        ask(tasks.cancel, ids["started"])
    assert ask(tasks.cancel, ids["scheduled"]) == "scheduled"
    assert ask(tasks.cancel, ids["waiting"]) == "waiting"
    assert ask(tasks.forget, ids["delivered"]) == "delivered"
    assert ask(tasks.retry_one, ids["dead"]) == "dead"
    assert ask(tasks.remove_dead, [ids["queued"]]) == []
    assert ask(graphs.read, "nobody") is None
    graphs.keep(redis, "0__order_3A2", b"second picture")
    assert ask(graphs.read, "order:2") == b"second picture"


def test_many_tasks_are_listed_in_pages(redis: Redis) -> None:
    ids = [task_id for _ in range(3) for task_id in accept(redis, 750, at=LATER)]
    listed = list(tasks.list_pages(redis, "qtask", "scheduled", 10_000))
    assert [len(page) for page in listed] == [LIMIT, LIMIT, 250]
    assert [record.id for page in listed for record in page] == ids
    assert [len(page) for page in tasks.list_pages(redis, "qtask", "scheduled", 1_001)] == [LIMIT, 1]
    assert [len(page) for page in tasks.dead_pages(redis, "qtask", Filter())] == [0]
