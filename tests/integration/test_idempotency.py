"""`settings.id`: one task for each id, for any number, entrance and time of submissions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
import requests

from qtask import Client, NotFound, Refused, WrongState
from qtask.store import keys, tasks
from tests.support.command import qtask
from tests.support.gateway_process import HOUR, Connection, Gateway, scheduled, stored, task
from tests.support.live import Live
from tests.support.receiver import Exchange, Gate, Receiver, ok
from tests.support.waiting import until

_numbers = count(1)


@dataclass(frozen=True)
class System:
    """One Redis, a scheduler, and two gateways; tests start workers as needed."""

    live: Live
    gateways: tuple[Gateway, Gateway]

    def by_socket(self, one: dict[str, Any], gateway: int = 0) -> Any:
        with Connection(self.gateways[gateway].port) as connection:
            return connection.ask(one)

    def by_http(self, one: Any, gateway: int = 1) -> Any:
        url = f"http://127.0.0.1:{self.gateways[gateway].http_port}/tasks"
        return requests.post(url, json=one, timeout=30).json()

    def by_inbox(self, one: dict[str, Any]) -> Any:
        reply = f"answer-{next(_numbers)}"
        self.live.redis.xadd(keys.INBOX, {"task": json.dumps(one), "reply": reply})
        found: Any = self.live.redis.blpop([reply], 30)
        return json.loads(found[1])

    def by_client(self, one: dict[str, Any], url: str = "") -> Any:
        with Client(url or self.live.server.url) as client:
            try:
                answer = client.send(one)
            except Refused as refused:
                return {"ok": False, "error": refused.as_dict()}
        again = {"duplicate": True} if answer.duplicate else {}
        return {"ok": True, "id": answer.id, "due": answer.due, **again}

    def by_client_over_the_socket(self, one: dict[str, Any]) -> Any:
        return self.by_client(one, self.gateways[1].url)

    def by_command(self, one: dict[str, Any]) -> Any:
        environment = {"QTASK_PORT": str(self.gateways[0].port)}
        line = qtask("send", "-", "--json", environment=environment, input=json.dumps(one)).stdout
        return json.loads(line)

    def ways(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        return {
            "socket": self.by_socket,
            "http": self.by_http,
            "inbox": self.by_inbox,
            "client": self.by_client,
            "client over the socket": self.by_client_over_the_socket,
            "command": self.by_command,
        }


WAYS = ["socket", "http", "inbox", "client", "client over the socket", "command"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("idempotency")
    with Live(folder) as live:
        live.start("scheduler")
        with Gateway(live.server.url, folder) as one, Gateway(live.server.url, folder) as other:
            yield System(live, (one, other))


@pytest.fixture
def chosen() -> str:
    """An id that no other test uses."""
    return f"order_{next(_numbers)}-X"


def with_id(chosen: str, one: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    one = one or task()
    return {**one, "settings": {**one["settings"], **settings, "id": chosen}}


def to(url: str, chosen: str, **settings: Any) -> dict[str, Any]:
    given = {"time": 0, **settings, "id": chosen}
    return {"title": "t", "address": {"type": "http", "link": url}, "settings": given}


# --- a second submission -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", WAYS)
def test_second_submission_is_answered_with_the_first_and_changes_nothing(
    system: System, chosen: str, first: str
) -> None:
    answer = system.ways()[first](with_id(chosen, task("first", HOUR)))
    assert answer == {"ok": True, "id": chosen, "due": answer["due"]}
    assert answer["due"] == pytest.approx(time.time() + HOUR, abs=60)
    for way, submit in system.ways().items():
        again = submit(with_id(chosen, task(f"again, by {way}", 2 * HOUR)))
        assert again == {**answer, "duplicate": True}, way
    assert stored(system.live.redis, chosen)["title"] == "first"
    assert scheduled(system.live.redis).count(chosen) == 1


def test_tasks_without_an_id_are_separate(system: System) -> None:
    answers = [submit(task()) for submit in system.ways().values()]
    assert all(answer["ok"] and "duplicate" not in answer for answer in answers)
    assert len({answer["id"] for answer in answers}) == len(WAYS)


def test_id_may_appear_twice_in_an_array(system: System, chosen: str) -> None:
    array = [with_id(chosen, task("a")), with_id(f"{chosen}-b"), with_id(chosen, task("c"))]
    with Connection(system.gateways[0].port) as connection:
        first, other, twice = connection.ask(array)
    assert twice == {**first, "duplicate": True}
    assert [first["id"], other["id"]] == [chosen, f"{chosen}-b"]
    assert stored(system.live.redis, chosen)["title"] == "a"
    by_http = system.by_http(array)
    assert by_http == [twice, {**other, "duplicate": True}, twice]


def test_of_fifty_concurrent_submissions_exactly_one_is_first(system: System, chosen: str) -> None:
    start = threading.Barrier(50)

    def by_open_connection(number: int) -> Any:
        with Connection(system.gateways[number % 2].port) as connection:
            start.wait(30)
            return connection.ask(with_id(chosen, task(f"socket {number}")))

    def by_other(number: int) -> Any:
        start.wait(30)
        ways = (
            lambda one: system.by_http(one, gateway=0),
            lambda one: system.by_http(one, gateway=1),
            system.by_inbox,
            system.by_client,
        )
        return ways[number % 4](with_id(chosen, task(f"other {number}")))

    with ThreadPoolExecutor(50) as threads:
        some = threads.map(by_open_connection, range(26))
        others = threads.map(by_other, range(24))
        answers = [*some, *others]
    assert sum("duplicate" not in answer for answer in answers) == 1
    assert {(answer["ok"], answer["id"], answer["due"]) for answer in answers} == {(True, chosen, answers[0]["due"])}
    assert scheduled(system.live.redis).count(chosen) == 1


@pytest.mark.parametrize("way", WAYS)
def test_invalid_id_is_refused(system: System, way: str) -> None:
    for bad, code in {
        "": "invalid_value",
        "a b": "invalid_value",
        "x" * 201: "invalid_value",
        "a\x00": "invalid_value",
        "caf\u00e9": "invalid_value",
        7: "wrong_type",
    }.items():
        answer = system.ways()[way](with_id(bad))  # type: ignore[arg-type]
        assert (answer["ok"], answer["error"]["code"], answer["error"]["field"]) == (False, code, "settings.id"), bad


# --- at any time -------------------------------------------------------------------------------------------------


@contextmanager
def working(live: Live, **settings: Any) -> Iterator[None]:
    """Runs a worker within the context."""
    worker = live.start("worker", **settings)
    try:
        yield
    finally:
        worker.kill()


def check_known(system: System, chosen: str, due: float) -> None:
    """Checks that a submission by every entrance is answered as a duplicate."""
    for way, submit in system.ways().items():
        answer = submit(with_id(chosen))
        assert answer == {"ok": True, "id": chosen, "due": due, "duplicate": True}, way


def test_id_is_known_in_every_state_of_its_task(system: System, chosen: str) -> None:
    """In the schedule, in the queue, while claimed, while waiting for a retry, and after the delivery."""
    live = system.live
    gate = Gate()

    def behave(exchange: Exchange) -> None:
        if exchange.request.header("QTask-Attempt") == "1":
            exchange.answer(503)
        else:
            gate(exchange)

    with Receiver(behave) as receiver:
        due = system.by_socket(to(receiver.url, chosen, retry={"backoff": [2]}))["due"]
        assert live.wait_queued("qtask", 1) == [chosen]
        check_known(system, chosen, due)
        with working(live, retention_count=0):
            until(lambda: tasks.show(live.redis, chosen).retry_at is not None)
            assert system.by_socket(with_id(chosen))["due"] == due, "also while it waits for a retry"
            receiver.wait_for(2)
            assert tasks.show(live.redis, chosen).state == "started"
            check_known(system, chosen, due)
            gate.open()
            until(lambda: not live.redis.exists(keys.job(chosen)), what="the history to have dropped it")
            check_known(system, chosen, due)
            assert len(receiver.requests) == 2


def test_id_of_a_dead_letter_is_known_until_it_is_removed(system: System, chosen: str) -> None:
    live = system.live
    with Receiver(lambda exchange: exchange.answer(404)) as receiver, working(live):
        due = system.by_socket(to(receiver.url, chosen))["due"]
        live.ended([chosen])
        check_known(system, chosen, due)
        assert tasks.remove_dead(live.redis, [chosen]) == [chosen]
    assert "duplicate" not in system.by_http(with_id(chosen))


def test_id_is_free_after_cancel_and_not_after_delivery(system: System, chosen: str) -> None:
    """A delivered task is neither cancelled nor delivered again, even after it was forgotten."""
    live = system.live
    assert "duplicate" not in system.by_socket(with_id(chosen))
    tasks.cancel(live.redis, chosen)
    with Receiver(ok) as receiver, working(live):
        due = system.by_socket(to(receiver.url, chosen))["due"]
        live.ended([chosen])
        with pytest.raises(WrongState) as error:
            tasks.cancel(live.redis, chosen)
        assert error.value.state == "delivered"
        assert tasks.show(live.redis, chosen).outcomes[0].code == 200, "the proof of delivery stays"
        check_known(system, chosen, due)
        assert tasks.forget(live.redis, chosen) == "delivered"
        with pytest.raises(NotFound):
            tasks.show(live.redis, chosen)
        check_known(system, chosen, due)
        assert live.redis.ttl(keys.ID_PREFIX + chosen) > 0
        assert len(receiver.requests) == 1


def test_id_is_remembered_for_idempotency_seconds_after_delivery(system: System, chosen: str) -> None:
    live = system.live
    with Receiver(ok) as receiver, working(live, idempotency_seconds=2, retention_count=0):
        due = system.by_socket(to(receiver.url, chosen))["due"]
        until(lambda: live.redis.exists(keys.ID_PREFIX + chosen))
        assert 0 < live.redis.ttl(keys.ID_PREFIX + chosen) <= 2
        assert system.by_socket(with_id(chosen)) == {"ok": True, "id": chosen, "due": due, "duplicate": True}
        until(lambda: not live.redis.exists(keys.ID_PREFIX + chosen))
        assert "duplicate" not in system.by_socket(to(receiver.url, chosen))
        receiver.wait_for(2)


def test_stock_worker_remembers_an_id(system: System, chosen: str) -> None:
    live = system.live
    with Receiver(ok) as receiver:
        due = system.by_socket(to(receiver.url, chosen))["due"]
        live.wait_queued("qtask", 1)
        live.command("rq", "worker", "-u", live.server.url, "-S", "rq.serializers.JSONSerializer", "qtask", "--burst")
        assert tasks.show(live.redis, chosen).state == "delivered"
        live.redis.delete(keys.job(chosen))  # as RQ does when the job expires
        check_known(system, chosen, due)
        assert len(receiver.requests) == 1
