"""A gateway process for tests, and a plain connection to its socket, as a program in any language has."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from redis import Redis

from qtask.store import keys
from tests.support.processes import Process
from tests.support.waiting import until

HOUR = 3_600.0


class Gateway:
    """`qtask gateway` on ports that the system chose; a context manager.

    Args:
        redis_url: its Redis.
        folder: gets its log.
        environment: added to its environment.
        settings: by their environment name without the prefix, such as `MAX_BYTES=1000`.

    Attributes:
        port, http_port: its ports.
        process: the process.
    """

    def __init__(
        self, redis_url: str, folder: Path, environment: Mapping[str, str] | None = None, **settings: object
    ) -> None:
        given = {"REDIS_URL": redis_url, "PORT": 0, "HTTP_PORT": 0, "LOG_FORMAT": "json", **settings}
        log = folder / f"gateway-{time.monotonic_ns()}.log"
        told = {f"QTASK_{name}": str(value) for name, value in given.items()}
        self.process = Process("gateway", {**told, **(environment or {})}, log)
        (listening,) = until(lambda: self._ended_or(self.events("listening")), 30, "a gateway that listens")
        self.port = int(listening["port"])
        self.http_port = int(listening["http_port"])

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.kill()

    @property
    def url(self) -> str:
        """Address for a client."""
        return f"socket://127.0.0.1:{self.port}"

    @property
    def http_url(self) -> str:
        """Address of its HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        """Its log so far."""
        return self.process.log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of one name in its log so far."""
        whole = self.log.rpartition("\n")[0]
        lines = (json.loads(line) for line in whole.splitlines())
        return [line for line in lines if line["event"] == name]

    def memory(self) -> int:
        """Its resident memory in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    def _ended_or(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self.process.running, self.log
        return events


class Connection:
    """One connection to the socket; a context manager. It fails after waiting for 30 s."""

    def __init__(self, port: int, *, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()
        self.socket.close()

    def reset(self) -> None:
        """Closes with a reset, as a process that is killed with unread answers does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.close()

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self.socket.sendall(data)

    def end(self) -> None:
        """Closes the sending side."""
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self) -> Any:
        """The next answer."""
        line = self._stream.readline()
        assert line.endswith(b"\n"), f"an answer was expected, but the connection ended with {line!r}"
        return json.loads(line)

    def ask(self, text: Any) -> Any:
        """Sends a dict (or any JSON value) as a line, and returns its answer."""
        self.send(line_of(text))
        return self.answer()

    def rest(self) -> list[Any]:
        """All answers up to the end of the connection."""
        return [json.loads(line) for line in self._stream]


def task(title: str = "t", delay: float = HOUR, **data: Any) -> dict[str, Any]:
    """A dict that is due in an hour, so that it stays in the schedule."""
    settings = {"time": delay, "data": data or {"n": 1}}
    return {"title": title, "address": {"type": "socket", "link": "127.0.0.1:9"}, "settings": settings}


def line_of(text: Any) -> bytes:
    """A text on one line, with its line break."""
    return json.dumps(text).encode() + b"\n"


def stored(redis: Redis, task_id: str) -> dict[str, Any]:
    """The dict that Redis holds for an id; fails if it is not in the schedule."""
    assert redis.zscore(keys.SCHEDULE, task_id) is not None, f"{task_id} is not in the schedule"
    data: Any = redis.hget(keys.job(task_id), "data")
    found: dict[str, Any] = json.loads(data)[2][0]
    return found


def scheduled(redis: Redis) -> list[str]:
    """The ids in the schedule, the next due first."""
    ids: Any = redis.zrange(keys.SCHEDULE, 0, -1)
    return [task_id.decode() for task_id in ids]


def title_of_id(redis: Redis, ids: Iterable[str]) -> dict[str, str]:
    """The titles that Redis holds for ids; ids that are not in the schedule are left out."""
    found = set(scheduled(redis)).intersection(ids)
    with redis.pipeline(transaction=False) as pipeline:
        for task_id in found:
            pipeline.hget(keys.job(task_id), "data")
        rows = pipeline.execute()
    return {task_id: json.loads(data)[2][0]["title"] for task_id, data in zip(found, rows, strict=True) if data}
