"""Submits tasks in ways in which two senders could conflict: after a fork, and with one node number.

As a program: `python -m tests.chaos.sharing REDIS_URL GATEWAY_URL` reads one batch per line and answers each with one
line. A batch is `{"url": URL, "parts": [[TASK, …], [TASK, …], [TASK, …]]}` with one of the two URLs. All parts are sent
at the same instant:

1. by a forked child, with the client that it inherited,
2. by the parent, with that same client,
3. by a second client, in a thread. When the URL is that of Redis, both clients make ids with the same node number.

The answer contains, for each part, the received answers in order; after a lost connection there are fewer than tasks.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec
from redis.exceptions import RedisError

from qtask import Client
from qtask.client.protocol import Accepted
from qtask.model.errors import NotFound, Unavailable
from qtask.store import keys
from qtask.store.connect import connect

TIMEOUT_SECONDS = 3.0
PAIR_BATCHES = 20  # sent by a pair of clients before a new pair replaces it
HEAD_START_SECONDS = 0.005  # for all senders to be ready
YEARS_SECONDS = 300_000_000
CANCEL_SECONDS = 20.0  # for Redis to come back

Part = list[dict[str, Any]]


class Batch(msgspec.Struct):
    """One line of the input; see above."""

    url: str
    parts: list[Part]


class _Pair:
    """Two clients of one URL; on Redis they make ids with the same node number."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._batches = 0
        self.clients = self._new()

    def send(self, parts: list[Part]) -> list[list[dict[str, Any]]]:
        """Sends the three parts at once; returns the answers to each."""
        first, second = self.clients
        start = time.monotonic() + HEAD_START_SECONDS
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            _be_child(first, parts[0], start, writing)
        os.close(writing)
        third: list[dict[str, Any]] = []
        thread = threading.Thread(target=lambda: third.extend(_send(second, parts[2], start)))
        thread.start()
        mine = _send(first, parts[1], start)
        thread.join()
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"a forked sender ended with status {status}")
        self._batches += 1
        answers = [msgspec.json.decode(said), mine, third]
        if self._batches == PAIR_BATCHES or any(len(one) < len(part) for one, part in zip(answers, parts, strict=True)):
            self.close()
            self._batches, self.clients = 0, self._new()
        return answers

    def close(self) -> None:
        """Closes both clients."""
        for client in self.clients:
            client.close()

    def _new(self) -> tuple[Client, Client]:
        clients = Client(self._url, timeout=TIMEOUT_SECONDS), Client(self._url, timeout=TIMEOUT_SECONDS)
        if self._url.startswith("redis"):
            _share_node_number(self._url, clients)
        return clients


def _share_node_number(url: str, clients: tuple[Client, Client]) -> None:
    """Makes both clients take the same number from Redis's counter; another process may take it in between, too."""
    with suppress(RedisError, OSError), connect(url, TIMEOUT_SECONDS) as redis:
        before: Any = redis.get(keys.NODES)
        for client in clients:
            if before is not None:
                redis.set(keys.NODES, before)
            _take_number(client)


def _take_number(client: Client) -> None:
    """Submits a task and cancels it: a client takes its node number with the first task."""
    chosen_id = f"sharing-{secrets.token_hex(8)}"
    settings = {"time": YEARS_SECONDS, "id": chosen_id, "data": 0}
    with suppress(Unavailable):
        client.send({"title": "first", "address": {"type": "udp", "link": "127.0.0.1:9"}, "settings": settings})
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline:  # also when no answer came: it may have been accepted
        try:
            client.cancel(chosen_id)
        except NotFound:
            return
        except Unavailable:
            time.sleep(0.2)


def _send(client: Client, part: Part, start: float) -> list[dict[str, Any]]:
    """Sends a part at an instant of the monotonic clock; returns the answers that came."""
    answers: list[dict[str, Any]] = []
    time.sleep(max(0.0, start - time.monotonic()))
    with suppress(Unavailable):
        for answer in client.send_iter(part):
            if isinstance(answer, Accepted):
                answers.append({"ok": True, **msgspec.to_builtins(answer)})
            else:
                answers.append({"ok": False, "error": answer.as_dict()})
    return answers


def _be_child(client: Client, part: Part, start: float, writing: int) -> None:
    status = 1
    try:
        said = msgspec.json.encode(_send(client, part, start))
        client.close()  # which must not affect the parent's connection
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(said)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Serves batches until the input ends."""
    pairs: dict[str, _Pair] = {url: _Pair(url) for url in sys.argv[1:]}
    decoder = msgspec.json.Decoder(Batch)
    for line in sys.stdin.buffer:
        batch = decoder.decode(line)
        sys.stdout.buffer.write(msgspec.json.encode(pairs[batch.url].send(batch.parts)) + b"\n")
        sys.stdout.buffer.flush()
    for pair in pairs.values():
        pair.close()


if __name__ == "__main__":
    main()
