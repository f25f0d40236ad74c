"""A host name with several addresses, by both HTTP transports: the next address is tried, and a silent one not awaited.

The system's look-up is replaced in a process of its own, since libcurl does not go through Python's.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.preload import Preload
from tests.support.receiver import Receiver

SEND = """
import json, sys
from qtask.destinations.http.message import HttpRequest
from qtask.model.outcome import Failure
from tests.integration.test_conformance import Curl, http_requests

send = Curl() if sys.argv[1] == "curl" else http_requests.deliver
try:
    print(json.dumps({"code": send(HttpRequest("POST", sys.argv[2], (), b"x", float(sys.argv[3]))).code}))
except Failure as failure:
    print(json.dumps({"kind": failure.kind}))
"""


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """An address on which attempts to connect get no reply: its queue of connections is full."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((host, port))
        try:
            yield
        finally:
            for filler in fillers:
                filler.close()


@contextmanager
def lone_receiver() -> Iterator[Receiver]:
    """A receiver on 127.0.0.1 whose port refuses connections at the other addresses of these tests."""
    for _ in range(20):
        with Receiver() as receiver:
            if not any(_accepts(host, receiver.port) for host in ("127.0.0.2", "::1")):
                yield receiver
                return
    raise AssertionError("no port is free at all addresses")


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1.0).close()
    except OSError:
        return False
    return True


def send(transport: str, addresses: str, port: int, folder: Path, seconds: float) -> dict[str, object]:
    preload = Preload("addresses", "UNUSED", folder)
    done = subprocess.run(
        [sys.executable, "-c", SEND, transport, f"http://several.test:{port}/", str(seconds)],
        env={**os.environ, **preload.environment, "ADDRESSES": addresses},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("transport", ["requests", "curl"])
@pytest.mark.parametrize(
    "addresses", ["127.0.0.2,127.0.0.1", "::1,127.0.0.2,127.0.0.1", "127.0.0.2,::1,127.0.0.1", "127.0.0.1,::1"]
)
def test_the_next_address_is_tried_after_a_refusal(transport: str, addresses: str, tmp_path: Path) -> None:
    with lone_receiver() as receiver:
        assert send(transport, addresses, receiver.port, tmp_path, 20.0) == {"code": 200}
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("transport", ["requests", "curl"])
@pytest.mark.parametrize("addresses", ["127.0.0.2,127.0.0.1", "127.0.0.2,::1,127.0.0.1"])
def test_a_silent_address_is_not_awaited(transport: str, addresses: str, tmp_path: Path) -> None:
    with Receiver() as receiver, silent("127.0.0.2", receiver.port):
        assert send(transport, addresses, receiver.port, tmp_path, 20.0) == {"code": 200}
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("transport", ["requests", "curl"])
def test_addresses_that_all_refuse_fail(transport: str, tmp_path: Path) -> None:
    with Receiver() as receiver:
        assert send(transport, "127.0.0.2,::1,127.0.0.3", receiver.port, tmp_path, 20.0) == {"kind": "connect"}


@pytest.mark.parametrize("transport", ["requests", "curl"])
def test_addresses_that_are_all_silent_time_out(transport: str, tmp_path: Path) -> None:
    with Receiver() as receiver, silent("127.0.0.2", receiver.port):
        assert send(transport, "127.0.0.2", receiver.port, tmp_path, 1.0) == {"kind": "timeout"}
