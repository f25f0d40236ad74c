"""Deliveries to sockets and pipes: real listeners, real FIFOs, and every way in which they fail."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qtask.config import Config
from qtask.delivery.claim import Claim, Done
from qtask.delivery.deliverer import deliverer
from qtask.delivery.exchange import Exchange
from qtask.delivery.loop import WRITE, Loop
from qtask.destinations.parsing import read_task
from qtask.model.outcome import Answer, Failure
from qtask.model.task import Task
from tests.support.descriptors import no_descriptors, open_descriptors
from tests.support.receiver import Receiver
from tests.support.redis_server import free_port
from tests.support.waiting import until


def task(kind: str, link: str, data: Any = 1, timeout: float = 30.0) -> Task:
    settings = {"time": 0, "data": data, "timeout": timeout}
    one = {"title": "t", "address": {"type": kind, "link": link}, "settings": settings}
    return read_task(msgspec.json.encode(one))


def deliver(one: Task, folder: Path = Path("pipes")) -> Answer:
    """Delivers on a loop of its own; returns the answer or raises the failure. Checks that nothing is left behind."""
    loop = Loop()
    kind = deliverer(one.type, loop, Config(pipe_dir=str(folder)))
    results: list[Answer | Failure] = []
    kind.start(Claim("id", 1, one, 0.0), results.append)
    while not results:
        loop.run_once()
    assert loop.waiting == 0
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
            with suppress(ConnectionError):  # the delivery reads a bounded answer and then closes
                connection.sendall(self._answer)
            if self._keep_open:
                self._over.wait(60)

    def close(self) -> None:
        self._over.set()
        self._thread.join(30)
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


def test_line_and_datagram_have_no_line_break_in_any_source_layout(tmp_path: Path) -> None:
    """Another program may have put the task into the queue in a different layout from QTask's."""
    text = '{\r\n  "amount": 10.10,\n  "a": "\\u00e9\\n"\n}'
    sent = b'{"amount":10.10,"a":"\\u00e9\\n"}'

    def spread(kind: str, link: str, data: str) -> Task:
        head = f'{{"title":"t","address":{{"type":"{kind}","link":"{link}"}},"settings":{{"time":0,"data":'
        return read_task(f"{head}{data}}}}}".encode())

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


def test_socket_by_name_ipv6_and_unix_is_supported(tmp_path: Path) -> None:
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


def test_socket_failures_name_their_cause(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="refused") as refused:
        deliver(task("socket", f"127.0.0.1:{free_port()}", 1))
    assert refused.value.error == "connect"
    with pytest.raises(Failure, match=r"no-such-host\.invalid") as unknown:
        deliver(task("socket", "no-such-host.invalid:80", 1))
    assert unknown.value.error == "dns"
    with pytest.raises(Failure) as absent:
        deliver(task("socket", f"unix:{tmp_path}/absent", 1))
    assert absent.value.error == "connect"


def test_socket_whose_receiver_never_reads_times_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(Failure) as late:
            deliver(task("socket", f"127.0.0.1:{port}", "x" * 20_000_000, timeout=0.3))
    assert late.value.error == "timeout"


def reset(connection: socket.socket) -> None:
    """Closes a connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def receiving(receive: Callable[[socket.socket], None], window: int = 0) -> Iterator[str]:
    """The address of a receiver that handles its connection with the given function."""
    with socket.socket() as server:
        if window:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        server.bind(("127.0.0.1", 0))
        server.listen()
        thread = threading.Thread(target=lambda: receive(server.accept()[0]))
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def read_to_the_end(connection: socket.socket) -> int:
    return len(b"".join(iter(lambda: connection.recv(65_536), b"")))


@pytest.mark.parametrize("size", [1, 1_000, 200_000, 1_000_000])
def test_socket_that_resets_after_reading_everything_counts_as_delivered(size: int) -> None:
    read = []

    def receive(connection: socket.socket) -> None:
        read.append(read_to_the_end(connection))
        reset(connection)

    for _ in range(20):
        with receiving(receive) as place:
            assert deliver(task("socket", place, "x" * size)) == Answer()
    assert read == [size + 2] * 20


def test_answer_before_a_reset_is_kept() -> None:
    def receive(connection: socket.socket) -> None:
        read_to_the_end(connection)
        connection.sendall(b"taken")
        time.sleep(0.1)  # else the reset would overtake it
        reset(connection)

    with receiving(receive) as place:
        assert deliver(task("socket", place, 1)) == Answer(text="taken")


@pytest.mark.parametrize("ending", [reset, socket.socket.close])
def test_socket_that_resets_before_reading_everything_fails(ending: Callable[[socket.socket], None]) -> None:
    def receive(connection: socket.socket) -> None:
        connection.recv(1_000)
        time.sleep(0.1)
        ending(connection)

    for size in (1_000_000, 8_000_000):
        with receiving(receive, window=10_000) as place, pytest.raises(Failure, match="broke the connection") as broken:
            deliver(task("socket", place, "x" * size))
        assert broken.value.error == "connect"


def test_unix_socket_closed_with_unread_data_fails(tmp_path: Path) -> None:
    """For Unix sockets, the kernel resets a connection only in this case."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()

        def receive() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            time.sleep(0.1)
            connection.close()

        thread = threading.Thread(target=receive)
        thread.start()
        with pytest.raises(Failure, match="broke the connection"):
            deliver(task("socket", f"unix:{tmp_path}/socket", "x" * 1_000))
        thread.join()


