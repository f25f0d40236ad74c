"""Node numbers, and two id sources with the same number: every `ok` has a task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from qtask import AsyncClient, Client
from qtask.client.protocol import Accepted
from qtask.destinations.parsing import check_task
from qtask.model.ids import NODE_LIMIT, IdSource
from qtask.model.validation import Checked
from qtask.scheduler.process import Scheduler
from qtask.store import keys
from qtask.store.connect import connect_async
from qtask.store.nodes import LEASE_SECONDS, USE_SECONDS, Leased, Node, Nodes, take_number
from qtask.store.queries import Steps, run
from qtask.store.submit import Batch, Submission, submit
from tests.support.gateway_process import scheduled, stored, task
from tests.support.redis_server import RedisServer

NONCE = "nonce"


class SameIds(Nodes):
    """Makes the same ids as any other object with this nonce, like a copied process, until it must take a number."""

    def __init__(self, redis: Redis, nonce: str = NONCE) -> None:
        super().__init__()
        redis.set(keys.node(7), nonce)
        self._ids = IdSource(7, lambda: 1_795_539_666_250_000_000)
        self._nonce = nonce
        self._same = True

    def drop(self, node: Node) -> None:
        self._same = False
        super().drop(node)

    def take(self) -> Steps[Node]:
        if not self._same:
            return (yield from super().take())
        node = Node(self._nonce, Leased(7, (0, 0)))
        node.ids = self._ids
        return node


def take(redis: Redis, nodes: Nodes) -> Node:
    return run(redis, nodes.take())


def checked(title: str = "t") -> Checked:
    return check_task(task(title))


def ids(places: Any) -> list[str]:
    return [place.id for place in places]


# --- numbers ------------------------------------------------------------------------------------------------------


def test_each_process_gets_its_own_number_with_an_expiry(redis: Redis) -> None:
    nodes = [take(redis, Nodes()) for _ in range(5)]
    assert len({node.key for node in nodes}) == 5
    for node in nodes:
        assert redis.get(node.key) == node.nonce.encode()
        assert USE_SECONDS + 3_600 < redis.ttl(node.key) <= LEASE_SECONDS
    assert len({node.nonce for node in nodes}) == 5


def test_held_number_is_skipped_when_the_counter_wraps(redis: Redis) -> None:
    first = take(redis, Nodes())
    redis.set(keys.NODES, int(first.key.removeprefix(keys.NODE_PREFIX)) - 1 + NODE_LIMIT)
    second = take(redis, Nodes())
    assert second.key != first.key
    assert redis.get(first.key) == first.nonce.encode()


def test_counter_wraps_within_the_range_of_ids(redis: Redis) -> None:
    redis.set(keys.NODES, NODE_LIMIT - 2)
    nodes = [take(redis, Nodes()) for _ in range(3)]
    assert [node.key for node in nodes] == [keys.node(NODE_LIMIT - 1), keys.node(0), keys.node(1)]
    assert len({node.ids.next()[7:10] for node in nodes}) == 3


def test_error_when_every_number_is_held(redis: Redis) -> None:
    for number in range(3):
        redis.set(keys.node(number), "another")
    with pytest.raises(ResponseError, match="held by another process"):
        take_number(NONCE, numbers=3).run(redis)


def test_number_is_reused_until_its_time_is_over(redis: Redis) -> None:
    nodes = Nodes()
    node = take(redis, nodes)
    assert take(redis, nodes) is node
    node.ends = 0.0
    assert take(redis, nodes).key != node.key


# --- two id sources with one number --------------------------------------------------------------------------------


def test_two_sources_of_the_same_ids_lose_nothing(redis: Redis) -> None:
    one, other = SameIds(redis), SameIds(redis)
    accepted: list[str] = []
    for size in (1, 2, 300, 1):
        for maker in (one, other, one):
            accepted += ids(submit(redis, maker, Batch("qtask", [Submission(checked())] * size)))
    assert len(set(accepted)) == len(accepted)
    assert set(scheduled(redis)) == set(accepted)


def test_task_is_not_overwritten_by_another_with_its_id(redis: Redis) -> None:
    one, other = SameIds(redis), SameIds(redis)
    (first,) = ids(submit(redis, one, Batch("qtask", [Submission(checked("first"))])))
    (second,) = ids(submit(redis, other, Batch("other", [Submission(checked("second"))])))
    assert stored(redis, first)["title"] == "first"
    assert stored(redis, second)["title"] == "second"
    assert redis.hget(keys.job(first), "origin") == b"qtask"


def test_inbox_entry_stays_until_its_task_has_a_unique_id(redis: Redis) -> None:
    one, other = SameIds(redis), SameIds(redis)
    submit(redis, one, Batch("qtask", [Submission(checked())]))
    redis.xgroup_create(keys.INBOX, keys.INBOX_GROUP, "0", mkstream=True)
    raw: Any = redis.xadd(keys.INBOX, {"task": checked().body})
    redis.xreadgroup(keys.INBOX_GROUP, "gateway", {keys.INBOX: ">"})
    batch = Batch("qtask", [Submission(checked(), raw.decode(), b"answer")])
    reply = batch.call(take(redis, other)).run(redis)
    assert reply == [b"!"]
    assert redis.xlen(keys.INBOX) == 1
    assert redis.llen("answer") == 0
    assert not batch.read(reply), "it needs another number"
    (place,) = submit(redis, other, batch)
    assert place is not None and place.id in scheduled(redis)
    assert redis.xlen(keys.INBOX) == 0
    assert redis.llen("answer") == 1


def test_chosen_id_is_kept_when_a_made_id_in_the_batch_is_equal(redis: Redis) -> None:
    maker = SameIds(redis)
    made = IdSource(7, lambda: 1_795_539_666_250_000_000).next()
    chosen = task("chosen")
    chosen["settings"]["id"] = made
    places = submit(redis, maker, Batch("qtask", [Submission(check_task(chosen)), Submission(checked("made"))]))
    first, second = ids(places)
    assert first == made != second
    assert [stored(redis, one)["title"] for one in (first, second)] == ["chosen", "made"]


@pytest.mark.parametrize("what", ["taken", "gone"])
def test_lost_number_is_replaced(redis_server: RedisServer, redis: Redis, what: str) -> None:
    async def talk() -> list[str]:
        async with AsyncClient(redis_server.url) as client:
            found = [(await client.send(task())).id]
            lose()
            answers = await client.send_many(task() for _ in range(3))
            return found + [answer.id for answer in answers if isinstance(answer, Accepted)]

    def lose() -> None:
        for key in redis.keys(keys.NODE_PREFIX + "*"):
            redis.delete(key) if what == "gone" else redis.set(key, "another")

    scheduler = Scheduler("qtask", redis)
    with Client(redis_server.url) as client:
        found = [client.send(task()).id, scheduler.enqueue_many([(2e9, task())])[0].id]
        lose()
        found += [client.send(task()).id, scheduler.enqueue_many([(2e9, task())])[0].id]
    found += asyncio.run(talk())
    assert len(set(found)) == 8
    assert set(scheduled(redis)) == set(found)


# --- when a reply is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["redis", "asyncio"])
@pytest.mark.parametrize("reached", [True, False])
def test_batch_is_accepted_once_when_its_reply_was_lost(
    redis_server: RedisServer, redis: Redis, by: str, reached: bool
) -> None:
    nodes, batch = Nodes(), Batch("qtask", [Submission(checked()) for _ in range(3)])
    sent = batch.call(take(redis, nodes))
    lost: Any = sent.run(redis) if reached else None
    before = scheduled(redis)
    assert len(before) == (3 if reached else 0)

    async def resubmit() -> Any:
        client = connect_async(redis_server.url)
        try:
            return await submit.run_async(client, nodes, batch)
        finally:
            await client.aclose()

    places: Any = submit(redis, nodes, batch) if by == "redis" else asyncio.run(resubmit())
    assert scheduled(redis) == (before or sorted(ids(places)))
    assert sorted(ids(places)) == sorted(scheduled(redis))
    assert not any(place.duplicate for place in places)
    if reached:
        assert [place.due for place in places] == [float(due) for due in lost]


def test_batch_keeps_its_number_when_its_reply_was_lost(redis: Redis) -> None:
    """However old the number is by then: with a new one the tasks would be accepted twice."""
    nodes, batch = Nodes(), Batch("qtask", [Submission(checked())])
    node = take(redis, nodes)
    batch.call(node).run(redis)
    node.ends = 0.0
    (place,) = submit(redis, nodes, batch)
    assert place is not None and scheduled(redis) == [place.id]


def test_different_body_with_the_same_id_is_not_a_resubmission(redis: Redis) -> None:
    one, other = SameIds(redis), SameIds(redis)
    (first,) = ids(submit(redis, one, Batch("qtask", [Submission(checked("first"))])))
    batch = Batch("qtask", [Submission(checked("second"))])
    batch.call(take(redis, other))  # a request that never reached Redis
    (second,) = ids(submit(redis, other, batch))
    assert {one: stored(redis, one)["title"] for one in (first, second)} == {first: "first", second: "second"}


def test_task_of_another_sender_with_the_same_id_is_not_a_resubmission(redis: Redis) -> None:
    (first,) = ids(submit(redis, SameIds(redis, "one"), Batch("qtask", [Submission(checked())])))
    loser = SameIds(redis, "other")
    batch = Batch("qtask", [Submission(checked())])
    batch.call(take(redis, loser))
    redis.set(keys.node(7), "one")
    (second,) = ids(submit(redis, Nodes(), batch))
    assert sorted(scheduled(redis)) == sorted([first, second])
