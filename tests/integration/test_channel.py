"""One connection that never blocks: replies in order, forgotten scripts, errors, and a Redis that stops."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from qtask.store import keys, workers
from qtask.store.channel import Channel
from qtask.store.connect import connect
from tests.support.redis_server import RedisServer, free_port


@pytest.fixture
def channel(redis: Redis, redis_server: RedisServer) -> Iterator[Channel]:
    one = Channel(connect(redis_server.url))
    one.connect()
    yield one
    one.close()


def read_all(channel: Channel) -> None:
    """Reads, whenever the descriptor is readable, until no reply is outstanding."""
    poll = select.poll()
    poll.register(channel.descriptor, select.POLLIN)
    while channel.waited():
        assert poll.poll(5_000), "a reply did not come"
        channel.read()


def test_replies_come_in_the_order_of_the_commands(channel: Channel) -> None:
    replies: list[Any] = []
    for number in range(2_000):
        channel.send(replies.append, "ECHO", str(number))
    assert channel.waited() > 0
    read_all(channel)
    assert replies == [str(number).encode() for number in range(2_000)]


def test_replies_are_bytes_of_any_size(channel: Channel) -> None:
    replies: list[Any] = []
    big = b"\x00\xff\r\n" * 500_000
    channel.send(replies.append, "SET", "big", big)
    channel.send(replies.append, "GET", "big")
    channel.send(replies.append, "GET", "absent")
    read_all(channel)
    assert replies == [b"OK", big, None]


def test_error_goes_to_the_command_that_caused_it(channel: Channel) -> None:
    replies: list[Any] = []
    channel.send(replies.append, "SET", "text", "x")
    channel.send(replies.append, "LPUSH", "text", "y")
    channel.send(replies.append, "GET", "text")
    read_all(channel)
    assert isinstance(replies[1], ResponseError) and "WRONGTYPE" in str(replies[1])
    assert [replies[0], replies[2]] == [b"OK", b"x"]


def test_script_that_redis_has_forgotten_is_sent_again(channel: Channel, redis: Redis) -> None:
    redis.script_flush()
    replies: list[Any] = []
    channel.run(
        lambda reply: replies.append(("script", float(reply) > 0)), workers.heartbeat("token", "h", 60, {"a": 1})
    )
    channel.send(lambda reply: replies.append(("echo", reply)), "ECHO", "between")
    read_all(channel)
    assert sorted(replies) == [("echo", b"between"), ("script", True)]
    assert redis.zscore(keys.WORKERS, "token") is not None
    assert redis.hget("h", "a") == b"1"


def test_known_script_runs_by_its_hash(channel: Channel, redis: Redis) -> None:
    redis.script_load(workers.HEARTBEAT.text)
    redis.config_resetstat()
    replies: list[Any] = []
    channel.run(replies.append, workers.heartbeat("token", "h", 60, {"a": 1}))
    read_all(channel)
    stats: Any = redis.info("commandstats")
    assert "cmdstat_eval" not in stats and stats["cmdstat_evalsha"]["calls"] == 1


def test_failing_script_returns_its_error(channel: Channel, redis: Redis) -> None:
    replies: list[Any] = []
    redis.set(keys.WORKERS, "no sorted set")
    channel.run(replies.append, workers.heartbeat("token", "h", 60, {"a": 1}))
    read_all(channel)
    assert isinstance(replies[0], ResponseError)


def test_blocked_command_delays_only_its_own_reply(channel: Channel, redis: Redis) -> None:
    replies: list[Any] = []
    channel.send(replies.append, "ECHO", "before")
    channel.send(replies.append, "BLMOVE", "list", "list", "LEFT", "LEFT", 5)
    while not replies:
        select.select([channel.descriptor], [], [], 5)
        channel.read()
    assert replies == [b"before"]
    assert channel.waited() > 0
    redis.rpush("list", "element")
    read_all(channel)
    assert replies == [b"before", b"element"]


def test_reply_callback_may_send_a_command_and_close_the_channel(channel: Channel) -> None:
    replies: list[Any] = []

    def second(reply: Any) -> None:
        replies.append(reply)
        channel.close()

    def first(reply: Any) -> None:
        replies.append(reply)
        channel.send(second, "ECHO", "second")

    channel.send(first, "ECHO", "first")
    read_all(channel)
    assert replies == [b"first", b"second"]
    assert channel.descriptor == -1


def test_channel_reports_a_killed_redis_and_reconnects(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        channel = Channel(connect(server.url))
        channel.connect()
        replies: list[Any] = []
        channel.send(replies.append, "BLPOP", "nothing", 0)
        server.kill()
        select.select([channel.descriptor], [], [], 5)
        with pytest.raises(RedisConnectionError):
            channel.read()
        with pytest.raises(RedisConnectionError):
            channel.connect()
        server.start()
        channel.connect()
        assert channel.waited() == 0, "outstanding commands are forgotten"
        channel.send(replies.append, "ECHO", "again")
        read_all(channel)
        assert replies == [b"again"]
        channel.close()
    finally:
        server.kill()


def test_connect_without_redis_fails_at_once() -> None:
    channel = Channel(connect(f"redis://127.0.0.1:{free_port()}/0"))
    with pytest.raises(RedisConnectionError):
        channel.connect()
    assert channel.descriptor == -1
    channel.close()


def test_channel_logs_in_with_the_password_of_the_address(tmp_path: Path, redis_server: RedisServer) -> None:
    redis = redis_server.client()
    redis.acl_setuser("reader", enabled=True, passwords=["+secret"], commands=["+@all"], keys=["*"])
    try:
        channel = Channel(connect(redis_server.url.replace("redis://", "redis://reader:secret@")))
        channel.connect()
        replies: list[Any] = []
        channel.send(replies.append, "ACL", "WHOAMI")
        read_all(channel)
        assert replies == [b"reader"]
        channel.close()
    finally:
        redis.acl_deluser("reader")
        redis.close()
