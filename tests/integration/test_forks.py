"""Clients that were used before a fork: parent and children continue, each with its own connection and ids."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import uvloop
from redis import Redis

from qtask import AsyncClient, Client, Unavailable
from qtask.client.protocol import Accepted
from qtask.scheduler.process import Scheduler
from qtask.store.connect import connect
from tests.support.answering import answer_line
from tests.support.gateway_process import HOUR, scheduled, task
from tests.support.redis_server import RedisServer

CHILDREN = 3
EACH = 100


@contextmanager
def forked(call: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Calls a function in a forked child; yields a function that waits for its result and returns it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = call()
        except BaseException as error:
            found = repr(error)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)

    def result() -> Any:
        with os.fdopen(reader, "rb") as stream:
            return json.loads(stream.read())

    try:
        yield result
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def in_children(call: Callable[[], Any], meanwhile: Callable[[], Any]) -> list[Any]:
    """The result of a call in each child, and at the end that of the parent."""
    with forked(call) as first, forked(call) as second, forked(call) as third:
        mine = meanwhile()
        results = [one() for one in (first, second, third)]
    return [*results, mine]


def send(client: Client, count: int = EACH) -> list[str]:
    """Sends the same dict several times, one after the other; returns the ids."""
    return [client.send(task()).id for _ in range(count)]


def check_all_stored(redis: Redis, ids: list[str]) -> None:
    assert len(set(ids)) == len(ids)
    assert set(scheduled(redis)) == set(ids)


# --- one after the other ----------------------------------------------------------------------------------------


def test_used_client_serves_parent_and_children_at_once(url: str, redis: Redis) -> None:
    with Client(url, timeout=30) as client:
        used = send(client, 1)
        results = in_children(lambda: send(client), lambda: send(client))
        after = send(client, 1)
    check_all_stored(redis, [*used, *chain(*results), *after])


def test_used_scheduler_serves_children(redis_server: RedisServer, redis: Redis) -> None:
    scheduler = Scheduler("qtask", connect(redis_server.url))

    def enqueue() -> list[str]:
        return [job.id for _ in range(EACH) for job in scheduler.enqueue_many([(2e9, task())])]

    used = enqueue()
    check_all_stored(redis, [*used, *chain(*in_children(enqueue, enqueue))])


def test_fork_during_an_exchange_does_not_affect_the_answers_of_the_parent(url: str, redis: Redis) -> None:
    def rest(answers: Iterator[Any]) -> Any:
        found = []
        try:
            found += [answer.id for answer in answers]
        except Unavailable as error:
            return str(error)
        return found

    with Client(url, timeout=30) as client:
        answers = client.send_iter(task() for _ in range(3_000))
        first = next(answers)
        assert isinstance(first, Accepted)
        with forked(lambda: [rest(answers), send(client, 10)]) as result:
            mine = [first.id, *rest(answers)]
            in_the_middle, after = result()
        assert len(mine) == 3_000
        if url.startswith("socket"):
            assert "its parent's" in in_the_middle
            in_the_middle = []
        else:
            # What was in memory is the same in both: the answers of the batch that had been accepted.
            in_the_middle = [task_id for task_id in in_the_middle if task_id not in mine]
    check_all_stored(redis, mine + after + in_the_middle)


def test_child_that_exits_leaves_the_connection_to_its_parent(url: str, redis: Redis) -> None:
    program = f"""
import gc, os, qtask
client = qtask.Client({url!r}, timeout=30)
send = lambda: client.http("http://127.0.0.1:9/", delay={HOUR}).id
ids = [send()]
for close in (client.close, lambda: None, send):
    child = os.fork()
    if child == 0:
        close()
        del client
        gc.collect()
        raise SystemExit
    assert os.waitpid(child, 0)[1] == 0
    ids.append(send())
print(*ids)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    ids = ran.stdout.split()
    assert len(ids) == 4
    assert len(scheduled(redis)) == 5, "including the one that a child sent"
    assert set(ids) <= set(scheduled(redis))


@pytest.mark.parametrize("kind", ["plain", "asyncio"])
def test_child_does_not_keep_the_connection_of_its_parent_open(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"socket://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> socket.socket:
            connection, _ = listener.accept()
            connection.settimeout(30)
            connection.recv(65_536)
            connection.sendall(answer_line(0))
            return connection

        reader, writer = os.pipe()

        async def with_asyncio() -> None:
            client = AsyncClient(url)
            serving = asyncio.get_running_loop().run_in_executor(None, serve)
            await client.send(task())
            with await serving as connection, forked(lambda: os.read(reader, 1).decode()):
                await client.close()
                assert await asyncio.get_running_loop().run_in_executor(None, connection.recv, 1) == b""
                os.write(writer, b"x")

        if kind == "asyncio":
            asyncio.run(with_asyncio())
            return
        with ThreadPoolExecutor() as pool, Client(url) as client:
            serving = pool.submit(serve)
            client.send(task())
            with serving.result() as connection, forked(lambda: os.read(reader, 1).decode()):
                client.close()
                assert connection.recv(1) == b""
                os.write(writer, b"x")


# --- asyncio ----------------------------------------------------------------------------------------------------

_inherited: list[AsyncClient] = []  # inherited by the children of a process pool


def send_in_child(_: int) -> list[str]:
    """Runs in a child, on its own event loop; garbage collection there must not affect the parent's connection."""

    async def talk() -> list[str]:
        return [(await _inherited[-1].send(task())).id for _ in range(EACH)]

    ids = asyncio.run(talk())
    gc.collect()
    return ids


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.slow
def test_process_pool_children_use_the_client_of_a_running_loop(
    url: str, redis: Redis, run: Callable[[Coroutine[Any, Any, list[str]]], list[str]]
) -> None:
    async def main() -> list[str]:
        async with asyncio.timeout(60), AsyncClient(url, timeout=30) as client:
            _inherited.append(client)
            ids = [(await client.send(task())).id]
            loop = asyncio.get_running_loop()
            with ProcessPoolExecutor(CHILDREN, multiprocessing.get_context("fork")) as pool:
                children = [loop.run_in_executor(pool, send_in_child, n) for n in range(CHILDREN)]
                ids += [(await client.send(task())).id for _ in range(EACH)]
                ids += chain.from_iterable(await asyncio.gather(*children))
            return [*ids, (await client.send(task())).id]

    check_all_stored(redis, run(main()))


@pytest.mark.parametrize("url", ["socket", "redis"], indirect=True)
def test_inherited_loop_gets_a_new_connection_in_the_child(url: str, redis: Redis) -> None:
    """For programs that run a loop by hand: the child continues the loop of its parent.

    Not over HTTP, which asyncio runs in threads; a child does not have the threads of its parent's loop.
    """
    loop = asyncio.new_event_loop()
    client = AsyncClient(url, timeout=30)

    def one() -> str:
        return loop.run_until_complete(client.send(task())).id

    ids = [one()]
    with forked(one) as result:
        ids.append(result())
    ids.append(one())
    loop.run_until_complete(client.close())
    loop.close()
    check_all_stored(redis, ids)
