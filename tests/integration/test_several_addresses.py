"""A host name with several addresses, with both HTTP transports: failed and silent addresses are skipped.

The look-up of the system is replaced in a separate process, because libcurl does not use that of Python.
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
    print(json.dumps({"kind": failure.error}))
"""


@contextmanager
def silent(host: str, port: int) -> Iterator[None]:
    """An address at which attempts to connect get no reply, because its backlog is full."""
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
def test_next_address_is_tried_after_a_refusal(transport: str, addresses: str, tmp_path: Path) -> None:
    with lone_receiver() as receiver:
        assert send(transport, addresses, receiver.port, tmp_path, 20.0) == {"code": 200}
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("transport", ["requests", "curl"])
@pytest.mark.parametrize("addresses", ["127.0.0.2,127.0.0.1", "127.0.0.2,::1,127.0.0.1"])
def test_silent_address_does_not_delay_the_next(transport: str, addresses: str, tmp_path: Path) -> None:
    with lone_receiver() as receiver, silent("127.0.0.2", receiver.port):
        assert send(transport, addresses, receiver.port, tmp_path, 20.0) == {"code": 200}
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("transport", ["requests", "curl"])
def test_refusal_of_all_addresses_fails_as_connect(transport: str, tmp_path: Path) -> None:
    with lone_receiver() as receiver:
        assert send(transport, "127.0.0.2,::1,127.0.0.3", receiver.port, tmp_path, 20.0) == {"kind": "connect"}


@pytest.mark.parametrize("transport", ["requests", "curl"])
def test_silence_of_all_addresses_times_out(transport: str, tmp_path: Path) -> None:
    with lone_receiver() as receiver, silent("127.0.0.2", receiver.port):
        assert send(transport, "127.0.0.2", receiver.port, tmp_path, 1.0) == {"kind": "timeout"}
