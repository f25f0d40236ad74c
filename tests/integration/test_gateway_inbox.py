"""The inbox: any Redis client submits; kills neither lose nor duplicate tasks, and refused entries are kept."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from qtask.store import keys
from qtask.store.inbox import LEAVE_INBOX, LeaveArguments, LeaveKeys
from tests.support.gateway_process import Gateway, scheduled, stored, task, title_of_id
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

LONG_AGO_MS = 3_600_000
BATCH = 20  # dicts that `stream_of_tasks` adds at once


@pytest.fixture(scope="module")
def gateway(redis_server: RedisServer, folder: Path) -> Iterator[Gateway]:
    with Gateway(redis_server.url, folder) as running:
        yield running
        assert running.process.running
        assert "exception" not in running.log


@pytest.fixture(scope="module")
def other_server(folder: Path) -> Iterator[RedisServer]:
    """A second Redis, for tests that start their own gateways."""
    server = RedisServer(folder)
    yield server
    server.kill()


@pytest.fixture
def other_redis(other_server: RedisServer) -> Iterator[Redis]:
    """A client of it, empty."""
    with other_server.emptied() as client:
        yield client


@contextmanager
def gateway_without_rights(server: RedisServer, redis: Redis, folder: Path) -> Iterator[Gateway]:
    """A gateway that has read the whole inbox but may not commit anything until it is given the right."""
    allow_scripts(redis, True)  # it would not start without it
    redis.rename(keys.INBOX, "put aside")
    with Gateway(server.url.replace("//", "//reader:secret@"), folder) as running:
        allow_scripts(redis, False)
        redis.rename("put aside", keys.INBOX)
        until(lambda: running.events("commit_failed") and pending(redis) == redis.xlen(keys.INBOX))
        yield running
    redis.execute_command("ACL", "DELUSER", "reader")


def allow_scripts(redis: Redis, allowed: bool) -> None:
    rule = "+" if allowed else "-"
    redis.execute_command(
        "ACL", "SETUSER", "reader", "on", ">secret", "~*", "&*", "+@all", f"{rule}eval", f"{rule}evalsha"
    )


def submit(redis: Redis, text: Any, **fields: bytes | str) -> str:
    """Adds a dict (or any JSON value) to the inbox; returns the id of the entry."""
    return submit_raw(redis, {"task": json.dumps(text), **fields})


def submit_raw(redis: Redis, fields: dict[Any, Any]) -> str:
    entry: Any = redis.xadd(keys.INBOX, fields)
    return str(entry.decode())


def submit_many(redis: Redis, names: list[str]) -> None:
    with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.xadd(keys.INBOX, {"task": json.dumps(task(name))})
        pipeline.execute()


def reply(redis: Redis, key: str) -> Any:
    """The answer that is pushed to a key."""
    pushed: Any = redis.blpop([key], 30)
    assert pushed is not None, f"nothing came to {key}"
    return json.loads(pushed[1])


def refused(redis: Redis) -> list[tuple[bytes, dict[str, str]]]:
    """The entries of the stream of refused dicts: the beginning of each dict as it came, and the error."""
    entries: Any = redis.xrange(keys.REFUSED)
    return [(fields[b"task"], json.loads(fields[b"error"])["error"]) for _, fields in entries]


def pending(redis: Redis) -> int:
    """How many entries were read by a gateway and are not finished."""
    return int(redis.xpending(keys.INBOX, keys.INBOX_GROUP)["pending"])


def consumers(redis: Redis) -> list[str]:
    found: Any = redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)
    return [consumer["name"].decode() for consumer in found]


def age_pending(redis: Redis) -> None:
    """Makes all pending entries look as if they had been read long ago."""
    entries: Any = redis.xpending_range(keys.INBOX, keys.INBOX_GROUP, "-", "+", 100_000)
    for entry in entries:
        redis.xclaim(
            keys.INBOX, keys.INBOX_GROUP, entry["consumer"], 0, [entry["message_id"]], idle=LONG_AGO_MS, justid=True
        )


def accepted(redis: Redis) -> list[str]:
    """The titles of all accepted tasks, sorted; a duplicated task appears twice."""
    return sorted(title_of_id(redis, scheduled(redis)).values())


# --- ways to add an entry -----------------------------------------------------------------------------------------


def by_redis_py(server: RedisServer, text: str) -> None:
    server.client().xadd(keys.INBOX, {"task": text, "reply": "answer"})


def by_redis_cli(server: RedisServer, text: str) -> None:
    path = os.pathsep.join([os.environ["PATH"], str(Path(sys.executable).parent)])
    client = shutil.which("redis-cli", path=path) or shutil.which("valkey-cli", path=path)
    if client is None:
        pytest.skip("there is no redis-cli here (on Debian: apt install redis-tools)")
    command = [client, "-p", str(server.port), "XADD", keys.INBOX, "*", "task", text, "reply", "answer"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def by_hand(server: RedisServer, text: str) -> None:
    words = [word.encode() for word in ("XADD", keys.INBOX, "*", "task", text, "reply", "answer")]
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        assert connection.recv(100).startswith(b"$")


@pytest.mark.parametrize("way", [by_redis_py, by_redis_cli, by_hand])
def test_any_redis_client_submits_and_gets_its_answer(
    gateway: Gateway, redis_server: RedisServer, redis: Redis, way: Callable[[RedisServer, str], None]
) -> None:
    one = task("für Ada", text='quotes " and\nlines')
    way(redis_server, json.dumps(one, indent=2, ensure_ascii=False))
    answer = reply(redis, "answer")
    assert set(answer) == {"ok", "id", "due"}
    assert stored(redis, answer["id"]) == one
    assert redis.zscore(keys.SCHEDULE, answer["id"]) == answer["due"]
    assert redis.xlen(keys.INBOX) == 0 and pending(redis) == 0


def test_task_is_in_redis_when_it_is_answered_and_the_answer_expires(gateway: Gateway, redis: Redis) -> None:
    submit(redis, task(), reply="answer")
    until(lambda: redis.exists("answer"))
    assert 0 < redis.ttl("answer") <= keys.INBOX_REPLY_SECONDS
    assert stored(redis, reply(redis, "answer")["id"])["title"] == "t"


def test_every_entry_that_asks_for_an_answer_gets_one(gateway: Gateway, redis: Redis) -> None:
    for n in range(1_500):
        submit(redis, task(str(n), delay=-1 if n % 5 == 4 else 3_600), reply=f"answer:{n}")
    answers = [reply(redis, f"answer:{n}") for n in range(1_500)]
    assert [answer["ok"] for answer in answers] == [n % 5 != 4 for n in range(1_500)]
    title_of = title_of_id(redis, [answer["id"] for answer in answers if answer["ok"]])
    assert list(title_of.values()) and all(
        title_of[answer["id"]] == str(n) for n, answer in enumerate(answers) if answer["ok"]
    )


# --- refused entries ----------------------------------------------------------------------------------------------


def test_byte_order_mark_is_ignored(gateway: Gateway, redis: Redis) -> None:
    redis.xadd(keys.INBOX, {"task": b" \n\xef\xbb\xbf" + json.dumps(task("marked")).encode(), "reply": "marked"})
    assert stored(redis, reply(redis, "marked")["id"]) == task("marked")


def test_refused_dict_is_kept_with_the_reason_and_answered(gateway: Gateway, redis: Redis) -> None:
    submit(redis, {**task(), "title": ""}, reply="answer")
    answer = reply(redis, "answer")
    assert answer["ok"] is False
    assert (answer["error"]["code"], answer["error"]["field"]) == ("invalid_value", "title")
    assert refused(redis) == [(json.dumps({**task(), "title": ""}).encode(), answer["error"])]
    assert redis.xlen(keys.INBOX) == 0 and pending(redis) == 0
    assert scheduled(redis) == []


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"dict": "{}"}, "missing_field", "task"),
        ({"task": ""}, "invalid_json", ""),
        ({"task": b"\xff\xfe\x00"}, "invalid_json", ""),
        ({"task": "[]"}, "wrong_type", ""),
        ({"task": json.dumps(task()) + "x"}, "invalid_json", ""),
        ({"task": "[" * 100_000}, "too_deep", ""),
        ({"task": json.dumps(task(text="x" * 1_048_576))}, "too_large", ""),
    ],
    ids=["no task", "empty", "not UTF-8", "an array", "more than one text", "too deep", "too large"],
)
def test_invalid_entry_is_refused_and_later_ones_are_accepted(
    gateway: Gateway, redis: Redis, fields: dict[str, str | bytes], code: str, field: str
) -> None:
    submit_raw(redis, {**fields, "reply": "answer"})
    submit(redis, task("after"), reply="after")
    error = reply(redis, "answer")["error"]
    assert (error["code"], error["field"]) == (code, field)
    assert stored(redis, reply(redis, "after")["id"])["title"] == "after"
    ((kept, why),) = refused(redis)
    given = fields.get("task", b"")
    assert kept == (given.encode() if isinstance(given, str) else given)[: keys.REFUSED_BYTES]
    assert why == error


@pytest.mark.parametrize(
    "fields", [{"reply": ""}, {"reply": b"\xff\x00"}, {"reply": "taken"}, {"other": "x"}, {b"\xff": b"\xff"}]
)
def test_odd_fields_next_to_a_valid_dict_are_ignored(
    gateway: Gateway, redis: Redis, fields: dict[str | bytes, str | bytes]
) -> None:
    redis.set("taken", "a key of another type")
    submit_raw(redis, {"task": json.dumps(task("odd")), **fields})
    until(lambda: accepted(redis) == ["odd"])
    submit(redis, task("after"), reply="after")
    assert reply(redis, "after")["ok"]
    assert redis.get("taken") == b"a key of another type"
    assert redis.llen(b"\xff\x00") == (fields.get("reply") == b"\xff\x00")
    assert pending(redis) == 0


def test_stream_of_refused_dicts_is_bounded(gateway: Gateway, redis: Redis) -> None:
    with redis.pipeline(transaction=False) as pipeline:
        for n in range(keys.REFUSED_KEEP + 1_000):
            pipeline.xadd(keys.INBOX, {"task": str(n)})
        pipeline.execute()
    submit(redis, task("after"))
    until(lambda: accepted(redis) == ["after"] and redis.xlen(keys.INBOX) == 0)
    assert keys.REFUSED_KEEP <= redis.xlen(keys.REFUSED) <= keys.REFUSED_KEEP + 200
    newest: Any = redis.xrevrange(keys.REFUSED, count=1)
    assert newest[0][1][b"task"] == str(keys.REFUSED_KEEP + 999).encode()


# --- the stream itself --------------------------------------------------------------------------------------------


def test_entries_from_before_the_gateway_started_are_accepted(
    other_server: RedisServer, other_redis: Redis, tmp_path: Path
) -> None:
    submit_many(other_redis, [f"{n:04}" for n in range(1_200)])
    with Gateway(other_server.url, tmp_path):
        until(lambda: other_redis.zcard(keys.SCHEDULE) == 1_200)
    assert accepted(other_redis) == [f"{n:04}" for n in range(1_200)]


@pytest.mark.parametrize("lost", ["stream", "group", "everything"])
def test_deleted_stream_or_group_is_created_again(gateway: Gateway, redis: Redis, lost: str) -> None:
    submit(redis, task("before"), reply="before")
    assert reply(redis, "before")["ok"]
    if lost == "stream":
        redis.delete(keys.INBOX)
    elif lost == "group":
        redis.xgroup_destroy(keys.INBOX, keys.INBOX_GROUP)
    else:
        redis.flushall()
    submit(redis, task("after"), reply="after")
    assert stored(redis, reply(redis, "after")["id"])["title"] == "after"


# --- killed gateways ----------------------------------------------------------------------------------------------


def test_entries_read_by_a_killed_gateway_are_accepted_once_by_another(
    other_server: RedisServer, other_redis: Redis, tmp_path: Path
) -> None:
    names = [f"{n:03}" for n in range(400)]
    submit_many(other_redis, names)
    with gateway_without_rights(other_server, other_redis, tmp_path) as killed:
        killed.process.kill()
    assert scheduled(other_redis) == []
    submit(other_redis, task("new"))
    age_pending(other_redis)
    with Gateway(other_server.url, tmp_path) as other:
        until(lambda: other_redis.xlen(keys.INBOX) == 0)
        assert sum(event["entries"] for event in other.events("inbox_taken_over")) == 400
    assert accepted(other_redis) == [*names, "new"]


@pytest.mark.parametrize("cut", [False, True], ids=["by itself", "after a new connection"])
def test_failed_commit_is_retried(other_server: RedisServer, other_redis: Redis, tmp_path: Path, cut: bool) -> None:
    names = [f"{n:03}" for n in range(400)]
    submit_many(other_redis, names)
    submit(other_redis, {"title": ""}, reply="refused")
    with gateway_without_rights(other_server, other_redis, tmp_path):
        submit(other_redis, task("new"), reply="accepted")
        allow_scripts(other_redis, True)
        if cut:
            other_redis.execute_command("CLIENT", "KILL", "USER", "reader")
        until(lambda: other_redis.xlen(keys.INBOX) == 0)
    assert accepted(other_redis) == [*names, "new"]
    assert reply(other_redis, "accepted")["ok"] is True
    assert reply(other_redis, "refused")["ok"] is False


def test_deleted_entries_of_a_dead_gateway_are_forgotten(
    other_server: RedisServer, other_redis: Redis, tmp_path: Path
) -> None:
    submit(other_redis, task("kept"))
    deleted = submit(other_redis, task("deleted"))
    with gateway_without_rights(other_server, other_redis, tmp_path) as killed:
        killed.process.kill()
    other_redis.xdel(keys.INBOX, deleted)
    age_pending(other_redis)
    with Gateway(other_server.url, tmp_path) as other:
        until(lambda: accepted(other_redis) == ["kept"])
        submit(other_redis, task("new"))
        until(lambda: accepted(other_redis) == ["kept", "new"])
        until(lambda: pending(other_redis) == 0)
        assert other.process.running
    assert refused(other_redis) == []


@contextmanager
def stream_of_tasks(redis: Redis) -> Iterator[list[str]]:
    """Keeps adding dicts to the inbox; yields their titles, to be read after the end."""
    names: list[str] = []
    over = threading.Event()

    def add() -> None:
        while not over.is_set():
            batch = [f"{len(names) + n:06}" for n in range(BATCH)]
            submit_many(redis, batch)
            names.extend(batch)
            time.sleep(0.005)

    adding = threading.Thread(target=add)
    adding.start()
    try:
        yield names
    finally:
        over.set()
        adding.join()


def test_killed_gateways_lose_and_duplicate_nothing(
    other_server: RedisServer, other_redis: Redis, tmp_path: Path
) -> None:
    with stream_of_tasks(other_redis) as names:
        for _ in range(4):
            with Gateway(other_server.url, tmp_path) as gateway:
                already = other_redis.zcard(keys.SCHEDULE)
                until(lambda: other_redis.zcard(keys.SCHEDULE) > already)  # noqa: B023
                gateway.process.kill()
            age_pending(other_redis)
    with Gateway(other_server.url, tmp_path):
        until(lambda: other_redis.xlen(keys.INBOX) == 0)
    assert accepted(other_redis) == names


def test_stopped_gateway_leaves_at_most_one_batch_unfinished(
    other_server: RedisServer, other_redis: Redis, tmp_path: Path
) -> None:
    with stream_of_tasks(other_redis) as names:
        for _ in range(3):  # on a busy machine the grace of 8 s may be too short for the gateway's entries
            with Gateway(other_server.url, tmp_path) as gateway:
                already = other_redis.zcard(keys.SCHEDULE)
                until(lambda: other_redis.zcard(keys.SCHEDULE) > already + 100)  # noqa: B023
                assert gateway.process.stop() == 0
                ran_out_of_time = gateway.events("stopped_early")
            if not ran_out_of_time:
                break
            age_pending(other_redis)
        assert not ran_out_of_time and not gateway.events("inbox_left_open")
        # Redis may have delivered a batch at the very moment at which the gateway closed.
        assert pending(other_redis) <= BATCH
    age_pending(other_redis)
    with Gateway(other_server.url, tmp_path):
        until(lambda: other_redis.xlen(keys.INBOX) == 0)
    assert accepted(other_redis) == names


def test_two_gateways_share_the_stream(other_server: RedisServer, other_redis: Redis, tmp_path: Path) -> None:
    with Gateway(other_server.url, tmp_path), Gateway(other_server.url, tmp_path):
        until(lambda: len(consumers(other_redis)) == 2)
        with stream_of_tasks(other_redis) as names:
            until(lambda: len(names) > 1_000)
        until(lambda: other_redis.xlen(keys.INBOX) == 0)
        assert accepted(other_redis) == names


def test_stopped_gateway_removes_its_consumer(other_server: RedisServer, other_redis: Redis, tmp_path: Path) -> None:
    with Gateway(other_server.url, tmp_path) as gateway:
        submit(other_redis, task(), reply="answer")
        assert reply(other_redis, "answer")["ok"]
        assert len(consumers(other_redis)) == 1
        assert gateway.process.stop() == 0
    assert consumers(other_redis) == []


def leave(redis: Redis, consumer: str) -> bool:
    return bool(LEAVE_INBOX.call(LeaveKeys(keys.INBOX), LeaveArguments(consumer)).run(redis))


def test_consumer_with_pending_entries_is_not_removed(other_redis: Redis) -> None:
    other_redis.xgroup_create(keys.INBOX, keys.INBOX_GROUP, "0", mkstream=True)
    entry = submit(other_redis, task())
    other_redis.xreadgroup(keys.INBOX_GROUP, "busy", {keys.INBOX: ">"})
    other_redis.xreadgroup(keys.INBOX_GROUP, "free", {keys.INBOX: ">"})
    assert not leave(other_redis, "busy")
    assert leave(other_redis, "free")
    assert consumers(other_redis) == ["busy"]
    other_redis.xack(keys.INBOX, keys.INBOX_GROUP, entry)
    assert leave(other_redis, "busy")


# --- Redis away ---------------------------------------------------------------------------------------------------


def test_restarted_redis_loses_and_duplicates_nothing(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis = server.client()
    try:
        with Gateway(server.url, tmp_path):
            submit_many(redis, [f"a{n:04}" for n in range(2_000)])
            until(lambda: redis.zcard(keys.SCHEDULE) > 0)
            server.kill()
            server.start()
            submit_many(redis, [f"b{n:04}" for n in range(500)])
            until(lambda: redis.xlen(keys.INBOX) == 0)
        assert accepted(redis) == [f"a{n:04}" for n in range(2_000)] + [f"b{n:04}" for n in range(500)]
    finally:
        server.kill()
