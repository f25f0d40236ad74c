"""Connections to Redis that were closed while idle, or in the middle of a reply, cause no visible error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis

from qtask import AsyncClient, Client, Unavailable
from qtask.client.protocol import Accepted
from qtask.store import connect as connecting
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
            assert requests.get(gateway.http_url + path, timeout=10).status_code == status, path
        end_all(own)
        assert requests.post(gateway.http_url + "/tasks", json=task(), timeout=10).json()["ok"]
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
    until(lambda: not ours(), 10, "the end of the first client's connection")
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