def test_silence_counts_as_delivered_only_when_the_receiver_has_everything() -> None:
    """Data in our own kernel has not reached the receiver, however long it is silent."""
    over = threading.Event()

    def receive_never(connection: socket.socket) -> None:
        over.wait(60)
        connection.close()

    with receiving(receive_never, window=10_000) as place:
        with pytest.raises(Failure, match="did not take the data within 2 s") as late:
            deliver(task("socket", place, "x" * 400_000, timeout=2))
        over.set()
    assert late.value.error == "timeout"

    def receive_late(connection: socket.socket) -> None:
        time.sleep(1.5)
        read_to_the_end(connection)
        over.wait(60)
        connection.close()

    over.clear()
    with receiving(receive_late, window=10_000) as place:
        assert deliver(task("socket", place, "x" * 400_000)) == Answer()
        over.set()


def test_unix_socket_with_a_full_backlog_is_retried(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(path)
        server.listen(0)
        other.connect(path)
        with pytest.raises(Failure, match=f"no connection within 0.3 s to {path}: its backlog is full") as late:
            deliver(task("socket", f"unix:{path}", 1, timeout=0.3))
        assert late.value.error == "timeout"

        def serve() -> None:
            time.sleep(0.2)
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(connection.recv(100))

        thread = threading.Thread(target=serve)
        thread.start()
        other.sendall(b"x")
        assert deliver(task("socket", f"unix:{path}", 1)).text == "1"
        thread.join()


def test_without_descriptors_a_delivery_fails_and_the_next_one_succeeds(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "orders")
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    with listening() as listener, bound() as receiver, Receiver() as http:
        port, udp_port = listener.address[1], receiver.getsockname()[1]
        links = {"socket": f"127.0.0.1:{port}", "udp": f"127.0.0.1:{udp_port}", "pipe": "orders", "http": http.url}
        data: dict[str, Any] = {"pipe": {"data": 1}, "http": {}}
        warm_up(http.url)
        loop = Loop()
        for kind, link in links.items():
            one = deliverer(task(kind, link).type, loop, Config(pipe_dir=str(tmp_path)))
            results: list[Answer | Failure] = []
            claim = Claim("id", 1, task(kind, link, data.get(kind, 1)), 0.0)
            with no_descriptors():
                one.start(claim, results.append)
                while not results:
                    loop.run_once()
            (failed,) = results
            assert isinstance(failed, Failure) and failed.error == "connect", kind
            assert loop.waiting == 0 or kind == "http"
            one.start(claim, results.append)
            while len(results) < 2:
                loop.run_once()
            assert isinstance(results[1], Answer), (kind, results[1])
            one.close()
        loop.close()
    os.close(reader)


def warm_up(url: str) -> None:
    """Loads all modules and certificates that deliveries need, so that descriptors are used for connections only."""
    loop = Loop()
    one = deliverer("http", loop, Config())
    results: list[Answer | Failure] = []
    one.start(Claim("id", 1, task("http", url, {}), 0.0), results.append)
    while not results:
        loop.run_once()
    one.close()
    loop.close()


def test_deliveries_leak_no_descriptors_or_threads(tmp_path: Path) -> None:
    """In every kind of failure."""
    os.mkfifo(tmp_path / "unread")
    (tmp_path / "file").write_text("")
    closed = free_port()
    failing = (
        *[("socket", f"{host}:{closed}") for host in ("127.0.0.1", "localhost", "[::1]", "no-such-host.invalid")],
        *[("udp", f"{host}:{closed}") for host in ("127.0.0.1", "localhost", "[::1]", "255.255.255.255")],
        *[("pipe", name) for name in ("unread", "absent", "file")],
        ("socket", f"unix:{tmp_path}/absent"),
    )
    counts = []
    for _ in range(3):
        for kind, link in failing * 3:
            with pytest.raises(Failure):
                deliver(task(kind, link, {"data": 1}), tmp_path)
        until(lambda: not [one for one in threading.enumerate() if one.name == "resolver"], what="the threads to end")
        counts.append(len(open_descriptors()))
    assert counts[-1] < counts[0] + len(failing), "receivers of other tests may open or close a few meanwhile"


class Faulty(Exchange):
    """A delivery with an exception in one of its steps."""

    def __init__(self, loop: Loop, step: str, done: Done) -> None:
        super().__init__(loop, Claim("FAULTY", 1, task("socket", "a:1", 1), 0.0), done)
        self.step = step
        self.released = 0
        self.ours, self.theirs = socket.socketpair()

    def begin(self) -> None:
        if self.step == "begin":
            raise ValueError("defect")
        if self.step == "timer":
            self.set_timer(0.0, self.on_timer)
        else:
            self.set_timer(self.deadline, self.on_timer)
            self.loop.watch(self.ours.fileno(), WRITE, self.on_writable, self.on_error)

    def on_timer(self) -> None:
        raise ValueError("defect")

    def on_writable(self, events: int) -> None:
        if self.step == "descriptor":
            raise ValueError("defect")
        self.end(Answer(text="good"))

    def release(self) -> None:
        self.released += 1
        self.loop.unwatch(self.ours.fileno())
        self.ours.close()
        self.theirs.close()
        if self.step == "release":
            raise ValueError("defect")


def test_delivery_that_raises_does_not_affect_others(caplog: pytest.LogCaptureFixture) -> None:
    defects: list[Exception] = []
    loop = Loop(defects.append)
    results: dict[str, Answer | Failure] = {}
    steps = ("begin", "timer", "descriptor", "none")
    all_of_them = [Faulty(loop, step, partial(results.__setitem__, step)) for step in steps]
    for one in all_of_them:
        one.start()
    while len(results) < len(steps):
        loop.run_once()
    assert results["none"] == Answer(text="good")
    for step in steps[:-1]:
        failure = results[step]
        assert isinstance(failure, Failure)
        assert (failure.error, failure.message) == ("internal", "QTask could not deliver this: ValueError: defect")
    assert [one.released for one in all_of_them] == [1] * 4
    assert loop.waiting == 0
    assert defects == []
    assert [record.getMessage() for record in caplog.records] == ["delivery_broke"] * 3
    assert all(vars(record)["task"] == "FAULTY" and record.exc_info is not None for record in caplog.records)
    loop.close()


def test_exception_in_the_result_callback_is_not_a_delivery_failure() -> None:
    defects: list[Exception] = []
    loop = Loop(defects.append)
    got: list[Answer | Failure] = []

    def take(result: Answer | Failure) -> None:
        got.append(result)
        raise ValueError("the worker's own")

    Faulty(loop, "none", take).start()
    while not defects:
        loop.run_once()
    assert got == [Answer(text="good")], "reported once"
    assert str(defects[0]) == "the worker's own"
    loop.close()


def test_pipe_gets_one_line_of_json(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "orders")
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    deliver(task("pipe", "orders", {"data": {"n": 1, "text": "a\nb"}}), tmp_path)
    deliver(task("pipe", "orders", {"data": [2]}), tmp_path)
    lines = os.read(reader, 65_536).splitlines()
    os.close(reader)
    assert [msgspec.json.decode(line) for line in lines] == [{"n": 1, "text": "a\nb"}, [2]]


def test_long_lines_of_several_writers_are_not_mixed(tmp_path: Path) -> None:
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


def test_pipe_failures_name_their_cause(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unread")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "unread")
    for name, kind in [("unread", "no_reader"), ("absent", "no_reader"), ("file", "protocol"), ("link", "connect")]:
        with pytest.raises(Failure) as failed:
            deliver(task("pipe", name, {"data": 1}), tmp_path)
        assert failed.value.error == kind, name
    assert (tmp_path / "file").read_text() == ""


def test_line_is_delivered_only_when_the_pipe_has_all_of_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "orders")
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    assert deliver(task("pipe", "orders", {"data": "x" * 1_000}), tmp_path) == Answer()
    os.close(reader)
    reader = os.open(tmp_path / "orders", os.O_RDONLY | os.O_NONBLOCK)
    closer = threading.Timer(0.1, os.close, (reader,))
    closer.start()
    with pytest.raises(Failure, match="the reader of the pipe 'orders' went away") as gone:
        deliver(task("pipe", "orders", {"data": "x" * 1_000_000}), tmp_path)
    closer.join()
    assert gone.value.error == "no_reader"


def test_full_pipe_times_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "full")
    reader = os.open(tmp_path / "full", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(Failure) as late:
        deliver(task("pipe", "full", {"data": "x" * 1_000_000}, timeout=0.2), tmp_path)
    os.close(reader)
    assert late.value.error == "timeout"


@contextmanager
def bound(family: socket.AddressFamily = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_DGRAM) as receiver:
        receiver.bind((host, 0))
        receiver.settimeout(30)
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


def test_udp_reports_datagrams_that_the_system_refuses() -> None:
    with pytest.raises(Failure, match=r"no datagram to 255\.255\.255\.255:9: Permission denied") as broadcast:
        deliver(task("udp", "255.255.255.255:9", 1))
    with pytest.raises(Failure, match=r"no datagram to 127\.0\.0\.1:9: Message too long") as long:
        deliver(task("udp", "127.0.0.1:9", "x" * 70_000))  # as another program may have put it into the queue
    assert broadcast.value.error == long.value.error == "connect"


def test_udp_failures_name_their_cause() -> None:
    with bound() as receiver:
        port = receiver.getsockname()[1]
    with pytest.raises(Failure, match="refused") as refused:
        deliver(task("udp", f"127.0.0.1:{port}", 1))
    assert refused.value.error == "connect"
    with pytest.raises(Failure, match=r"no-such-host\.invalid") as unknown:
        deliver(task("udp", "no-such-host.invalid:80", 1))
    assert unknown.value.error == "dns"
