"""A replicated Redis under three real sentinels: QTask finds the master, and finds the next one by itself.

The tests stand in an order: the second failover goes back to the server that was master first.
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
from tests.support.live import Around
from tests.support.processes import Process
from tests.support.receiver import Exchange, Receiver
from tests.support.sentinels import Sentinels, role_of
from tests.support.waiting import until

PASSWORD = "p@ss:w/rd#?&"
SENTINEL_PASSWORD = "an&other one"

_numbers = count()


class Held:
    """A receiver's behaviour: `/held…` is answered when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.request.target.startswith("/held"):
            self.let_go.wait(40)
        exchange.answer(200, b"ok")


class System:
    """All of QTask on the replicated Redis, and a receiver.

    Attributes:
        careful: a gateway that waits for the replica, and answers at once when it does not come.
        patient: one that waits for no replica, and tries again for 25 s.
    """

    def __init__(self, sentinels: Sentinels, around: Around, gateways: tuple[Gateway, Gateway]) -> None:
        self.sentinels = sentinels
        self.around = around
        self.careful, self.patient = gateways
        self.held = Held()
        self.receiver = Receiver(self.held)
        self.scheduler = around.start("scheduler")
        self.worker = around.start("worker")

    @property
    def processes(self) -> list[Process]:
        return [self.careful.process, self.patient.process, self.scheduler, self.worker]

    def task(self, kind: str = "plain", delay: float = 0.0) -> dict[str, Any]:
        link = f"{self.receiver.url}{kind}/{next(_numbers)}"
        return {"title": link, "address": {"type": "http", "link": link}, "settings": {"time": delay}}

    def ask(self, gateway: Gateway, what: Any) -> Any:
        """Submits, and waits for the answer as long as the gateway holds."""
        with Connection(gateway.port) as connection:
            connection.socket.settimeout(40)
            return connection.ask(what)

    def accept(self, gateway: Gateway, *dicts: dict[str, Any]) -> list[str]:
        answers = self.ask(gateway, list(dicts))
        assert all(answer["ok"] for answer in answers), answers
        return [answer["id"] for answer in answers]

    def received(self) -> Counter[str]:
        """How often each id came."""
        return Counter(request.header("QTask-Id") for request in list(self.receiver.requests))

    def check_delivered_once(self, ids: list[str]) -> None:
        records = self.around.ended(ids, 30)
        assert {record.state for record in records} == {"delivered"}
        received = self.received()
        assert {task_id: received[task_id] for task_id in ids} == dict.fromkeys(ids, 1)

    def check_all_ways(self) -> None:
        """A task comes through the gateway, the inbox and the client, and is delivered."""
        ids = self.accept(self.patient, self.task())
        with self.around.client() as client:
            ids.append(client.send(self.task()).id)
        self.around.redis.xadd(keys.INBOX, {"task": json.dumps(self.task()), "reply": "reply"})
        reply: Any = self.around.redis.blpop(["reply"], 30)
        ids.append(json.loads(reply[1])["id"])
        self.check_delivered_once(ids)
        assert all(process.running for process in self.processes)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("sentinel")
    with (
        Sentinels(folder, PASSWORD, SENTINEL_PASSWORD) as sentinels,
        Around(sentinels.url, connect(sentinels.url, 20.0), folder) as around,
        Gateway(sentinels.url, folder, WAIT_REPLICAS=1, ACCEPT_RETRY_SECONDS=0) as careful,
        Gateway(sentinels.url, folder, ACCEPT_RETRY_SECONDS=25) as patient,
    ):
        system = System(sentinels, around, (careful, patient))
        with system.receiver:
            yield system


# --- finding the master ------------------------------------------------------------------------------------------


def test_every_process_and_client_finds_the_master(system: System) -> None:
    system.check_all_ways()


def test_the_client_for_asyncio_finds_it(system: System) -> None:
    async def submit() -> str:
        async with AsyncClient(system.sentinels.url) as client:
            return (await client.send(system.task())).id

    system.check_delivered_once([asyncio.run(submit())])


