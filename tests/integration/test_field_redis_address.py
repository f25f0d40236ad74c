"""Addresses of Redis with options, as programs that share one address with others have them."""

from __future__ import annotations

import asyncio

import pytest

from qtask import AsyncClient, Client
from tests.support.redis_server import RedisServer

OPTIONS = ["decode_responses=True", "encoding=latin-1", "protocol=3", "health_check_interval=1&retry_on_timeout=true"]
TITLE = "é☃"


@pytest.mark.parametrize("options", OPTIONS)
def test_a_client_works_whatever_an_address_says_of_replies(redis_server: RedisServer, options: str) -> None:
    with Client(f"{redis_server.url}?{options}") as client:
        accepted = client.udp("127.0.0.1:9", TITLE, delay=3600, title=TITLE)
        assert client.show(accepted.id).title == TITLE
        assert accepted.id in [record.id for record in client.list("scheduled", limit=1000)]
        assert client.cancel(accepted.id) == "scheduled"


@pytest.mark.parametrize("options", OPTIONS)
def test_an_async_client_does_too(redis_server: RedisServer, options: str) -> None:
    async def submit() -> str:
        async with AsyncClient(f"{redis_server.url}?{options}") as client:
            accepted = await client.udp("127.0.0.1:9", TITLE, delay=3600, title=TITLE)
            return (await client.show(accepted.id)).title

    assert asyncio.run(submit()) == TITLE
