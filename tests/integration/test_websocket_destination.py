"""`websocket` tasks, on real servers of the package `websockets`: arrival and failures."""

from __future__ import annotations

import base64
import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from qtask.destinations.parsing import check_task
from qtask.destinations.registry import destination_of
from qtask.model.errors import Refused
from qtask.model.outcome import ANSWER_LIMIT_BYTES, READ_LIMIT_BYTES, Answer
from tests.support.certificates import self_signed
from tests.support.command import qtask
from tests.support.delivering import BODIES, Deliveries, deliveries
from tests.support.live import Live
from tests.support.redis_server import free_port
from tests.support.waiting import until

Handler = Callable[[ServerConnection], None]


class Receiver:
    """A WebSocket server.

    Attributes:
        messages: those received, each with its connection.
    """

    def __init__(self, behave: Handler | None = None, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        self.messages: list[tuple[ServerConnection, str | bytes]] = []
        self._behave = behave
        quiet = logging.Logger("receiver", logging.CRITICAL)
        self._server: Server = serve(
            self._handle, "127.0.0.1", 0, ssl=tls, logger=quiet, process_request=_answer_request, **options
        )
        self.port = self._server.socket.getsockname()[1]
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _handle(self, connection: ServerConnection) -> None:
        try:
            for message in connection:
                self.messages.append((connection, message))
                if self._behave is not None:
                    self._behave(connection)
        except ConnectionClosed:
            return

    def close(self) -> None:
        """Stops it."""
        self._server.shutdown()
        self._thread.join(30)


def _answer_request(connection: ServerConnection, request: Request) -> Response | None:
    if not request.path.startswith("/status/"):
        return None
    response = connection.respond(HTTPStatus(int(request.path[8:])), "no WebSocket here")
    response.headers["Retry-After"] = "7"
    return response


@contextmanager
def receiving(behave: Handler | None = None, tls: ssl.SSLContext | None = None, **options: Any) -> Iterator[Receiver]:
    receiver = Receiver(behave, tls, **options)
    try:
        yield receiver
    finally:
        receiver.close()


@pytest.fixture
def deliver() -> Iterator[Deliveries]:
    with deliveries("websocket") as made:
        yield made


# --- arrival ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "arrives"),
    [*BODIES.values(), ({"text": "x" * 900_000}, b"x" * 900_000)],
    ids=[*BODIES, "large"],
)
def test_message_arrives(deliver: Deliveries, body: dict[str, Any], arrives: bytes) -> None:
    with receiving(max_size=None) as receiver:
        assert deliver(receiver.url, body) == Answer()
        until(lambda: receiver.messages)
        ((_, message),) = receiver.messages
    assert message == (arrives if "base64" in body else arrives.decode())


def test_handshake_has_the_path_the_headers_and_the_id_of_the_task(deliver: Deliveries) -> None:
    with receiving() as receiver:
        url = receiver.url.replace("//", "//ada:s%3Acret@") + "/room/ä?x=1 2".replace(" ", "%20")
        deliver(url, {"text": "x", "headers": {"X-Room": "7", "User-Agent": "mine"}})
        until(lambda: receiver.messages)
        ((connection, _),) = receiver.messages
    request = connection.request
    assert request is not None
    assert request.path == "/room/%C3%A4?x=1%202"
    headers = request.headers
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"ada:s:cret").decode()
    assert (headers["X-Room"], headers["User-Agent"]) == ("7", "mine")
    assert (headers["QTask-Id"], headers["QTask-Attempt"]) == ("id-1", "1")
    assert headers["QTask-Due"] == "1970-01-01T00:00:01.000Z"


def test_subprotocol_must_be_accepted(deliver: Deliveries) -> None:
    with receiving(subprotocols=[Subprotocol("chat")]) as receiver:
        assert deliver(receiver.url, {"text": "x", "subprotocol": "chat"}) == Answer()
        assert deliver.failure(receiver.url, {"text": "x", "subprotocol": "other"}).error in ("status", "rejected")
    with receiving() as receiver:
        assert deliver.failure(receiver.url, {"text": "x", "subprotocol": "chat"}).error == "rejected"
        assert receiver.messages == []


def test_answer_is_awaited_and_bounded(deliver: Deliveries) -> None:
    with receiving(lambda connection: connection.send("thank you")) as receiver:
        assert deliver(receiver.url, {"text": "x", "answer": True}) == Answer(text="thank you")
    with receiving(lambda connection: connection.send(["in ", "several ", "parts"])) as receiver:
        assert deliver(receiver.url, {"text": "x", "answer": True}).text == "in several parts"
    with receiving(lambda connection: connection.send("y" * 10_000)) as receiver:
        assert deliver(receiver.url, {"text": "x", "answer": True}).text == "y" * ANSWER_LIMIT_BYTES
    with receiving(lambda connection: connection.send("y" * (READ_LIMIT_BYTES + 1))) as receiver:
        answer = deliver(receiver.url, {"text": "x", "answer": True})
    assert (answer.text, "was not read" in answer.note) == ("", True)


