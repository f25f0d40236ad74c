"""A replicated Redis with three real sentinels: QTask finds the master, and the next one after a failover.

The order of the tests matters: the second failover returns to the first master.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest

from qtask import AsyncClient, Client
from qtask.model.errors import ConfigError, Unavailable
from qtask.model.redis_address import without_password
from qtask.store import keys, tasks
from qtask.store.connect import connect, require
from tests.support.command import qtask
from tests.support.gateway_process import Connection, Gateway
from tests.support.live import ProcessGroup
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.sentinels import Sentinels, role_of
from tests.support.waiting import until

PASSWORD = "p@ss:w/rd#?&"
SENTINEL_PASSWORD = "an&other one"

_numbers = count()


class Held:
    """Behaviour of a receiver: `/held…` is answered when it is released."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.request.target.startswith("/held"):
            self.let_go.wait(40)
        exchange.answer(200, b"ok")


class System:
    """All of QTask on the replicated Redis, and a receiver.

    Attributes:
        careful: a gateway that waits for the replica, and answers at once when the replica does not confirm.
        patient: one that does not wait for a replica, and retries for 25 s.
    """

    def __init__(self, sentinels: Sentinels, group: ProcessGroup, gateways: tuple[Gateway, Gateway]) -> None:
        self.sentinels = sentinels
        self.group = group
        self.careful, self.patient = gateways
        self.held = Held()
        self.receiver = Receiver(self.held)
        self.scheduler = group.start("scheduler")
        self.worker = group.start("worker")

    @property
    def processes(self) -> list[Process]:
        return [self.careful.process, self.patient.process, self.scheduler, self.worker]

    def task(self, kind: str = "plain", delay: float = 0.0) -> dict[str, Any]:
        link = f"{self.receiver.url}{kind}/{next(_numbers)}"
        return {"title": link, "address": {"type": "http", "link": link}, "settings": {"time": delay}}

    def ask(self, gateway: Gateway, what: Any) -> Any:
        """Submits, and waits for the answer as long as the gateway may hold the task."""
        with Connection(gateway.port) as connection:
            connection.socket.settimeout(40)
            return connection.ask(what)

    def accept(self, gateway: Gateway, *dicts: dict[str, Any]) -> list[str]:
        answers = self.ask(gateway, list(dicts))
        assert all(answer["ok"] for answer in answers), answers
        return [answer["id"] for answer in answers]

    def received(self) -> Counter[str]:
        """The number of requests for each id."""
        return Counter(request.header("QTask-Id") for request in list(self.receiver.requests))

    def check_delivered_once(self, ids: list[str]) -> None:
        records = self.group.ended(ids, 30)
        assert {record.state for record in records} == {"delivered"}
        received = self.received()
        assert {task_id: received[task_id] for task_id in ids} == dict.fromkeys(ids, 1)

    def check_all_ways(self) -> None:
        """Checks that a task through the gateway, the inbox and the client is delivered."""
        ids = self.accept(self.patient, self.task())
        with self.group.client() as client:
            ids.append(client.send(self.task()).id)
        self.group.redis.xadd(keys.INBOX, {"task": json.dumps(self.task()), "reply": "reply"})
        reply: Any = self.group.redis.blpop(["reply"], 30)
        ids.append(json.loads(reply[1])["id"])
        self.check_delivered_once(ids)
        assert all(process.running for process in self.processes)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("sentinel")
    with (
        Sentinels(folder, PASSWORD, SENTINEL_PASSWORD) as sentinels,
        ProcessGroup(sentinels.url, connect(sentinels.url, 20.0), folder) as group,
        Gateway(sentinels.url, folder, WAIT_REPLICAS=1, ACCEPT_RETRY_SECONDS=0) as careful,
        Gateway(sentinels.url, folder, ACCEPT_RETRY_SECONDS=25) as patient,
    ):
        system = System(sentinels, group, (careful, patient))
        with system.receiver:
            yield system


