"""Connections to Redis that were closed while idle, or in the middle of a reply, cause no visible error."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
import uvloop
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from qtask import AsyncClient, Client, Unavailable
from qtask.client.protocol import Accepted
from qtask.store import connect as connecting
from qtask.store import keys
from tests.chaos.proxy import Proxy
from tests.support.gateway_process import Connection, Gateway, scheduled, task
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

PAUSES = (0.0, 0.05)  # seconds between the end of a connection and its next use


def end_all(redis: Redis) -> None:
    """Lets Redis close all connections except ours, as it does with idle ones."""
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.fixture
def own(redis_server: RedisServer, redis: Redis) -> Iterator[Redis]:
    """A client whose connections nobody else closes; of the database that `redis` has emptied."""
    with redis_server.client() as client:
        yield client


# --- closed by Redis ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause", PAUSES)
def test_client_continues_after_redis_closed_its_connection(
    redis_server: RedisServer, own: Redis, pause: float
) -> None:
    async def talk() -> None:
        async with AsyncClient(redis_server.url) as client:
            for _ in range(5):
                ids.append((await client.send(task())).id)
                end_all(own)
                await asyncio.sleep(pause)
            assert (await client.show(ids[0])).id == ids[0]

    ids: list[str] = []
    with Client(redis_server.url) as client:
        looks: list[Callable[[], Any]] = [
            lambda: client.send(task()),
            lambda: client.show(ids[0]),
            lambda: client.list("scheduled"),
            client.find_dead,
        ]
        for look in [*looks, *looks]:
            answer = look()
            ids += [answer.id] if isinstance(answer, Accepted) else []
            end_all(own)
    asyncio.run(talk())
    assert len(ids) == 7
    assert sorted(scheduled(own)) == sorted(ids)


@pytest.mark.parametrize("pause", PAUSES)
def test_gateway_continues_after_redis_closed_its_connections(gateway: Gateway, own: Redis, pause: float) -> None:
    for _ in range(5):
        for path, status in (("/health", 200), ("/graphs/x", 404), ("/tasks/x", 404)):
            end_all(own)
            asyncio.run(asyncio.sleep(pause))
            assert requests.get(gateway.http_url + path, timeout=30).status_code == status, path
        end_all(own)
        assert requests.post(gateway.http_url + "/tasks", json=task(), timeout=30).json()["ok"]
    assert len(scheduled(own)) == 5


# --- forgotten by a firewall or proxy -----------------------------------------------------------------------------


def test_long_idle_connection_is_replaced_before_use(
    redis_server: RedisServer, own: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ours() -> set[str]:
        """By name, because programs of earlier tests may still connect to the same Redis."""
        return {one["id"] for one in own.client_list() if one["name"] == name}

    name = "replaced"
    url = f"{redis_server.url}?client_name={name}"

    async def talk() -> None:
        async with AsyncClient(url) as client:
            await client.send(task())
            first = ours()
            assert len(first) == 1
            await client.send(task())
            assert ours() == first
            monkeypatch.setattr(connecting, "IDLE_SECONDS", 0.0)
            await client.send(task())
            assert len(ours()) == 1 and not ours() & first

    asyncio.run(talk())
    until(lambda: not ours(), 30, "the end of the first client's connection")
    monkeypatch.setattr(connecting, "IDLE_SECONDS", 60.0)
    with Client(url) as client:
        client.send(task())
        first = ours()
        assert len(first) == 1
        client.send(task())
        assert ours() == first
        monkeypatch.setattr(connecting, "IDLE_SECONDS", 0.0)
        client.send(task())
        assert len(ours()) == 1 and not ours() & first


# --- reset --------------------------------------------------------------------------------------------------------


class Relay:
    """A way to Redis that resets connections, as Redis does when it is killed and has not read all that came.

    Attributes:
        url: its address.
        last: number of the reply after which each connection ends, counted from 1; 0 for no end.
        abrupt: whether it ends with a reset, otherwise with a mere end of the stream; the reset follows the next write.
        asked: is set when the last reply is there, and held back.
        let_go: sends it, and ends its connection at once.
        ended: is set then.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: set[socket.socket] = set()
        self.last, self.abrupt = 0, True
        self.asked, self.let_go, self.ended = (threading.Event() for _ in range(3))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def reset_all(self) -> None:
        """Resets every connection."""
        for client in list(self._clients):
            self._reset(client)

    def close(self) -> None:
        """Takes no more connections, and resets those that there are."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset_all()

    def _reset(self, client: socket.socket) -> None:
        self._clients.discard(client)
        with suppress(OSError):  # the client has hung up
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.shutdown(socket.SHUT_RD)  # wakes the thread below; alone, it tells the client nothing
        client.close()

    def _accept(self) -> None:
        with suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                self._clients.add(client)
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        replies = 0
        with suppress(OSError, ValueError), socket.create_connection(("127.0.0.1", self._port)) as server:
            while True:
                readable, _, _ = select.select([client, server], [], [], 0.01)
                if client in readable:
                    data = client.recv(65_536)
                    if not data:
                        break
                    server.sendall(data)
                if server in readable:
                    data = server.recv(65_536)
                    replies += 1
                    if replies != self.last:
                        client.sendall(data)
                        continue
                    self.asked.set()
                    self.let_go.wait(30)
                    client.sendall(data)
                    if self.abrupt:
                        self._reset(client)
                    client.close()
                    self.ended.set()
                    return
        self._clients.discard(client)
        client.close()


@pytest.fixture
def relay(redis_server: RedisServer) -> Iterator[Relay]:
    with closing(Relay(redis_server.port)) as relay:
        yield relay


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_connection_that_was_reset_while_idle_is_replaced(relay: Relay, redis: Redis, run: Callable[..., Any]) -> None:
    async def talk() -> None:
        client = connecting.connect_async(relay.url, 30)
        for _ in range(5):
            assert await client.ping()
            relay.reset_all()
            await asyncio.sleep(0.05)
        await client.aclose()

    run(talk())


@pytest.mark.parametrize("abrupt", [True, False], ids=["reset", "end"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_end_during_the_handshake_is_a_connection_error(
    relay: Relay, redis: Redis, run: Callable[..., Any], abrupt: bool
) -> None:
    async def talk(last: int) -> None:
        client = connecting.connect_async(relay.url, 30)
        relay.last, relay.abrupt = last, abrupt
        for event in (relay.asked, relay.let_go, relay.ended):
            event.clear()
        asking = asyncio.ensure_future(client.ping())
        while not relay.asked.is_set() and not asking.done():
            await asyncio.sleep(0)
        relay.let_go.set()
        if relay.asked.is_set():
            relay.ended.wait(30)  # holds up the loop, which then finds the reply and the end together
        ends.append(asking.done())
        with suppress(RedisConnectionError):
            assert await asking
        relay.last = 0
        assert await client.ping()
        await client.aclose()

    ends: list[bool] = []
    for last in range(1, 6):
        run(talk(last))
    assert ends[:2] == [False, False]


def test_gateway_accepts_tasks_after_its_connections_were_reset(relay: Relay, redis: Redis, tmp_path: Path) -> None:
    with Gateway(relay.url, tmp_path) as gateway, Connection(gateway.port) as connection:
        for number in range(5):
            assert connection.ask(task())["ok"]
            redis.xadd(keys.INBOX, {"task": json.dumps(task())})
            until(lambda: len(scheduled(redis)) == 2 * number + 2)  # noqa: B023
            relay.reset_all()
            asyncio.run(asyncio.sleep(0.05))
        assert gateway.process.running
        assert "Traceback" not in gateway.log


# --- broken in the middle of a reply ------------------------------------------------------------------------------


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy({"redis": redis_server.port})
    yield proxy
    proxy.close()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_submission_whose_reply_was_lost_is_accepted_once(proxy: Proxy, redis: Redis, share: float) -> None:
    async def talk() -> None:
        async with AsyncClient(url) as client:
            for size in (1, 200):
                await client.send(task())
                proxy.cut("redis", 0, share)
                answers = await client.send_many(task() for _ in range(size))
                ids.extend(answer.id for answer in answers if isinstance(answer, Accepted) and not answer.duplicate)

    url = f"redis://127.0.0.1:{proxy.ports['redis']}/0"
    ids: list[str] = []
    with Client(url) as client:
        for size in (1, 200):
            client.send(task())
            proxy.cut("redis", 0, share)
            answers = client.send_many(task() for _ in range(size))
            ids += [answer.id for answer in answers if isinstance(answer, Accepted) and not answer.duplicate]
    asyncio.run(talk())
    assert len(set(ids)) == 402
    assert len(scheduled(redis)) == 402 + 4
    assert set(ids) <= set(scheduled(redis))


def test_gateway_whose_reply_was_lost_answers_with_the_stored_task(proxy: Proxy, redis: Redis, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{proxy.ports['redis']}/0"
    with Gateway(url, tmp_path) as gateway, Connection(gateway.port) as connection:
        ids = [connection.ask(task())["id"]]
        for _ in range(10):
            proxy.cut("redis", 0, 0.5)  # of the next command: this commit or the read of the inbox
            answer = connection.ask(task())
            assert answer["ok"] and "duplicate" not in answer
            ids.append(answer["id"])
    assert sorted(scheduled(redis)) == sorted(ids)


def test_reads_are_repeated_and_cancel_is_not(proxy: Proxy, redis: Redis) -> None:
    with Client(f"redis://127.0.0.1:{proxy.ports['redis']}/0") as client:
        accepted = client.send(task())
        for look in (lambda: client.show(accepted.id), lambda: client.list("scheduled"), client.find_dead):
            proxy.cut("redis", 0, 0.5)
            look()
        client.cancel(client.send(task()).id)  # Redis knows the script from now on
        proxy.cut("redis", 0, 0.0)
        with pytest.raises(Unavailable, match="Redis does not answer"):
            client.cancel(accepted.id)
    assert scheduled(redis) == [], "it was cancelled, but the client cannot know that"
