"""Deliveries to host names: several addresses, name servers that do not answer, threads that cannot be started.

Each test runs in its own network namespace, where it controls name resolution.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import namespace

pytestmark = pytest.mark.slow

PRELUDE = """
import socket, threading, time
from contextlib import ExitStack
from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.delivery.deliverer import deliverer
from qtask.delivery.loop import Loop
from qtask.delivery.resolver import Resolver, THREADS
from qtask.worker.rq_function import _attempt
from qtask.model.link import parse_socket
from qtask.model.outcome import Answer, Failure
from tests.integration.test_deliveries import deliver, task

def listener(host, port=0, family=socket.AF_INET, backlog=8):
    one = socket.socket(family)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((host, port))
    one.listen(backlog)
    return one

def black_hole(host, port):
    "A listener whose backlog is full: it answers no SYN."
    one = listener(host, port, backlog=0)
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex((host, port))
        fillers.append(filler)
    time.sleep(0.2)
    return one, fillers

def said(kind, link, timeout=30.0, by=deliver):
    try:
        result = by(task(kind, link, 1, timeout))
    except Failure as failure:
        result = failure
    if isinstance(result, Failure):
        print(f"{result.error}: {result.message}")
    else:
        print(f"delivered {result.text}".strip())

def by_function(one):
    return _attempt(Claim("id", 1, one, 0.0), Config())

def accept(server):
    connection, _ = server.accept()
    with connection:
        got = b"".join(iter(lambda: connection.recv(100), b""))
        connection.sendall(b"thanks for " + got)
"""

TWO = ("127.0.0.2 two", "127.0.0.3 two")


def test_socket_task_uses_the_next_address_when_the_first_is_silent(tmp_path: Path) -> None:
    code = """
good = listener("127.0.0.3")
port = good.getsockname()[1]
kept = black_hole("127.0.0.2", port)
assert [place for *_, place in socket.getaddrinfo("two", port, type=socket.SOCK_STREAM)] == [
    ("127.0.0.2", port), ("127.0.0.3", port)]
for by in (deliver, by_function):
    thread = threading.Thread(target=accept, args=(good,))
    thread.start()
    said("socket", f"two:{port}", by=by)
    thread.join()
"""
    assert namespace.run(PRELUDE + code, tmp_path, TWO) == "delivered thanks for 1\n" * 2


def test_failed_socket_task_names_all_addresses(tmp_path: Path) -> None:
    code = """
kept = black_hole("127.0.0.2", 7000)
said("socket", "two:7000", timeout=0.8)
said("socket", "two:7001")
said("socket", "both:7001")
said("socket", "[::1]:7001")
said("udp", "both:7001")
said("udp", "[::1]:7001", by=by_function)
"""
    refused = "Connection refused"
    assert namespace.run(PRELUDE + code, tmp_path, (*TWO, "::1 both", "127.0.0.1 both")).splitlines() == [
        f"timeout: no connection within 0.8 s to two:7000: 127.0.0.3:7000: {refused}; 127.0.0.2:7000: no answer",
        f"connect: no connection to two:7001: 127.0.0.2:7001: {refused}; 127.0.0.3:7001: {refused}",
        f"connect: no connection to both:7001: [::1]:7001: {refused}; 127.0.0.1:7001: {refused}",
        f"connect: no connection to [::1]:7001: {refused}",
        f"connect: no datagram to both:7001: [::1]:7001: {refused}; 127.0.0.1:7001: {refused}",
        f"connect: no datagram to [::1]:7001: {refused}",
    ]


def test_only_the_first_connection_gets_the_data(tmp_path: Path) -> None:
    code = """
first, second = listener("127.0.0.2"), None
port = first.getsockname()[1]
second = listener("127.0.0.3", port)
thread = threading.Thread(target=accept, args=(first,))
thread.start()
said("socket", f"two:{port}")
thread.join()
second.settimeout(0.4)  # longer than an attempt waits
try:
    second.accept()
    print("another connection")
except TimeoutError:
    print("no other connection")
"""
    assert namespace.run(PRELUDE + code, tmp_path, TWO) == "delivered thanks for 1\nno other connection\n"


def test_datagram_goes_to_the_next_address_when_the_first_refuses_it(tmp_path: Path) -> None:
    code = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
    receiver.bind(("127.0.0.1", 0))
    receiver.settimeout(30)
    for by in (deliver, by_function):
        said("udp", f"both:{receiver.getsockname()[1]}", by=by)
        print(receiver.recv(100).decode())
"""
    assert namespace.run(PRELUDE + code, tmp_path, ("::1 both", "127.0.0.1 both")) == "delivered\n1\n" * 2


SILENT = """
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.53", 53))
"""


@pytest.mark.parametrize("kind", ["socket", "udp"])
def test_hanging_look_up_ends_at_the_timeout_and_does_not_delay_the_exit(kind: str, tmp_path: Path) -> None:
    code = f"""
for by in (deliver, by_function):
    began = time.monotonic()
    said("{kind}", "slow.example:80", timeout=0.3, by=by)
    assert time.monotonic() - began < 5
"""
    words = "timeout: the addresses of 'slow.example' were not found within 0.3 s\n"
    # The look-up itself takes twenty seconds: the process must not wait for its thread either.
    assert namespace.run(PRELUDE + SILENT + code, tmp_path, seconds=15) == words * 2


def test_hanging_look_ups_do_not_block_other_names(tmp_path: Path) -> None:
    """A hanging name uses one thread for any number of tasks; names beyond the number of threads wait."""
    code = """
loop = Loop()
resolver = Resolver(loop, socket.SOCK_STREAM, most_threads=2)
found = {}

def ask(name, then=None):
    return resolver.resolve(parse_socket(name), then or (lambda result: found.setdefault(name, result)), print)

hanging = [ask("slow.example:80") for _ in range(1_000)]
ask("two:80")
while "two:80" not in found:
    loop.run_once()
print(found["two:80"])

also = ask("slower.example:80")
waiting = ask("two:81"), ask("two:82")
for _ in range(5):
    loop.run_once(0.1)
print(sorted(found), "while both threads hang")
waiting[0].cancel()  # as a delivery does at its timeout
while "two:82" not in found:  # when the name server has given up
    loop.run_once()
print(sorted(found), [type(found[name]).__name__ for name in sorted(found)])
resolver.close()
loop.close()
"""
    shown = namespace.run(PRELUDE + SILENT + code, tmp_path, TWO, patience=1).splitlines()
    assert shown[0] == "[(2, ('127.0.0.2', 80)), (2, ('127.0.0.3', 80))]"
    assert shown[1] == "['two:80'] while both threads hang"
    assert shown[2].startswith("['slow.example:80', ") and "'two:81'" not in shown[2]
    assert shown[2].endswith("'list', 'list']")


def test_host_name_fails_when_no_thread_can_be_started() -> None:
    """Memory is too short for the stack of a thread; the delivery fails, and the loop continues."""
    code = """
import resource
from pathlib import Path
deliver, warm = deliver, said("socket", "127.0.0.1:1")
pages = int(Path("/proc/self/statm").read_text().split()[0])
threading.stack_size(1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (1 << 26), -1))
said("socket", "localhost:1")
said("udp", "localhost:1")
said("socket", "127.0.0.1:1")
"""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    refused = "connect: no connection to 127.0.0.1:1: Connection refused"
    no_thread = "dns: the host name 'localhost' cannot be resolved: can't start new thread"
    assert done.stdout.splitlines() == [refused, no_thread, no_thread, refused]