def test_many_deliveries_at_once(deliver: Deliveries) -> None:
    with receiving(lambda connection: connection.send("ok")) as receiver:
        results = [deliver.begin(receiver.url, {"json": n, "answer": True}, timeout=20) for n in range(100)]
        deliver.run(*results)
        assert results == [[Answer(text="ok")]] * 100
        assert sorted(int(message) for _, message in receiver.messages) == list(range(100))


# --- TLS -------------------------------------------------------------------------------------------------------


def test_ca_file_sets_the_trusted_authorities(tmp_path: Path) -> None:
    with receiving(lambda connection: connection.send("ok"), self_signed(tmp_path)) as receiver:
        with deliveries("websocket", ca_file=str(tmp_path / "certificate.pem")) as deliver:
            assert deliver(receiver.url, {"text": "x" * 300_000, "answer": True}).text == "ok"
            assert deliver(receiver.url, {"text": "again"}) == Answer()
        with deliveries("websocket") as deliver:
            untrusted = deliver.failure(receiver.url, {"text": "x"})
        with deliveries("websocket", ca_file=str(tmp_path / "absent.pem")) as deliver:
            absent = deliver.failure(receiver.url, {"text": "x"})
        assert len(receiver.messages) == 2
    assert (untrusted.error, "self-signed certificate" in untrusted.message) == ("tls", True)
    assert (absent.error, "absent.pem" in absent.message) == ("tls", True)


# --- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1003, "rejected"),
        (1008, "rejected"),
        (4001, "rejected"),
        (1011, "unavailable"),
        (1013, "unavailable"),
        (1000, "protocol"),
    ],
)
def test_close_instead_of_an_answer_fails(deliver: Deliveries, code: int, kind: str) -> None:
    with receiving(lambda connection: connection.close(code, "not now")) as receiver:
        failure = deliver.failure(receiver.url, {"text": "x", "answer": True})
    assert failure.error == kind
    assert f"{code} not now" in failure.message


@contextmanager
def closing_at_once(code: int) -> Iterator[str]:
    """A WebSocket server that closes together with its answer to the handshake."""

    def answer() -> None:
        protocol = ServerProtocol()
        connection, _ = server.accept()
        with connection:
            while not (events := protocol.events_received()):
                protocol.receive_data(connection.recv(10_000))
            (request,) = events
            assert isinstance(request, Request)
            protocol.send_response(protocol.accept(request))
            protocol.send_close(code)
            connection.sendall(b"".join(protocol.data_to_send()))
            connection.recv(10_000)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.getsockname()[1]}"
        thread.join(30)


@pytest.mark.parametrize(("code", "kind"), [(1000, "connect"), (1008, "rejected"), (1012, "unavailable")])
@pytest.mark.parametrize("data", [{"text": "x"}, {"text": "x" * 900_000}], ids=["small", "large"])
def test_close_before_reading_fails(deliver: Deliveries, data: dict[str, Any], code: int, kind: str) -> None:
    with closing_at_once(code) as url:
        assert deliver.failure(url, data).error == kind


@pytest.mark.parametrize("status", [301, 404, 429, 503])
def test_http_status_instead_of_the_handshake_fails(deliver: Deliveries, status: int) -> None:
    with receiving() as receiver:
        failure = deliver.failure(f"{receiver.url}/status/{status}", {"text": "x"})
    assert (failure.error, failure.answer.code, failure.retry_after) == ("status", status, "7")
    assert failure.answer.text == "no WebSocket here"


def test_refused_connection_and_unknown_host_fail(deliver: Deliveries) -> None:
    assert deliver.failure(f"ws://127.0.0.1:{free_port()}/", {"text": "x"}).error == "connect"
    assert deliver.failure("ws://nosuch.invalid/", {"text": "x"}).error == "dns"


@contextmanager
def answering(*, reads: bool, says: bytes = b"", stays: bool = False) -> Iterator[str]:
    """A server that does not speak WebSocket."""
    over = threading.Event()

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            if reads:
                connection.recv(10_000)
            connection.sendall(says)
            if stays:
                over.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.getsockname()[1]}"
        over.set()
        thread.join(30)


def test_server_that_is_not_websocket_fails(deliver: Deliveries) -> None:
    with answering(reads=True, says=b"220 mail.example ESMTP\r\n", stays=True) as url:
        assert deliver.failure(url, {"text": "x"}).error == "protocol"
    with answering(reads=True, says=b"HTTP/1.1 101 Switching Protocols\r\n\r\n", stays=True) as url:
        assert deliver.failure(url, {"text": "x"}).error == "protocol"
    with answering(reads=True) as url:
        broken = deliver.failure(url, {"text": "x"})
    assert (broken.error, "before the handshake" in broken.message) == ("connect", True)
    with answering(reads=True, stays=True) as url:
        slow = deliver.failure(url, {"text": "x"}, timeout=0.3)
    assert (slow.error, "did not complete the handshake" in slow.message) == ("timeout", True)


