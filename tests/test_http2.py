"""HTTP/2 over TLS: spoken by the worker where the receiver offers it, and not by the transport that cannot."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtask.config import Config
from qtask.delivery import http_requests
from qtask.delivery.http_curl import HttpDeliverer
from qtask.delivery.http_request import HttpRequest
from qtask.delivery.loop import Loop
from qtask.outcome import Answer, Failure
from tests.certificates import self_signed
from tests.redis_server import free_port
from tests.waiting import until

APPLICATION = """
import json


async def application(scope, receive, send):
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {"version": scope["http_version"], "method": scope["method"], "headers": headers, "body": body.decode()}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
"""


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server that speaks HTTP/2, and whose certificate the environment trusts."""
    folder: Path = tmp_path_factory.mktemp("http2")
    self_signed(folder)
    (folder / "application.py").write_text(APPLICATION)
    port = free_port()
    certificate = str(folder / "certificate.pem")
    command = [
        *(sys.executable, "-m", "hypercorn", "--workers", "0"),
        *("--bind", f"127.0.0.1:{port}", "--certfile", certificate, "--keyfile", certificate),
        "application:application",
    ]
    process = subprocess.Popen(command, cwd=folder)
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REQUESTS_CA_BUNDLE", certificate)
            yield f"https://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def request(url: str, number: int) -> HttpRequest:
    headers = (("User-Agent", "qtask"), ("QTask-Id", f"id-{number}"), ("Content-Type", "text/plain"))
    return HttpRequest("POST", url, headers, b"body %d" % number, 10.0)


def test_the_worker_speaks_http2_and_shares_a_connection(receiver: str) -> None:
    loop = Loop()
    deliverer = HttpDeliverer(loop, Config(concurrency=100))
    results: list[Answer | Failure] = []
    deliverer.send(request(receiver, 0), results.append)
    while not results:
        loop.run_once()
    for number in range(1, 60):
        deliverer.send(request(receiver, number), results.append)
    while len(results) < 60:
        loop.run_once()
    deliverer.close()
    loop.close()
    seen = [json.loads(result.text) for result in results if isinstance(result, Answer)]
    assert {one["version"] for one in seen} == {"2"}
    assert {one["body"] for one in seen} == {f"body {number}" for number in range(60)}
    assert {one["headers"]["qtask-id"] for one in seen} == {f"id-{number}" for number in range(60)}


def test_requests_speaks_http1_to_the_same_receiver(receiver: str) -> None:
    http_requests._kept.clear()
    seen = json.loads(http_requests.deliver(request(receiver, 7)).text)
    assert (seen["version"], seen["method"], seen["body"]) == ("1.1", "POST", "body 7")
    assert seen["headers"]["qtask-id"] == "id-7"
