"""The proxy of the chaos suite: it passes everything, and cuts where it is told."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.chaos.proxy import Proxy
from tests.support.redis_server import RedisServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    one = RedisServer(tmp_path)
    yield one
    one.kill()


def test_proxy_passes_data_and_cuts_in_the_middle_of_the_given_reply(server: RedisServer) -> None:
    proxy = Proxy({"redis": server.port})
    value = b"x" * 1_000
    try:
        redis = Redis.from_url(f"redis://127.0.0.1:{proxy.ports['redis']}/0", single_connection_client=True)
        assert redis.set("key", value) and redis.get("key") == value
        with socket.create_connection(("127.0.0.1", proxy.ports["redis"]), 10) as bare:
            proxy.cut("redis", 1, 0.5)
            for command in (b"PING\r\n", b"GET key\r\n"):
                bare.sendall(command)
                answer = bare.recv(100)
            while chunk := bare.recv(4_096):
                answer += chunk
        reply = b"$1000\r\n" + value + b"\r\n"
        assert answer == reply[: len(reply) // 2]
        assert redis.ping(), "only that connection was cut"
        server.kill()
        with pytest.raises(RedisConnectionError):
            redis.ping()
    finally:
        assert proxy.close() == {"redis": 1}