def test_missing_answer_causes_a_timeout(deliver: Deliveries) -> None:
    over = threading.Event()

    def hang(connection: ServerConnection) -> None:
        over.wait(60)

    with receiving(hang) as receiver:
        failure = deliver.failure(receiver.url, {"text": "x", "answer": True}, timeout=0.3)
        over.set()
    assert (failure.error, "did not answer within 0.3 s" in failure.message) == ("timeout", True)


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "field", "words"),
    [
        (None, "missing_field", "settings.data", "json, text or base64"),
        ({"text": "x", "json": 1}, "invalid_value", "settings.data.text", "one message is sent"),
        ({"base64": "?"}, "invalid_value", "settings.data.base64", "base64 is needed"),
        ({"text": 7}, "wrong_type", "settings.data.text", "text is needed"),
        ({"text": "x", "answer": 1}, "wrong_type", "settings.data.answer", "true or false"),
        ({"text": "x", "headers": {"A": 1}}, "wrong_type", "settings.data.headers.A", "text is needed"),
        ({"text": "x", "headers": {"Host": "h"}}, "invalid_value", "settings.data.headers.Host", "the handshake"),
        ({"text": "x", "headers": {"Sec-WebSocket-Key": "k"}}, "invalid_value", None, "the handshake"),
        ({"text": "x", "headers": {"QTask-Id": "k"}}, "invalid_value", "settings.data.headers.QTask-Id", "reserved"),
        ({"text": "x", "subprotocol": "a b"}, "invalid_value", "settings.data.subprotocol", "letters"),
        ({"message": "x"}, "unknown_field", "settings.data.message", "its keys are: json, text, base64"),
    ],
)
def test_invalid_data_is_refused(data: Any, code: str, field: str | None, words: str) -> None:
    settings = {"time": 0} if data is None else {"time": 0, "data": data}
    with pytest.raises(Refused) as refused:
        check_task({"title": "t", "address": {"type": "websocket", "link": "ws://h/"}, "settings": settings})
    assert refused.value.code == code
    assert field is None or refused.value.field == field
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("http://h/", "begins with ws:// or wss://"),
        ("ws:///x", "names no host"),
        ("ws://h:0/", "a port is a number"),
        ("wss://h/a b", "not contain blanks"),
        ("ws://h/#part", "no fragment"),
        ("ws://ada:s3cret/pw@h/", "***"),
    ],
)
def test_invalid_link_is_refused_without_its_password(link: str, words: str) -> None:
    address = {"type": "websocket", "link": link}
    with pytest.raises(Refused) as refused:
        check_task({"title": "t", "address": address, "settings": {"time": 0, "data": {"text": "x"}}})
    assert refused.value.field == "address.link"
    assert words in refused.value.message
    assert "s3cret" not in str(refused.value)


def test_logs_name_the_host_and_no_credentials() -> None:
    assert destination_of("websocket", "wss://ada:pw@h.example:8443/room?token=x") == "h.example:8443"
    assert destination_of("websocket", "nonsense") == "unknown"


# --- the whole of QTask ----------------------------------------------------------------------------------------


def test_both_kinds_of_worker_deliver_and_retry(tmp_path: Path) -> None:
    count = {"own": 0, "stock": 0}

    def behave(connection: ServerConnection) -> None:
        assert connection.request is not None
        queue = connection.request.path[1:]
        count[queue] += 1
        if count[queue] == 1:
            connection.close(1013, "not yet")
        else:
            connection.send(f"got {connection.request.headers['QTask-Attempt']}")

    with Live(tmp_path) as live, receiving(behave) as receiver:
        live.start("scheduler")
        retry = {"attempts": 3, "backoff": "fixed", "base": 0.1}
        for queue in count:
            with live.client(queue) as client:
                wanted = client.websocket(f"{receiver.url}/{queue}", json={"n": 1}, answer=True, retry=retry).id
                lost = client.websocket(f"{receiver.url}/status/404", data="x").id
            live.wait_queued(queue, 2)
            if queue == "own":
                live.start("worker", queue=queue)
            else:
                rq = ("rq", "worker", "-u", live.url, "-S", "rq.serializers.JSONSerializer", "-w", "rq.SimpleWorker")
                live.program(*rq, queue)
            delivered, dead = live.ended([wanted, lost])
            assert [(one.error, one.answer) for one in delivered.outcomes] == [("unavailable", ""), ("", "got 2")]
            assert (dead.state, [(one.error, one.code) for one in dead.outcomes]) == ("dead", [("status", 404)])
            audit = qtask("audit", "--json", environment={"QTASK_REDIS_URL": live.url, "QTASK_QUEUE": queue})
            assert json.loads(audit.stdout)["balances"] is True, audit.stdout
        assert [message for _, message in receiver.messages] == ['{"n":1}'] * 4
