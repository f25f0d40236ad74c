"""HTTP/2 over TLS: used by the worker when the receiver offers it, and not by the transport that cannot."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived

from qtask.config import Config
from qtask.delivery.loop import Loop
from qtask.destinations.http import requests_transport as http_requests
from qtask.destinations.http.curl_transport import HttpDeliverer
from qtask.destinations.http.message import HttpRequest
from qtask.model.outcome import Answer, Failure
from tests.support.certificates import self_signed
from tests.support.redis_server import free_port
from tests.support.waiting import until

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
    """The URL of a real HTTP/2 server whose certificate the environment trusts."""
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
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("REQUESTS_CA_BUNDLE", certificate)
            yield f"https://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def request(url: str, number: int) -> HttpRequest:
    headers = (("User-Agent", "qtask"), ("QTask-Id", f"id-{number}"), ("Content-Type", "text/plain"))
    return HttpRequest("POST", url, headers, b"body %d" % number, 10.0)


def test_worker_uses_http2_and_shares_a_connection(receiver: str) -> None:
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


def test_requests_uses_http1_with_the_same_receiver(receiver: str) -> None:
    http_requests._kept.clear()
    seen = json.loads(http_requests.deliver(request(receiver, 7)).text)
    assert (seen["version"], seen["method"], seen["body"]) == ("1.1", "POST", "body 7")
    assert seen["headers"]["qtask-id"] == "id-7"


class Refusing:
    """Speaks HTTP/2: answers the first request, refuses or resets each later one, and counts them."""

    def __init__(self, folder: Path, code: ErrorCodes) -> None:
        self._context = self_signed(folder)
        self._context.set_alpn_protocols(["h2"])
        self._code = code
        self.attempts: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        protocol = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            protocol.initiate_connection()
            connection.sendall(protocol.data_to_send())
            while data := connection.recv(65_536):
                for event in protocol.receive_data(data):
                    if isinstance(event, RequestReceived):
                        self._on_request(protocol, event)
                connection.sendall(protocol.data_to_send())

    def _on_request(self, protocol: H2Connection, event: RequestReceived) -> None:
        assert event.stream_id is not None
        self.attempts.append(next(value.decode() for name, value in event.headers or () if name == b"qtask-attempt"))
        if len(self.attempts) == 1:
            protocol.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
        else:
            protocol.reset_stream(event.stream_id, self._code)


@pytest.mark.parametrize("code", [ErrorCodes.REFUSED_STREAM, ErrorCodes.HTTP_1_1_REQUIRED, ErrorCodes.INTERNAL_ERROR])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_refused_stream_is_not_sent_again_within_an_attempt(method: str, code: ErrorCodes, tmp_path: Path) -> None:
    receiver = Refusing(tmp_path, code)
    loop = Loop()
    deliverer = HttpDeliverer(loop, Config(ca_file=str(tmp_path / "certificate.pem")))
    results: list[Answer | Failure] = []
    for attempt in ("1", "2", "3"):
        headers = (("QTask-Attempt", attempt),)
        one = HttpRequest(method, receiver.url, headers, None, 10.0, own_connection=attempt == "3")
        deliverer.send(one, results.append)
        while len(results) < int(attempt):
            loop.run_once()
    deliverer.close()
    loop.close()
    receiver.close()
    assert receiver.attempts == ["1", "2", "3"]
    assert isinstance(results[0], Answer)
    for result in results[1:]:
        assert isinstance(result, Failure)
        assert result.error in ("connect", "protocol")
        assert result.message
    assert isinstance(results[2], Failure)
    assert not results[2].at_once, "a receiver that refuses on a new connection gets its backoff"
