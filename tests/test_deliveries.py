"""Deliveries to sockets and pipes: real listeners, real FIFOs, and every way in which they fail."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.kinds import deliverer
from qtask.delivery.loop import Loop
from qtask.outcome import Answer, Failure
from qtask.task import Task
from tests.redis_server import free_port


def task(kind: str, link: str, data: Any, timeout: float = 5.0) -> Task:
    settings = {"time": 0, "data": data, "timeout": timeout}
    one = {"title": "t", "address": {"type": kind, "link": link}, "settings": settings}
    return msgspec.json.decode(msgspec.json.encode(one), type=Task)


def deliver(one: Task, folder: Path = Path("pipes")) -> Answer:
    """Delivers on a loop of its own; returns the answer or raises the failure."""
    loop = Loop()
    kind = deliverer(one.kind, loop, Config(pipe_dir=str(folder)))
    results: list[Answer | Failure] = []
    kind.start(Claim("id", 1, one, 0.0), results.append)
    while not results:
        loop.run_once()
    kind.close()
    loop.close()
    assert len(results) == 1
    if isinstance(results[0], Failure):
        raise results[0]
    return results[0]


class Listener:
    """Accepts one connection, reads to its end, answers, and keeps what it got."""

    def __init__(self, server: socket.socket, answer: bytes = b"", keep_open: bool = False) -> None:
        self.got = b""
        self.address = server.getsockname()
        self._server = server
        self._answer = answer
        self._keep_open = keep_open
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            while chunk := connection.recv(65_536):
                self.got += chunk
            with suppress(ConnectionError):  # the delivery reads a bounded answer and then hangs up
                connection.sendall(self._answer)
            if self._keep_open:
                self._over.wait(10)

    def close(self) -> None:
        self._over.set()
        self._thread.join(5)
        self._server.close()


@contextmanager
def listening(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0), **options: Any) -> Iterator[Listener]:
    server = socket.socket(family)
    server.bind(address)
    server.listen()
    listener = Listener(server, **options)
    try:
        yield listener
    finally:
        listener.close()


@pytest.mark.parametrize("data", [{"a": [1, 2.5, "é"]}, "text", None, [], 12345678901, {"big": "x" * 900_000}])
def test_socket_gets_the_json_of_the_data(data: Any) -> None:
    with listening() as listener:
        assert deliver(task("socket", f"127.0.0.1:{listener.address[1]}", data)) == Answer()
    assert msgspec.json.decode(listener.got) == data


def test_a_line_and_a_datagram_have_no_line_break_whoever_wrote_the_task(tmp_path: Path) -> None:
    """Another program may have put the task into the queue, in another layout than that in which QTask keeps it."""
    text = '{\r\n  "amount": 10.10,\n  "a": "\\u00e9\\n"\n}'
    sent = b'{"amount":10.10,"a":"\\u00e9\\n"}'

    def spread(kind: str, link: str, data: str) -> Task:
        head = f'{{"title":"t","address":{{"type":"{kind}","link":"{link}"}},"settings":{{"time":0,"data":'
        return msgspec.json.decode(f"{head}{data}}}}}", type=Task)

    with listening() as listener:
        deliver(spread("socket", f"127.0.0.1:{listener.address[1]}", text))
    assert listener.got == sent
    with bound() as receiver:
        deliver(spread("udp", f"127.0.0.1:{receiver.getsockname()[1]}", text))
        assert receiver.recv(1_000) == sent
    os.mkfifo(tmp_path / "orders")
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    deliver(spread("pipe", "orders", f'{{"data": {text}}}'), tmp_path)
    assert os.read(reader, 1_000) == sent + b"\n"
    os.close(reader)


def test_socket_by_name_ipv6_and_unix(tmp_path: Path) -> None:
    with listening() as listener:
        deliver(task("socket", f"localhost:{listener.address[1]}", 1))
    assert listener.got == b"1"
    with listening(socket.AF_INET6, ("::1", 0)) as listener:
        deliver(task("socket", f"[::1]:{listener.address[1]}", 2))
    assert listener.got == b"2"
    path = str(tmp_path / "socket")
    with listening(socket.AF_UNIX, path) as listener:
        deliver(task("socket", f"unix:{path}", 3))
    assert listener.got == b"3"


def test_socket_answer_is_read_and_bounded() -> None:
    with listening(answer=b"thank you") as listener:
        assert deliver(task("socket", f"127.0.0.1:{listener.address[1]}", 1)).text == "thank you"
    with listening(answer=b"y" * 1_000_000) as listener:
        assert deliver(task("socket", f"127.0.0.1:{listener.address[1]}", 1)).text == "y" * 2048


def test_socket_that_stays_open_counts_as_delivered() -> None:
    with listening(answer=b"busy", keep_open=True) as listener:
        assert deliver(task("socket", f"127.0.0.1:{listener.address[1]}", 1)).text == "busy"


def test_socket_failures_say_what_happened(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="refused") as refused:
        deliver(task("socket", f"127.0.0.1:{free_port()}", 1))
    assert refused.value.kind == "connect"
    with pytest.raises(Failure, match=r"no-such-host\.invalid") as unknown:
        deliver(task("socket", "no-such-host.invalid:80", 1))
    assert unknown.value.kind == "dns"
    with pytest.raises(Failure) as absent:
        deliver(task("socket", f"unix:{tmp_path}/absent", 1))
    assert absent.value.kind == "connect"


def test_socket_whose_receiver_never_reads_times_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(Failure) as late:
            deliver(task("socket", f"127.0.0.1:{port}", "x" * 20_000_000, timeout=0.3))
    assert late.value.kind == "timeout"


def test_pipe_gets_one_line_of_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "orders")
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    deliver(task("pipe", "orders", {"data": {"n": 1, "text": "a\nb"}}), tmp_path)
    deliver(task("pipe", "orders", {"data": [2]}), tmp_path)
    lines = os.read(reader, 65_536).splitlines()
    os.close(reader)
    assert [msgspec.json.decode(line) for line in lines] == [{"n": 1, "text": "a\nb"}, [2]]


def test_long_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "long")
    reader = os.open(tmp_path / "long", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    texts = [letter * 300_000 for letter in "abcd"]
    writers = [threading.Thread(target=deliver, args=(task("pipe", "long", {"data": t}), tmp_path)) for t in texts]
    for writer in writers:
        writer.start()
    got = b""
    while got.count(b"\n") < 4:
        got += os.read(reader, 65_536)
    for writer in writers:
        writer.join()
    os.close(reader)
    assert sorted(msgspec.json.decode(line) for line in got.splitlines()) == texts


def test_pipe_failures_say_what_happened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unread")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "unread")
    for name, kind in [("unread", "no_reader"), ("absent", "no_reader"), ("file", "protocol"), ("link", "connect")]:
        with pytest.raises(Failure) as failed:
            deliver(task("pipe", name, {"data": 1}), tmp_path)
        assert failed.value.kind == kind, name
    assert (tmp_path / "file").read_text() == ""


def test_a_full_pipe_times_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "full")
    reader = os.open(tmp_path / "full", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(Failure) as late:
        deliver(task("pipe", "full", {"data": "x" * 1_000_000}, timeout=0.2), tmp_path)
    os.close(reader)
    assert late.value.kind == "timeout"


@contextmanager
def bound(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((host, 0))
        receiver.settimeout(5)
        yield receiver


def test_udp_gets_the_json_of_the_data_as_one_datagram() -> None:
    with bound() as receiver:
        port = receiver.getsockname()[1]
        for data in ({"a": [1, "é"]}, None, "x" * 65_000):
            assert deliver(task("udp", f"127.0.0.1:{port}", data)) == Answer()
            assert msgspec.json.decode(receiver.recv(70_000)) == data
        deliver(task("udp", f"localhost:{port}", "by name"))
        assert receiver.recv(100) == b'"by name"'
    with bound(socket.AF_INET6, "::1") as receiver:
        deliver(task("udp", f"[::1]:{receiver.getsockname()[1]}", 6))
        assert receiver.recv(100) == b"6"


def test_udp_answer_is_kept() -> None:
    with bound() as receiver:

        def answer() -> None:
            _, sender = receiver.recvfrom(100)
            receiver.sendto(b"got it", sender)

        thread = threading.Thread(target=answer)
        thread.start()
        assert deliver(task("udp", f"127.0.0.1:{receiver.getsockname()[1]}", 1)).text == "got it"
        thread.join()


def test_udp_failures_say_what_happened() -> None:
    with bound() as receiver:
        port = receiver.getsockname()[1]
    with pytest.raises(Failure, match="refused") as refused:
        deliver(task("udp", f"127.0.0.1:{port}", 1))
    assert refused.value.kind == "connect"
    with pytest.raises(Failure, match=r"no-such-host\.invalid") as unknown:
        deliver(task("udp", "no-such-host.invalid:80", 1))
    assert unknown.value.kind == "dns"