# --- finding the master ------------------------------------------------------------------------------------------


def test_every_process_and_client_finds_the_master(system: System) -> None:
    system.check_all_ways()


def test_async_client_finds_the_master(system: System) -> None:
    async def submit() -> str:
        async with AsyncClient(system.sentinels.url) as client:
            return (await client.send(system.task())).id

    system.check_delivered_once([asyncio.run(submit())])


def test_commands_find_the_master(system: System) -> None:
    (waiting,) = system.accept(system.patient, system.task(delay=3_600))
    listed = qtask("list", "--json", environment=system.group.environment)
    assert json.loads(listed.stdout)["id"] == waiting
    examined = qtask("doctor", "--json", environment=system.group.environment)
    found = {finding["what"]: finding["level"] for finding in map(json.loads, examined.stdout.splitlines())}
    assert (found["1 worker is alive"], found["a scheduler is alive"]) == ("fine", "fine")
    cancelled = qtask("cancel", waiting, environment=system.group.environment)
    assert cancelled.returncode == 0


@pytest.mark.parametrize("user", ["", "default"])
def test_passwords_in_the_address_are_percent_encoded(system: System, user: str) -> None:
    with Client(system.sentinels.url_as(f"{user}:{quote(PASSWORD, safe='')}", SENTINEL_PASSWORD)) as client:
        assert client.list("dead") == []


@pytest.mark.parametrize(
    ("password", "sentinel_password"), [("wrong", SENTINEL_PASSWORD), (quote(PASSWORD, safe=""), "wrong")]
)
def test_error_about_a_wrong_password_shows_none(system: System, password: str, sentinel_password: str) -> None:
    url = system.sentinels.url_as(f":{password}", sentinel_password)
    with pytest.raises(Unavailable) as unavailable:
        require(connect(url, 5.0), url)
    words = str(unavailable.value)
    assert "password" in words or "Authentication" in words or "AUTH" in words
    assert not any(secret in words for secret in (password, PASSWORD, quote(sentinel_password)))
    assert without_password(url) in words


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://127.0.0.1:26379", "does not name the service"),
        ("redis+sentinel:///mymaster/0", "names no sentinels"),
        ("redis+sentinel://127.0.0.1:26379/mymaster/0?password=x", "sentinel_password is known"),
        ("redis+sentinel://127.0.0.1:port/mymaster/0", "a port from 1 to 65535"),
        ("redis+sentinel://127.0.0.1/mymaster/first", "the database must be a number"),
    ],
)
def test_invalid_address_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        connect(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "redis+sentinel://user:secret@a:1,b:2/mymaster/0?sentinel_password=secret",
            "redis+sentinel://a:1,b:2/mymaster/0",
        ),
        ("redis+sentinel://a:1/mymaster?sentinel_password=se@secret", "redis+sentinel://…"),
        ("redis://:se?ret@secret@a:1/0", "redis://…"),
        ("redis://:se@secret@a:1/0?db=2", "redis://a:1/0"),
        ("unix:///tmp/redis.sock", "unix:///tmp/redis.sock"),
        ("redis", "…"),
    ],
)
def test_address_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_sentinels_that_do_not_answer_are_skipped(system: System) -> None:
    """One port without a listener, and one whose listener is silent."""
    with Receiver(lambda exchange: None) as silent:
        hosts = f"127.0.0.1:1,127.0.0.1:{silent.port},127.0.0.1:{system.sentinels.ports[2]}"
        _, _, rest = system.sentinels.url.partition("/mymaster")
        url = f"redis+sentinel://:{quote(PASSWORD, safe='')}@{hosts}/mymaster{rest}"
        with Client(url) as client:
            assert client.list("dead") == []


# --- the replica -------------------------------------------------------------------------------------------------


