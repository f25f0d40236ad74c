"""Ids that clients choose, of any printable ASCII: through every entrance, at the receiver, and in RQ's own tools."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from rq import Queue
from rq.job import validate_job_id
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from qtask.model.ids import NODE_LIMIT, IdSource, client_id, stored_id
from qtask.scheduler.process import Scheduler
from qtask.store import keys, tasks
from qtask.store.audit import audit
from qtask.store.rq_job import TaskJob
from tests.support.command import qtask
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import Live
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until

PLAIN = ["order-7", "__x", "_-_", "0_1", "A" * 200]
OTHERS = [
    *(
        "order:7",
        "a/b?c#d%41",
        "..",
        "0__x",
        "0__order_3A7",
        '"quoted"',
        "back\\slash",
        "x/retry",
        "{}",
        "*",
        "~" * 200,
    ),
    *("%2F", "a%", "<b>&amp;", "'", "$(id)", "[bold]", ":", "job:1:2", "+", ";a=b", "".join(map(chr, range(33, 127)))),
]
LATER = 4_000_000_000.0
_numbers = count()


@pytest.fixture(scope="module")
def gateway(live: Live) -> Iterator[Gateway]:
    with Gateway(live.server.url, live.folder) as one:
        yield one


def one(task_id: str, url: str = "http://127.0.0.1:1/", **settings: Any) -> dict[str, Any]:
    given = {"at": LATER, "id": task_id, **settings}
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": given}


def now(task_id: str, url: str, **settings: Any) -> dict[str, Any]:
    return one(task_id, url, at=1, **settings)


# --- the stored form ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", PLAIN)
def test_plain_id_is_stored_unchanged(task_id: str) -> None:
    assert stored_id(task_id) == task_id == client_id(task_id)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200))
def test_stored_form_is_valid_for_rq_and_can_be_decoded(task_id: str) -> None:
    validate_job_id(stored_id(task_id))
    assert client_id(stored_id(task_id)) == task_id


@pytest.mark.parametrize("task_id", OTHERS)
def test_stored_forms_are_unique(task_id: str) -> None:
    assert re.fullmatch(r"0__[A-Za-z0-9_-]+", stored_id(task_id))
    assert stored_id(stored_id(task_id)) != stored_id(task_id)
    assert client_id(stored_id(task_id)) == task_id


def test_id_that_no_client_could_submit_has_a_stored_form() -> None:
    """For ids that people type into a command or a path."""
    for text in ("caf\u00e9", "a b", "", "\ud800"):
        validate_job_id(stored_id(text) or "x")
    assert client_id(stored_id("caf\u00e9")) == "caf\u00e9"


def test_generated_ids_are_never_in_the_escaped_form() -> None:
    for year in range(2020, 2110):
        source = IdSource(NODE_LIMIT - 1, lambda year=year: int((year - 1970) * 31_556_952 * 1e9))  # type: ignore[misc]
        assert not source.next().startswith("0__")


# --- through every entrance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_id", OTHERS)
def test_every_entrance_answers_with_the_id_of_the_client(live: Live, gateway: Gateway, task_id: str) -> None:
    with Connection(gateway.port) as connection:
        first = connection.ask(one(task_id))
    assert first == {"ok": True, "id": task_id, "due": LATER}
    again = {**first, "duplicate": True}
    url = f"http://127.0.0.1:{gateway.http_port}/tasks"
    assert requests.post(url, json=one(task_id), timeout=30).json() == again
    assert requests.post(url, json=[one(task_id)], timeout=30).json() == [again]
    reply = f"answer-{next(_numbers)}"
    live.redis.xadd(keys.INBOX, {"task": json.dumps(one(task_id)), "reply": reply})
    answer: Any = live.redis.blpop([reply], 30)
    assert json.loads(answer[1]) == again
    with live.client() as client:
        accepted = client.send(one(task_id))
        assert (accepted.id, accepted.duplicate) == (task_id, True)
        assert client.show(task_id).id == task_id
        assert task_id in [record.id for record in client.list("scheduled", limit=1_000)]
        assert client.cancel(task_id) == "scheduled"
    reply = f"answer-{next(_numbers)}"
    live.redis.xadd(keys.INBOX, {"task": json.dumps(one(task_id)), "reply": reply})
    answer = live.redis.blpop([reply], 30)
    assert json.loads(answer[1]) == first
    tasks.cancel(live.redis, task_id)


@pytest.mark.parametrize("task_id", [one for one in OTHERS if one != ".."])  # HTTP clients take `..` for a folder
def test_id_in_a_path_is_percent_encoded(live: Live, gateway: Gateway, task_id: str) -> None:
    url = f"http://127.0.0.1:{gateway.http_port}/tasks/{quote(task_id, safe='')}"
    with live.client() as client:
        client.send(one(task_id))
    shown = requests.get(url, timeout=30)
    assert (shown.status_code, shown.json()["id"], shown.json()["state"]) == (200, task_id, "scheduled")
    for verb in ("retry", "remove", "forget"):
        answer = requests.post(f"{url}/{verb}", json={}, timeout=30)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["state"]) == (409, "wrong_state", "scheduled"), verb
        assert task_id in error["message"]
    assert requests.delete(url, timeout=30).json() == {"ok": True, "id": task_id, "was": "scheduled"}
    assert requests.get(url, timeout=30).status_code == 404


def test_commands_accept_and_show_the_id(live: Live) -> None:
    ids = ["order:7", "a/b?c#d%41", "..", '"q"', "[bold]"]
    where = ("--redis", live.server.url, "--queue", "commands")
    with live.client("commands") as client:
        client.send_many([one(task_id) for task_id in ids])
    listed = qtask("list", *where).stdout
    assert all(task_id in listed for task_id in ids)
    assert {json.loads(line)["id"] for line in qtask("list", *where, "--json").stdout.splitlines()} == set(ids)
    for task_id in ids:
        assert f"id          {task_id}" in re.sub(r"(?m) +$", "", qtask("show", *where, task_id).stdout)
    done = qtask("cancel", *where, *ids)
    assert done.stdout == "".join(f"{task_id} cancelled; it was scheduled\n" for task_id in ids)


# --- to the receiver ---------------------------------------------------------------------------------------------


def test_receiver_gets_the_id_of_the_client_at_every_attempt(live: Live, queue: str) -> None:
    def once_broken(exchange: Exchange) -> None:
        exchange.answer(500 if exchange.request.header("QTask-Attempt") == "1" else 200)

    retry = {"attempts": 2, "backoff": [0]}
    with Receiver(once_broken) as receiver:
        live.start("worker", queue=queue)
        live.send(queue, *(now(f"own{task_id}"[:200], receiver.url, retry=retry) for task_id in OTHERS))
        ids = [f"own{task_id}"[:200] for task_id in OTHERS]
        records = live.ended(ids)
        assert {(record.id, record.state, record.attempts) for record in records} == {
            (task_id, "delivered", 2) for task_id in ids
        }
        assert sorted(receiver.ids) == sorted(ids * 2)
    with live.client(queue) as client:
        for task_id in ids:
            assert client.send(now(task_id, receiver.url)).duplicate
            assert client.forget(task_id) == "delivered"
            assert client.send(now(task_id, receiver.url)).duplicate, "the id of a forgotten task is still remembered"


def test_dead_letter_is_found_retried_and_removed_by_its_id(live: Live, queue: str) -> None:
    with Receiver(lambda exchange: exchange.answer(404)) as receiver:
        live.start("worker", queue=queue)
        ids = [f"dead{task_id}"[:200] for task_id in OTHERS]
        live.send(queue, *(now(task_id, receiver.url) for task_id in ids))
        live.ended(ids)
        with live.client(queue) as client:
            assert sorted(client.find_dead()) == sorted(ids)
            assert sorted(client.retry(ids)) == sorted(ids)
            until(lambda: len(receiver.ids) == 2 * len(ids) and len(client.find_dead()) == len(ids))
            assert sorted(client.remove(ids)) == sorted(ids)
            assert not client.send(one(ids[0])).duplicate, "the id of a removed dead letter is free"
            client.cancel(ids[0])


@pytest.mark.slow
def test_graph_is_fetched_by_its_id(live: Live, gateway: Gateway, queue: str) -> None:
    live.start("worker", queue=queue)
    task_id = "graph/of:today"
    live.send(queue, {"title": "g", "address": {"type": "__graph__"}, "settings": {"timeout": 90, "id": task_id}})
    (record,) = live.ended([task_id], 100)  # drawing takes long on a busy machine
    path = json.loads(record.outcomes[0].answer)["graph"]
    assert path == "/graphs/graph%2Fof%3Atoday"
    picture = requests.get(f"http://127.0.0.1:{gateway.http_port}{path}", timeout=30)
    assert picture.content.startswith(b"\x89PNG")


# --- RQ's own tools ----------------------------------------------------------------------------------------------

JSON = ("-S", "rq.serializers.JSONSerializer")


def test_stock_worker_delivers_a_task_with_a_chosen_id(live: Live, queue: str) -> None:
    ids = [f"stock{task_id}"[:200] for task_id in OTHERS[:6]]
    with Receiver() as receiver:
        live.send(queue, *(now(task_id, receiver.url) for task_id in ids))
        live.wait_queued(queue, len(ids))
        live.command("rq", "worker", "-u", live.server.url, *JSON, "-w", "rq.SimpleWorker", "--burst", queue)
        assert sorted(receiver.ids) == sorted(ids)
    assert {tasks.show(live.redis, task_id).state for task_id in ids} == {"delivered"}
    assert audit(live.redis).balances


def test_rq_registries_info_and_requeue_handle_a_chosen_id(live: Live, queue: str) -> None:
    gate = Gate()
    with Receiver(gate) as receiver:
        live.start("worker", queue=queue, concurrency=1)
        live.send(queue, now("info:1", receiver.url), now("info:2", receiver.url))
        receiver.wait_for(1)
        named = Queue(queue, connection=live.redis, serializer=JSONSerializer, job_class=TaskJob)
        (job_id,) = StartedJobRegistry(queue=named).get_job_ids()
        assert client_id(job_id) == receiver.ids[0]
        assert TaskJob.fetch(job_id, connection=live.redis).args[0]["settings"]["id"] == receiver.ids[0]
        shown = live.command("rq", "info", "-u", live.server.url)
        assert re.search(rf"(?m)^{queue} .*1, 1 executing", shown), shown
        gate.open()
        live.ended(["info:1", "info:2"])
        live.send(queue, now("dead:1", f"http://127.0.0.1:{free_port()}/", retry={"attempts": 1}))
        assert live.ended(["dead:1"])[0].state == "dead"
        live.command("rq", "requeue", "-u", live.server.url, *JSON, "--queue", queue, stored_id("dead:1"))
        until(lambda: len(tasks.show(live.redis, "dead:1").outcomes) == 2)


def test_rqscheduler_and_rq_dashboard_handle_a_chosen_id(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Live(tmp_path_factory.mktemp("ids")) as live, Receiver() as receiver:
        live.send("qtask", now("order:7", receiver.url), now("a/b?c#d%41", receiver.url))
        where = ("-H", "127.0.0.1", "-p", str(live.server.port))
        live.program("rqscheduler", "-j", "qtask.store.rq_job.TaskJob", *where, "-i", "1")
        live.wait_queued("qtask", 2)
        port = free_port()
        shown = ("-j", "--show-full-args", "-u", live.server.url, "-b", "127.0.0.1", "-p", str(port))
        live.program("rq-dashboard", *shown)

        def job() -> Any:
            url = f"http://127.0.0.1:{port}/0/data/job/{stored_id('order:7')}.json"
            try:
                with urllib.request.urlopen(url, timeout=30) as response:
                    return json.loads(response.read())
            except OSError:
                return None

        found = until(job, 60, "rq-dashboard to show it")
        assert (found["id"], found["origin"]) == ("0__order_3A7", "qtask")
        live.start("worker")
        live.ended(["order:7", "a/b?c#d%41"])
        assert sorted(receiver.ids) == ["a/b?c#d%41", "order:7"]


def test_jobs_of_the_scheduler_class_have_the_stored_id(redis: Redis) -> None:
    (job,) = Scheduler("qtask", redis).enqueue_many([(LATER, one("order:7"))])
    assert job.id == "0__order_3A7"
    assert TaskJob.fetch(job.id, connection=redis).args[0]["settings"]["id"] == "order:7"
