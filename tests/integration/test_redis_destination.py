"""`redis` tasks, on a second real Redis: arrival, failures, and reuse of connections."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from redis import Redis

from qtask.destinations.parsing import check_task
from qtask.destinations.redis.deliverer import CONNECTIONS
from qtask.destinations.registry import destination_of
from qtask.model.errors import Refused
from qtask.run.server_binary import find_server
from qtask.store import tasks
from tests.support.certificates import authorities_folder, self_signed
from tests.support.command import qtask
from tests.support.delivering import BODIES, Deliveries, deliveries
from tests.support.live import Live
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

PASSWORD = "s3cret:/pass word"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of a receiver, with a password."""
    server = RedisServer(tmp_path_factory.mktemp("other"), password=PASSWORD)
    yield server
    server.kill()


@pytest.fixture
def theirs(other: RedisServer) -> Iterator[Redis]:
    with other.emptied() as client:
        client.config_set("maxmemory", 0)
        yield client


@pytest.fixture
def deliver() -> Iterator[Deliveries]:
    with deliveries("redis") as made:
        yield made


# --- arrival ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "arrives"), BODIES.values(), ids=BODIES)
def test_body_is_pushed_to_a_list(
    deliver: Deliveries, other: RedisServer, theirs: Redis, body: dict[str, Any], arrives: bytes
) -> None:
    assert deliver(other.url, {"rpush": "orders", **body}).text == "1"
    assert deliver(other.url, {"rpush": "orders", "text": "second"}).text == "2"
    assert theirs.lrange("orders", 0, -1) == [arrives, b"second"]


def test_message_is_published(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    with theirs.pubsub() as listening:
        listening.subscribe("news")
        until(lambda: theirs.pubsub_numsub("news")[0][1] == 1)
        answer = deliver(other.url, {"publish": "news", "json": {"a": 1}})
        assert (answer.text, answer.note) == ("1", "")
        got: Any = until(lambda: listening.get_message(ignore_subscribe_messages=True, timeout=1.0))
        assert got["data"] == b'{"a":1}'
    answer = deliver(other.url, {"publish": "nobody", "text": "x"})
    assert (answer.text, answer.note) == ("0", "nobody subscribes to the channel")


def test_entry_is_added_to_a_bounded_stream(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    fields = Raw(b'{"text": "a\\u00e9", "price": 10.10, "ok": true, "none": null, "list": [1, 2]}')
    answer = deliver(other.url, {"xadd": "events", "fields": fields})
    entries: Any = theirs.xrange("events")
    ((entry, written),) = entries
    assert answer.text == entry.decode()
    assert written == {
        b"text": "aé".encode(),
        b"price": b"10.10",
        b"ok": b"true",
        b"none": b"null",
        b"list": b"[1,2]",
    }
    theirs.config_set("stream-node-max-entries", 10)
    for number in range(50):
        deliver(other.url, {"xadd": "events", "fields": {"n": number}, "maxlen": 5})
    assert 5 <= theirs.xlen("events") < 30


def test_database_of_the_link_is_used(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    deliver(other.url.removesuffix("/0") + "/3", {"rpush": "there", "text": "x"})
    assert theirs.exists("there") == 0
    theirs.select(3)
    assert theirs.lrange("there", 0, -1) == [b"x"]


def test_unix_socket_is_supported(deliver: Deliveries, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--unixsocket", str(tmp_path / "redis.sock"))
    try:
        assert deliver(f"unix://{tmp_path}/redis.sock", {"rpush": "l", "text": "x"}).text == "1"
    finally:
        server.kill()


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "field", "words"),
    [
        (None, "missing_field", "settings.data", "exactly one of publish"),
        ({}, "missing_field", "settings.data", "exactly one of publish"),
        ({"publish": "a", "rpush": "b", "text": "x"}, "invalid_value", "settings.data.rpush", "both publish and rpush"),
        ({"publish": "", "text": "x"}, "invalid_value", "settings.data.publish", "a name is needed"),
        ({"publish": 7, "text": "x"}, "wrong_type", "settings.data.publish", "the name of a channel"),
        ({"publish": "a"}, "missing_field", "settings.data", "needs json, text or base64"),
        ({"rpush": "a", "text": "x", "json": 1}, "invalid_value", "settings.data.text", "one body is sent"),
        ({"rpush": "a", "base64": "?"}, "invalid_value", "settings.data.base64", "base64 is needed"),
        ({"rpush": "a", "text": "x", "fields": {"a": 1}}, "invalid_value", "settings.data.fields", "goes with xadd"),
        ({"rpush": "a", "text": "x", "maxlen": 1}, "invalid_value", "settings.data.maxlen", "goes with xadd"),
        ({"xadd": "a"}, "missing_field", "settings.data.fields", "at least one field"),
        ({"xadd": "a", "fields": {}}, "missing_field", "settings.data.fields", "at least one field"),
        ({"xadd": "a", "fields": {"a": 1}, "text": "x"}, "invalid_value", "settings.data.text", "has fields"),
        ({"xadd": "a", "fields": {"a": 1}, "maxlen": 0}, "invalid_value", "settings.data.maxlen", "at least 1"),
        ({"lpush": "a"}, "unknown_field", "settings.data.lpush", "its keys are: publish, xadd, rpush"),
    ],
)
def test_invalid_data_is_refused(data: Any, code: str, field: str, words: str) -> None:
    settings = {"time": 0} if data is None else {"time": 0, "data": data}
    address = {"type": "redis", "link": "redis://127.0.0.1/0"}
    with pytest.raises(Refused) as refused:
        check_task({"title": "t", "address": address, "settings": settings})
    assert (refused.value.code, refused.value.field) == (code, field)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("http://127.0.0.1/", "it must begin with redis://"),
        ("redis+sentinel://127.0.0.1/mymaster", "redis://, rediss:// or unix:// is needed"),
        ("redis:///0", "names no host"),
        ("redis://127.0.0.1/0?ssl_keyfile=/etc/passwd", "leave out ?ssl_keyfile"),
        ("redis://:s3cret/more@127.0.0.1/0", "percent-encode"),
        ("redis://" + "h" * 9_000, "at most 8192 characters"),
    ],
)
def test_invalid_link_is_refused_without_its_password(link: str, words: str) -> None:
    settings = {"time": 0, "data": {"rpush": "a", "text": "x"}}
    with pytest.raises(Refused) as refused:
        check_task({"title": "t", "address": {"type": "redis", "link": link}, "settings": settings})
    assert refused.value.field == "address.link"
    assert words in refused.value.message
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("link", "place"),
    [
        ("redis://ada:pw@h.example:6380/2", "h.example:6380"),
        ("rediss://h.example", "h.example"),
        ("unix:///run/redis.sock", "unix:/run/redis.sock"),
        ("redis://ada:p/w@h.example", "unknown"),
    ],
)
def test_logs_name_the_server_and_no_credentials(link: str, place: str) -> None:
    assert destination_of("redis", link) == place