def test_gateway_that_waits_for_the_replica_accepts_only_replicated_tasks(system: System) -> None:
    replica = system.sentinels.replica.client()
    for size in (1, 300, 1):
        ids = system.accept(system.careful, *[system.task(delay=3_600) for _ in range(size)])
        assert [bool(replica.exists(keys.job(task_id))) for task_id in ids] == [True] * size
        assert all(replica.zscore(keys.SCHEDULE, task_id) is not None for task_id in ids)
    chosen = system.task(delay=3_600)
    chosen["settings"]["id"] = "chosen"
    assert "duplicate" not in system.ask(system.careful, chosen)
    assert system.ask(system.careful, chosen)["duplicate"] is True
    assert replica.exists(keys.job("chosen"))
    for record in tasks.list_tasks(system.group.redis, "qtask", "scheduled", 1_000):
        tasks.cancel(system.group.redis, record.id)


# --- failover ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_failover_from_a_hanging_master_and_its_return_as_a_replica(system: System) -> None:
    old = system.sentinels.master
    waiting = system.accept(system.careful, *[system.task(delay=1.0 + 0.1 * number) for number in range(20)])
    system.held.let_go.clear()
    in_flight = system.accept(system.careful, *[system.task("held") for _ in range(3)])
    until(lambda: set(in_flight) <= set(system.received()), what="the deliveries to be in flight")
    until(lambda: _has_leases(system, in_flight), what="the leases to be on the replica")
    old.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            held = pool.submit(system.accept, system.patient, system.task())
            system.held.let_go.set()  # deliveries in flight end, and can be settled only on the next master
            new = system.sentinels.wait_for_another_master(old)
            system.group.redis.connection_pool.disconnect()  # connections of this test, which nothing else reconnects
            refused = system.ask(system.careful, system.task(delay=3_600))
            assert (refused["ok"], refused["error"]["code"]) == (False, "unavailable"), "the replica is stopped"
            accepted = held.result(40)
        system.check_delivered_once([*waiting, *in_flight, *accepted])
        system.check_all_ways()
        left = system.accept(system.patient, *[system.task(delay=3_600) for _ in range(50)])
    finally:
        old.signal(signal.SIGCONT)
    until(lambda: role_of(old) == "slave", 30, "the old master to be a replica", every=0.05)
    assert system.sentinels.master is new
    system.check_all_ways()
    for task_id in left:
        assert tasks.cancel(system.group.redis, task_id) == "scheduled"
    until(lambda: _accepts(system), 30, "the replica to take part again")


def _has_leases(system: System, ids: list[str]) -> bool:
    leases: Any = system.sentinels.replica.client().zrange(keys.started("qtask"), 0, -1)
    return set(ids) <= {lease.decode().partition(":")[0] for lease in leases}


def _accepts(system: System) -> bool:
    return bool(system.ask(system.careful, system.task())["ok"])


def test_waiting_tasks_are_delivered_after_the_master_was_killed(system: System) -> None:
    old = system.sentinels.master
    waiting = system.accept(system.careful, *[system.task(delay=0.5 + 0.2 * number) for number in range(20)])
    later = system.accept(system.careful, *[system.task(delay=3_600) for _ in range(200)])
    time.sleep(0.6)  # some are due before the kill, most while there is no master
    old.kill()
    held = system.accept(system.patient, *[system.task() for _ in range(3)])  # answered when there is another master
    assert system.sentinels.wait_for_another_master(old) is not old
    records = system.group.ended([*waiting, *held], 30)
    assert {record.state for record in records} == {"delivered"}
    received = system.received()
    assert all(received[task_id] == 1 for task_id in held)
    # The replica may have missed what was delivered and settled at the last moment.
    assert all(1 <= received[task_id] <= 2 for task_id in waiting)
    assert sum(received[task_id] for task_id in waiting) <= len(waiting) + 3
    counts = tasks.count_tasks(system.group.redis, "qtask")
    assert (counts["scheduled"], counts["queued"], counts["started"]) == (len(later), 0, 0)
    system.check_all_ways()