def test_the_commands_find_it(system: System) -> None:
    (waiting,) = system.accept(system.patient, system.task(delay=3_600))
    listed = qtask("list", "--json", environment=system.around.environment)
    assert json.loads(listed.stdout)["id"] == waiting
    examined = qtask("doctor", "--json", environment=system.around.environment)
    found = {finding["what"]: finding["level"] for finding in map(json.loads, examined.stdout.splitlines())}
    assert (found["1 worker is alive"], found["a scheduler is alive"]) == ("fine", "fine")
    cancelled = qtask("cancel", waiting, environment=system.around.environment)
    assert cancelled.returncode == 0


@pytest.mark.parametrize("user", ["", "default"])
def test_passwords_stand_in_the_address_percent_encoded(system: System, user: str) -> None:
    with Client(system.sentinels.url_as(f"{user}:{quote(PASSWORD, safe='')}", SENTINEL_PASSWORD)) as client:
        assert client.list("dead") == []


@pytest.mark.parametrize(
    ("password", "sentinel_password"), [("wrong", SENTINEL_PASSWORD), (quote(PASSWORD, safe=""), "wrong")]
)
def test_a_wrong_password_is_told_without_showing_any(system: System, password: str, sentinel_password: str) -> None:
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
def test_an_address_that_is_none_is_told(url: str, words: str) -> None:
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
def test_an_address_is_shown_without_its_passwords(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_sentinels_that_do_not_answer_are_passed_over(system: System) -> None:
    """A port on which nobody listens, and one on which somebody is silent."""
    with Receiver(lambda exchange: None) as silent:
        hosts = f"127.0.0.1:1,127.0.0.1:{silent.port},127.0.0.1:{system.sentinels.ports[2]}"
        _, _, rest = system.sentinels.url.partition("/mymaster")
        url = f"redis+sentinel://:{quote(PASSWORD, safe='')}@{hosts}/mymaster{rest}"
        with Client(url) as client:
            assert client.list("dead") == []


# --- the replica -------------------------------------------------------------------------------------------------


def test_what_a_gateway_that_waits_for_the_replica_accepts_is_on_it(system: System) -> None:
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
    for record in tasks.list_tasks(system.around.redis, "qtask", "scheduled", 1_000):
        tasks.cancel(system.around.redis, record.id)


# --- another master ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_when_the_master_hangs_all_go_to_another_and_stay_there_when_it_comes_back_as_replica(system: System) -> None:
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
            system.held.let_go.set()  # what was in flight ends, and can be settled only with the next master
            new = system.sentinels.wait_for_another_master(old)
            system.around.redis.connection_pool.disconnect()  # of this test, which has nobody to connect it anew
            refused = system.ask(system.careful, system.task(delay=3_600))
            assert (refused["ok"], refused["error"]["code"]) == (False, "unavailable"), "its replica is stopped"
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
        assert tasks.cancel(system.around.redis, task_id) == "scheduled"
    until(lambda: _accepts(system), 30, "the replica to take part again")


def _has_leases(system: System, ids: list[str]) -> bool:
    leases: Any = system.sentinels.replica.client().zrange(keys.started("qtask"), 0, -1)
    return set(ids) <= {lease.decode().partition(":")[0] for lease in leases}


def _accepts(system: System) -> bool:
    return bool(system.ask(system.careful, system.task())["ok"])


def test_when_the_master_is_killed_what_waits_is_delivered_from_its_replica(system: System) -> None:
    old = system.sentinels.master
    waiting = system.accept(system.careful, *[system.task(delay=0.5 + 0.2 * number) for number in range(20)])
    later = system.accept(system.careful, *[system.task(delay=3_600) for _ in range(200)])
    time.sleep(0.6)  # some are due before it happens, most while there is no master
    old.kill()
    held = system.accept(system.patient, *[system.task() for _ in range(3)])  # comes back when there is another
    assert system.sentinels.wait_for_another_master(old) is not old
    records = system.around.ended([*waiting, *held], 30)
    assert {record.state for record in records} == {"delivered"}
    received = system.received()
    assert all(received[task_id] == 1 for task_id in held)
    # What was delivered and settled in the last moment, the replica may not have heard of.
    assert all(1 <= received[task_id] <= 2 for task_id in waiting)
    assert sum(received[task_id] for task_id in waiting) <= len(waiting) + 3
    counts = tasks.count_tasks(system.around.redis, "qtask")
    assert (counts["scheduled"], counts["queued"], counts["started"]) == (len(later), 0, 0)
    system.check_all_ways()
