"""Dead letters: listed, shown, retried and removed by every interface; kept forever, or up to a logged bound."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from qtask import AsyncClient
from qtask.store import keys, tasks
from qtask.store.tasks import Filter
from tests.support.command import qtask, refused
from tests.support.gateway_process import Gateway
from tests.support.live import Live
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

TEN_YEARS = 315_360_000


@pytest.fixture(scope="module")
def gateway(live: Live) -> Iterator[Gateway]:
    with Gateway(live.server.url, live.folder) as one:
        yield one


@contextmanager
def working(live: Live, queue: str, **settings: Any) -> Iterator[Process]:
    """Runs a worker within the context."""
    worker = live.start("worker", queue=queue, **settings)
    try:
        yield worker
    finally:
        worker.kill()


def http(url: str, title: str = "t", **settings: Any) -> dict[str, Any]:
    given = {"time": 0, "retry": {"attempts": 1}, **settings}
    return {"title": title, "address": {"type": "http", "link": url}, "settings": given}


def make_dead(live: Live, queue: str, *dicts: dict[str, Any]) -> list[str]:
    """Submits tasks, and returns their ids when all are dead and the worker is gone."""
    ids = live.send(queue, *dicts)
    with working(live, queue):
        assert {record.state for record in live.ended(ids)} == {"dead"}
    return ids


@contextmanager
def five_dead(live: Live, queue: str) -> Iterator[list[str]]:
    """Five dead letters that differ in everything that can be filtered, in a queue without workers."""
    with Receiver(lambda exchange: exchange.answer(int(exchange.request.target.strip("/")))) as receiver:
        pipe = {"type": "pipe", "link": "nobody-reads"}
        settings = {"time": 0, "data": {"data": 1}, "retry": {"attempts": 1}}
        yield make_dead(
            live,
            queue,
            http(receiver.url + "404", "bill of Anna"),
            http(receiver.url + "500", "bill of Otto"),
            http(receiver.url + "404", "greeting of Anna"),
            http(f"http://127.0.0.1:{free_port()}/", "bill of Otto"),
            {"title": "line of Anna", "address": pipe, "settings": settings},
        )


# --- filters -----------------------------------------------------------------------------------------------------


def test_dead_letters_are_found_by_filter(live: Live, queue: str) -> None:
    with five_dead(live, queue) as five:
        for wanted, numbers in (
            (Filter(error="404"), {0, 2}),
            (Filter(error="status"), {0, 1, 2}),
            (Filter(error="connect"), {3}),
            (Filter(error="no_reader"), {4}),
            (Filter(type="pipe"), {4}),
            (Filter(link="/500"), {1}),
            (Filter(link="nobody"), {4}),
            (Filter(title="Anna"), {0, 2, 4}),
            (Filter(title="bill", error="404"), {0}),
            (Filter(title="bill", type="pipe"), set()),
            (Filter(), {0, 1, 2, 3, 4}),
        ):
            found = tasks.find_dead(live.redis, queue, wanted)
            assert sorted(found) == sorted(five[number] for number in numbers), wanted


def test_clients_find_retry_and_remove_dead_letters(live: Live, queue: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    first, second = (make_dead(live, queue, http(f"{nowhere}{path}"))[0] for path in ("charge/1", "charge/2"))
    with five_dead(live, queue) as five, live.client(queue) as client, live.client("another") as elsewhere:
        assert client.find_dead(link="/charge/") == [first, second]
        assert client.find_dead(error="connect")[:2] == [first, second]
        assert set(client.find_dead(error=404)) == set(client.find_dead(error="404")) == {five[0], five[2]}
        assert client.find_dead(title="bill", error=404) == [five[0]]
        assert client.find_dead(type="pipe") == [five[4]]
        assert client.find_dead(type="pipe", error=404) == []
        assert set(client.find_dead()) == {first, second, *five}
        assert elsewhere.find_dead() == []
        assert client.retry(client.find_dead(link="/charge/")) == [first, second]
        assert live.queued(queue) == [first, second]

    async def talk() -> None:
        async with AsyncClient(live.url, queue=queue) as client:
            assert await client.find_dead(link="/charge/") == []
            assert await client.find_dead(title="bill", error=404) == [five[0]]
            assert await client.remove(await client.find_dead(type="pipe")) == [five[4]]
            assert set(await client.find_dead()) == set(five[:4])

    asyncio.run(talk())


# --- reading -----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_newest_first_and_shown_with_all_attempts(live: Live, queue: str) -> None:
    with Receiver(lambda exchange: exchange.answer(503, b"closed")) as receiver:
        twice = {"base": 0, "attempts": 2}
        first, second = (make_dead(live, queue, http(receiver.url, name, retry=twice))[0] for name in ("a", "b"))
    look = {**live.environment, "QTASK_QUEUE": queue}
    lines = qtask("list", "--queue", queue, "--state", "dead", "--json", environment=look).stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [second, first]
    table = qtask("list", "--queue", queue, "--state", "dead", environment=look).stdout
    assert first in table and second in table
    shown = json.loads(qtask("show", first, "--json", environment=look).stdout)
    assert (shown["state"], shown["attempts"], shown["title"]) == ("dead", 2, "a")
    outcomes = [(one.get("attempt", 1), one["code"], one["answer"], one["error"]) for one in shown["outcomes"]]
    assert outcomes == [(1, 503, "closed", "status"), (2, 503, "closed", "status")]


# --- retrying and removing by the command line -------------------------------------------------------------------


def test_retried_dead_letter_starts_again_at_attempt_1(live: Live, queue: str) -> None:
    healed = False

    def behave(exchange: Exchange) -> None:
        exchange.answer(200 if healed else 500)

    look = {**live.environment, "QTASK_QUEUE": queue}
    with Receiver(behave) as receiver, working(live, queue):
        with live.client(queue) as client:
            task_id = client.send(http(receiver.url, retry={"base": 0, "attempts": 2})).id
        live.ended([task_id])
        assert qtask("retry", task_id, environment=look).stdout == f"{task_id} is queued again\n"
        receiver.wait_for(4)
        (record,) = live.ended([task_id])
        assert (record.state, record.attempts) == ("dead", 2)
        assert [outcome.attempt for outcome in record.outcomes] == [1, 2, 1, 2]
        healed = True
        said = qtask("retry", task_id, "--json", environment=look).stdout
        assert json.loads(said) == {"id": task_id, "queued": True}
        until(lambda: tasks.show(live.redis, task_id).state == "delivered")
    record = tasks.show(live.redis, task_id)
    assert (record.attempts, [outcome.code for outcome in record.outcomes]) == (1, [500] * 4 + [200])
    assert tasks.count_tasks(live.redis, queue) | {"scheduled": 0} == {
        **dict.fromkeys(("scheduled", "waiting", "queued", "started", "dead"), 0),
        "delivered": 1,
    }


def test_dead_letters_that_match_are_retried(live: Live, queue: str) -> None:
    look = {**live.environment, "QTASK_QUEUE": queue}
    with five_dead(live, queue) as five:
        lines = qtask(
            "retry", "--queue", queue, "--title", "bill", "--error", "404", "--json", environment=look
        ).stdout.splitlines()
        assert [json.loads(line) for line in lines] == [{"id": five[0], "queued": True}]
        assert live.queued(queue) == [five[0]]
        lines = qtask("retry", "--queue", queue, "--all", environment=look).stdout.splitlines()
        assert sorted(lines) == sorted(f"{task_id} is queued again" for task_id in five[1:])
        assert sorted(live.queued(queue)) == sorted(five)
        assert qtask("retry", "--queue", queue, "--all", environment=look).stdout == ""


def test_dead_letters_that_match_are_removed(live: Live, queue: str) -> None:
    look = {**live.environment, "QTASK_QUEUE": queue}
    with five_dead(live, queue) as five:
        lines = qtask("remove", "--queue", queue, "--type", "pipe", "--json", environment=look).stdout.splitlines()
        assert [json.loads(line) for line in lines] == [{"id": five[4], "removed": True}]
        assert qtask("remove", "--queue", queue, "--link", "/500", environment=look).stdout == f"{five[1]} removed\n"
        assert {one.id for one in tasks.list_tasks(live.redis, queue, "dead")} == {five[0], five[2], five[3]}
        assert len(qtask("remove", "--queue", queue, "--all", environment=look).stdout.splitlines()) == 3
    assert tasks.count_tasks(live.redis, queue)["dead"] == 0
    assert not any(live.redis.exists(keys.job(task_id)) for task_id in five)


def test_ids_of_other_states_are_not_retried_or_removed(live: Live, queue: str) -> None:
    (dead,) = make_dead(live, queue, http(f"http://127.0.0.1:{free_port()}/"))
    with live.client(queue) as client:
        waiting = client.send(http("http://127.0.0.1:1/", time=3_600)).id
    look = {**live.environment, "QTASK_QUEUE": queue}
    for command in ("retry", "remove"):
        result = qtask(command, waiting, "unknown", environment=look)
        assert (result.returncode, result.stdout) == (1, "")
        assert [line for line in result.stderr.splitlines() if waiting in line or "unknown" in line] == [
            f"qtask: no dead task has the id {task_id!r}" for task_id in sorted((waiting, "unknown"))
        ]
    result = qtask("remove", dead, "unknown", environment=look)
    assert (result.returncode, result.stdout) == (1, f"{dead} removed\n"), "the other one is removed all the same"
    assert tasks.show(live.redis, waiting).state == "scheduled"


def test_retry_and_remove_need_ids_or_filters(live: Live, queue: str) -> None:
    (dead,) = make_dead(live, queue, http(f"http://127.0.0.1:{free_port()}/"))
    look = {**live.environment, "QTASK_QUEUE": queue}
    for wrong in (("retry",), ("remove", "--all", "--error", "connect")):
        assert "select tasks by IDs" in refused(qtask(*wrong, environment=look))
    assert tasks.show(live.redis, dead).state == "dead"


def test_thousands_are_retried_and_removed(live: Live, queue: str) -> None:
    """More than one call of the script handles."""
    # With its circuit breaker, the destination would get one task at a time, and the others would wait.
    nowhere = f"http://127.0.0.1:{free_port()}/"
    with live.client(queue) as client:
        answers = client.send_many([http(nowhere) for _ in range(1_201)])
    assert len(answers) == 1_201
    with working(live, queue, circuit_breaker=0):
        until(lambda: tasks.count_tasks(live.redis, queue)["dead"] == 1_201)
    look = {**live.environment, "QTASK_QUEUE": queue}
    assert len(qtask("retry", "--queue", queue, "--all", environment=look).stdout.splitlines()) == 1_201
    assert len(live.queued(queue)) == 1_201
    with working(live, queue, circuit_breaker=0):
        until(lambda: tasks.count_tasks(live.redis, queue)["dead"] == 1_201)
    ids = [record.id for record in tasks.list_tasks(live.redis, queue, "dead", 2_000)]
    assert sorted(tasks.remove_dead(live.redis, ids)) == sorted(ids)
    assert tasks.count_tasks(live.redis, queue)["dead"] == 0


# --- over HTTP ---------------------------------------------------------------------------------------------------


def test_dead_letter_is_retried_over_http(live: Live, queue: str, gateway: Gateway) -> None:
    (dead,) = make_dead(live, queue, http(f"http://127.0.0.1:{free_port()}/"))
    url = f"http://127.0.0.1:{gateway.http_port}/tasks/{dead}/retry"
    assert requests.post(url, timeout=30).status_code == 415, "a web page of another origin could send it"
    assert tasks.show(live.redis, dead).state == "dead"
    said = {"Content-Type": "application/json"}
    answer = requests.post(url, headers=said, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"ok": True, "id": dead, "was": "dead"})
    assert live.queued(queue) == [dead]
    again = requests.post(url, headers=said, timeout=30)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "wrong_state")
    assert again.json()["error"]["message"] == f"task {dead} is queued; only dead tasks can be retried"
    missing = requests.post(url.replace(dead, "unknown"), headers=said, timeout=30)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def test_over_http_each_state_has_its_own_verb_of_removal(live: Live, queue: str, gateway: Gateway) -> None:
    """DELETE cancels a waiting task, remove takes a dead letter, forget a delivered task; others report the state."""
    (dead,) = make_dead(live, queue, http(f"http://127.0.0.1:{free_port()}/"))
    with Receiver() as receiver, working(live, queue):
        (delivered,) = live.send(queue, http(receiver.url, id=f"{queue}-once"))
        live.ended([delivered])
    (waiting,) = live.send(queue, http("http://127.0.0.1:1/", time=3_600))

    def ask(verb: str, task_id: str) -> requests.Response:
        url = f"http://127.0.0.1:{gateway.http_port}/tasks/{task_id}"
        return requests.delete(url, timeout=30) if verb == "DELETE" else requests.post(url + verb, json={}, timeout=30)

    ends = {"DELETE": ("scheduled", waiting), "/remove": ("dead", dead), "/forget": ("delivered", delivered)}
    states = dict(ends.values())
    for verb, (own, _) in ends.items():
        for state, other in states.items():
            if state != own:
                answer = ask(verb, other)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"], error["state"]) == (409, "wrong_state", state)
                assert tasks.show(live.redis, other).state == state
    assert requests.post(f"http://127.0.0.1:{gateway.http_port}/tasks/{dead}/remove", timeout=30).status_code == 415
    for verb, (state, task_id) in ends.items():
        answer = ask(verb, task_id)
        assert (answer.status_code, answer.json()) == (200, {"ok": True, "id": task_id, "was": state})
        missing = ask(verb, task_id)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert tasks.count_tasks(live.redis, queue)["dead"] == 0
    with live.client(queue) as client:
        assert client.send(http(receiver.url, id=delivered)).duplicate, "it was delivered, so its id is remembered"


def test_over_http_a_started_task_is_not_cancelled(live: Live, queue: str, gateway: Gateway) -> None:
    with Receiver(lambda exchange: exchange.connection.recv(1)) as receiver, working(live, queue):
        with live.client(queue) as client:
            started = client.send(http(receiver.url)).id
        receiver.wait_for(1)
        answer = requests.delete(f"http://127.0.0.1:{gateway.http_port}/tasks/{started}", timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_state")
        assert tasks.show(live.redis, started).state == "started"


# --- retention ---------------------------------------------------------------------------------------------------


def test_dead_letters_never_expire(live: Live, queue: str) -> None:
    dead = make_dead(live, queue, *[http(f"http://127.0.0.1:{free_port()}/") for _ in range(3)])
    now = live.redis.time()[0]
    for task_id in dead:
        assert live.redis.ttl(keys.job(task_id)) == -1
        score: Any = live.redis.zscore(keys.failed(queue), task_id)
        assert score > now + TEN_YEARS, "RQ's clean-up removes entries whose score has passed"


def test_bound_on_dead_letters_drops_the_oldest_and_logs_them(live: Live, queue: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    ids = []
    with working(live, queue, dead_retention_count=3) as worker, live.client(queue) as client:
        for _ in range(5):
            ids.append(client.send(http(nowhere)).id)
            task_id = ids[-1]
            until(lambda task_id=task_id: tasks.show(live.redis, task_id).state == "dead")  # type: ignore[misc]
        events = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    dropped = [event for event in events if event["event"] == "dead_dropped"]
    assert [event["task"] for event in dropped] == ids[:2]
    assert {(event["level"], event["dead_retention_count"]) for event in dropped} == {("error", 3)}
    assert [record.id for record in tasks.list_tasks(live.redis, queue, "dead")] == ids[:1:-1]
    assert [bool(live.redis.exists(keys.job(task_id))) for task_id in ids] == [False, False, True, True, True]


def test_lowered_bound_on_dead_letters_is_applied(live: Live, queue: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/"
    make_dead(live, queue, *[http(nowhere) for _ in range(30)])
    with working(live, queue, dead_retention_count=2), live.client(queue) as client:
        last = client.send(http(nowhere)).id
        until(lambda: tasks.count_tasks(live.redis, queue)["dead"] == 2)
    assert last in [record.id for record in tasks.list_tasks(live.redis, queue, "dead")]
