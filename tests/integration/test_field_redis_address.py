"""Addresses of Redis with options, as used by programs that share one address."""

from __future__ import annotations

import asyncio

import pytest

from qtask import AsyncClient, Client
from tests.support.redis_server import RedisServer

OPTIONS = ["decode_responses=True", "encoding=latin-1", "protocol=3", "health_check_interval=1&retry_on_timeout=true"]
TITLE = "é☃"


@pytest.mark.parametrize("options", OPTIONS)
def test_client_works_with_any_reply_options_in_the_address(redis_server: RedisServer, options: str) -> None:
    with Client(f"{redis_server.url}?{options}") as client:
        accepted = client.udp("127.0.0.1:9", TITLE, delay=3600, title=TITLE)
        assert client.show(accepted.id).title == TITLE
        assert accepted.id in [record.id for record in client.list("scheduled", limit=1000)]
        assert client.cancel(accepted.id) == "scheduled"


@pytest.mark.parametrize("options", OPTIONS)
def test_async_client_works_with_any_reply_options_in_the_address(redis_server: RedisServer, options: str) -> None:
    async def submit() -> str:
        async with AsyncClient(f"{redis_server.url}?{options}") as client:
            accepted = await client.udp("127.0.0.1:9", TITLE, delay=3600, title=TITLE)
            return (await client.show(accepted.id)).title

    assert asyncio.run(submit()) == TITLE