# --- failures --------------------------------------------------------------------------------------------------


def test_each_failure_has_its_kind(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    push = {"rpush": "list", "text": "x"}
    here = f"127.0.0.1:{other.port}"
    theirs.set("list", "a text")
    wrong_type = deliver.failure(other.url, push)
    assert wrong_type.error == "rejected"
    assert wrong_type.message.startswith(f"{here}: WRONGTYPE")
    wrong_password = deliver.failure(f"redis://:wr0ng-word@{here}/0", push)
    assert (wrong_password.error, "wr0ng-word" in wrong_password.message) == ("rejected", False)
    assert deliver.failure(f"redis://{here}/0", push).error == "rejected"
    closed = free_port()
    assert deliver.failure(f"redis://127.0.0.1:{closed}/0", push).error == "connect"
    assert deliver.failure("redis://nosuch.invalid/0", push).error == "dns"
    assert deliver.failure("unix:///nonexistent/redis.sock", push).error == "connect"
    theirs.delete("list")
    theirs.config_set("maxmemory", 1)
    full = deliver.failure(other.url, push)
    assert (full.error, "maxmemory" in full.message) == ("unavailable", True)
    theirs.config_set("maxmemory", 0)
    assert deliver(other.url, push).text == "1"


def test_server_that_is_not_redis_fails_as_protocol(deliver: Deliveries) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        failed = deliver.failure(f"redis://127.0.0.1:{server.getsockname()[1]}/0", {"rpush": "l", "text": "x"})
    assert failed.error == "protocol"


def test_hanging_server_causes_a_timeout_and_does_not_delay_others(
    deliver: Deliveries, other: RedisServer, theirs: Redis, redis_server: RedisServer, redis: Redis
) -> None:
    push = {"rpush": "list", "text": "x"}
    deliver(other.url, push)
    other.signal(signal.SIGSTOP)
    try:
        hanging = [deliver.begin(other.url, push, timeout=1.0) for _ in range(30)]
        assert deliver(redis_server.url, push).text == "1"
        assert not any(hanging), "the healthy server was served at once"
        deliver.run(*hanging)
    finally:
        other.signal(signal.SIGCONT)
    assert {result.error for (result,) in hanging} == {"timeout"}  # type: ignore[union-attr]
    until(lambda: theirs.llen("list") >= 1)
    assert theirs.llen("list") <= 1 + CONNECTIONS, "tasks that waited for a connection were never sent"
    assert deliver(other.url, {"rpush": "after", "text": "x"}).text == "1"


# --- TLS -------------------------------------------------------------------------------------------------------


class TlsRedis:
    """A Redis with a second port that speaks only TLS, and the certificate of that port.

    Args:
        folder: gets the data of the server and the certificate.
    """

    def __init__(self, folder: Path) -> None:
        self_signed(folder)
        self.certificate = folder / "certificate.pem"
        self.port = free_port()
        self.link = f"rediss://127.0.0.1:{self.port}/0"
        own = str(self.certificate)
        self.server = RedisServer(
            folder,
            *("--tls-port", str(self.port), "--tls-cert-file", own, "--tls-key-file", own),
            *("--tls-ca-cert-file", own, "--tls-auth-clients", "no"),
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRedis]:
    # A server that was built with TLS ends because the certificate is missing; others do not know the option, or TLS.
    absent = [find_server(), "--port", "0", "--tls-port", "1", "--tls-cert-file", str(Path("absent.pem").absolute())]
    said = subprocess.run(absent, capture_output=True, text=True, timeout=30, check=False)
    if "Bad directive" in said.stdout + said.stderr or "Failed finding TLS support" in said.stdout:
        pytest.skip(f"{find_server()} was built without TLS")
    made = TlsRedis(tmp_path_factory.mktemp("tls"))
    yield made
    made.server.kill()


def test_rediss_link_delivers_over_tls_and_keeps_the_connection(tls: TlsRedis) -> None:
    with deliveries("redis", ca_file=str(tls.certificate)) as deliver, tls.server.client() as theirs:
        before: Any = theirs.info("stats")
        assert deliver(tls.link, {"rpush": "over-tls", "json": {"a": 1}}).text == "1"
        assert deliver(tls.link, {"rpush": "over-tls", "text": "second"}).text == "2"
        assert theirs.lrange("over-tls", 0, -1) == [b'{"a":1}', b"second"]
        after: Any = theirs.info("stats")
        assert after["total_connections_received"] - before["total_connections_received"] == 1


def test_rediss_link_trusts_a_folder_of_authorities(tls: TlsRedis, tmp_path: Path) -> None:
    folder = authorities_folder(tls.certificate, tmp_path / "authorities")
    with deliveries("redis", ca_file=str(folder)) as deliver:
        assert deliver(tls.link, {"rpush": "folder", "text": "x"}).text == "1"


def test_rediss_link_with_an_unknown_authority_fails_as_tls(tls: TlsRedis, tmp_path: Path) -> None:
    self_signed(tmp_path)
    push = {"rpush": "untrusted", "text": "x"}
    for ca_file in ("", str(tmp_path / "certificate.pem")):
        with deliveries("redis", ca_file=ca_file) as deliver:
            failed = deliver.failure(tls.link, push)
        assert (failed.error, "verify failed" in failed.message) == ("tls", True), failed.message
        assert failed.message.startswith(f"127.0.0.1:{tls.port}: ")
    absent = tmp_path / "absent.pem"
    with deliveries("redis", ca_file=str(absent)) as deliver:
        failed = deliver.failure(tls.link, push)
    assert failed.error == "tls"
    assert f"the certificates to trust, {absent}, do not exist" in failed.message
    with tls.server.client() as theirs:
        assert theirs.exists("untrusted") == 0


def test_rediss_link_with_the_certificate_of_another_host_fails_as_tls(tls: TlsRedis) -> None:
    with deliveries("redis", ca_file=str(tls.certificate)) as deliver:
        failed = deliver.failure(f"rediss://localhost:{tls.port}/0", {"rpush": "untrusted", "text": "x"})
    assert (failed.error, "verify failed" in failed.message) == ("tls", True), failed.message


def test_redis_link_to_a_port_with_tls_fails_as_connect(tls: TlsRedis) -> None:
    with deliveries("redis") as deliver:
        failed = deliver.failure(f"redis://127.0.0.1:{tls.port}/0", {"rpush": "plain", "text": "x"})
    assert failed.error == "connect", failed
    with tls.server.client() as theirs:
        assert theirs.exists("plain") == 0


# --- connections -----------------------------------------------------------------------------------------------


def connections(theirs: Redis) -> int:
    """The number of delivery connections to the other Redis, without that of the test."""
    return len(theirs.client_list()) - 1


def test_connections_are_kept_and_bounded(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    before: Any = theirs.info("stats")
    for _ in range(5):
        deliver(other.url, {"rpush": "list", "text": "x"})
    after: Any = theirs.info("stats")
    assert after["total_connections_received"] - before["total_connections_received"] == 1
    many = [deliver.begin(other.url, {"rpush": "list", "text": "x"}) for _ in range(200)]
    deliver.run(*many)
    assert theirs.llen("list") == 205
    assert connections(theirs) <= CONNECTIONS


def test_closed_idle_connection_costs_no_attempt(deliver: Deliveries, other: RedisServer, theirs: Redis) -> None:
    deliver(other.url, {"rpush": "list", "text": "x"})
    theirs.client_kill_filter(_type="normal", skipme=True)
    until(lambda: connections(theirs) == 0)
    assert deliver(other.url, {"rpush": "list", "text": "x"}).text == "2"


def test_close_closes_the_connections(other: RedisServer, theirs: Redis) -> None:
    until(lambda: connections(theirs) == 0)
    with deliveries("redis") as deliver:
        deliver(other.url, {"rpush": "list", "text": "x"})
        assert connections(theirs) == 1
    until(lambda: connections(theirs) == 0, what="no connection")


# --- the whole of QTask ----------------------------------------------------------------------------------------


def test_both_kinds_of_worker_deliver_retry_and_balance(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    receiver = RedisServer(second, password=PASSWORD)
    with Live(tmp_path) as live, receiver.client() as theirs:
        live.start("scheduler")
        theirs.config_set("maxmemory", 1)
        retry = {"attempts": 20, "backoff": "fixed", "base": 0.1}
        for queue in ("own", "stock"):
            with live.client(queue) as client:
                ids = [
                    client.redis(receiver.url, rpush=queue, json={"n": 1}, retry=retry).id,
                    client.redis(receiver.url, xadd=f"{queue}-events", fields={"n": 1}, retry=retry).id,
                ]
                wrong = client.redis(f"redis://:wr0ng-word@127.0.0.1:{receiver.port}/0", publish="c", data="x").id
            live.wait_queued(queue, 3)
            if queue == "own":
                live.start("worker", queue=queue)
            else:
                rq = ("rq", "worker", "-u", live.url, "-S", "rq.serializers.JSONSerializer", "-w", "rq.SimpleWorker")
                live.program(*rq, queue)
            for one in ids:
                until(lambda one=one: tasks.show(live.redis, one).outcomes, what="a first attempt")  # type: ignore[misc]
            theirs.config_set("maxmemory", 0)
            *delivered, dead = live.ended([*ids, wrong])
            theirs.config_set("maxmemory", 1)
            assert [(one.state, one.outcomes[0].error) for one in delivered] == [("delivered", "unavailable")] * 2
            assert (dead.state, len(dead.outcomes), dead.outcomes[0].error) == ("dead", 1, "rejected")
            assert "wr0ng-word" not in str(dead) and PASSWORD not in str(delivered)
            assert theirs.lrange(queue, 0, -1) == [b'{"n":1}']
            assert theirs.xlen(f"{queue}-events") == 1
            audit = qtask("audit", "--json", environment={"QTASK_REDIS_URL": live.url, "QTASK_QUEUE": queue})
            assert json.loads(audit.stdout)["balances"] is True, audit.stdout
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert "rejected" in logs and "wr0ng-word" not in logs
    receiver.kill()
