"""The event loop: descriptors, timers, other threads and signals, and descriptors that their owners close."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from qtask.delivery.loop import READ, WRITE, Loop
from tests.support.waiting import until


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


def turn_until(loop: Loop, condition: Callable[[], bool]) -> None:
    """Runs the loop until the condition holds."""

    def turned() -> bool:
        loop.run_once()
        return condition()

    until(turned)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_callback_runs_while_a_descriptor_is_readable(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    got: list[bytes] = []
    loop.watch(ours.fileno(), READ, lambda events: got.append(ours.recv(1)))
    loop.run_once(0)
    assert got == []
    theirs.send(b"ab")
    loop.run_once(5)
    loop.run_once(5)
    assert got == [b"a", b"b"]
    loop.unwatch(ours.fileno())
    theirs.send(b"c")
    loop.run_once(0)
    assert got == [b"a", b"b"]


def test_descriptor_may_be_watched_for_other_events(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    seen: list[str] = []
    loop.watch(ours.fileno(), READ, lambda events: seen.append("read"))
    loop.watch(ours.fileno(), READ | WRITE, lambda events: seen.append("write" if events == WRITE else "both"))
    loop.run_once(5)
    assert seen == ["write"]


def test_callback_may_unwatch_another_ready_descriptor(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def on_ready(number: int) -> None:
        called.append(number)
        for ours, _ in pairs:
            loop.unwatch(ours.fileno())

    for number, (ours, theirs) in enumerate(pairs):
        loop.watch(ours.fileno(), READ, lambda events, number=number: on_ready(number))  # type: ignore[misc]
        theirs.send(b"x")
    loop.run_once(5)
    loop.run_once(0)
    assert len(called) == 1
    for one in (end for both in pairs for end in both):
        one.close()


def test_closed_descriptor_can_still_be_unwatched(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    loop.watch(number, READ, lambda events: None)
    ours.close()
    loop.unwatch(number)
    theirs.close()
    again, other = socket.socketpair()
    called: list[int] = []
    loop.watch(again.fileno(), WRITE, called.append)
    loop.run_once(5)
    assert called == [WRITE], "the number can be used again"
    again.close()
    other.close()


def test_timers_fire_in_order_and_never_early(loop: Loop) -> None:
    rung: list[tuple[str, float]] = []
    start = time.monotonic()
    for name, seconds in (("c", 0.03), ("a", 0.01), ("b", 0.02), ("b again", 0.02), ("now", 0.0)):
        loop.call_at(start + seconds, lambda name=name, at=start + seconds: rung.append((name, at)))  # type: ignore[misc]
    while len(rung) < 5:
        before = len(rung)
        loop.run_once()
        assert all(time.monotonic() >= at for _, at in rung[before:])
    assert [name for name, _ in rung] == ["now", "a", "b", "b again", "c"]
    assert all(earlier <= later for (_, earlier), (_, later) in pairwise(rung))


def test_cancelled_timer_never_fires_and_delays_nothing(loop: Loop) -> None:
    rung: list[str] = []
    cancelled = loop.call_later(0.0, lambda: rung.append("cancelled"))
    loop.call_later(0.01, lambda: rung.append("kept"))
    later = loop.call_later(0.01, lambda: rung.append("cancelled by the one before"))
    loop.call_later(0.005, later.cancel)
    cancelled.cancel()
    turn_until(loop, lambda: bool(rung))
    loop.run_once(0.02)
    assert rung == ["kept"]


def test_timer_may_start_another_timer(loop: Loop) -> None:
    rung: list[int] = []

    def ring() -> None:
        rung.append(len(rung))
        if len(rung) < 5:
            loop.call_later(0.001, ring)

    ring()
    turn_until(loop, lambda: len(rung) == 5)


def test_callback_that_raises_does_not_prevent_others() -> None:
    """Each exception is reported once to the owner; descriptors, timers and calls from threads continue."""
    defects: list[Exception] = []
    loop = Loop(defects.append)
    told: list[str] = []
    called: list[str] = []

    def broken(name: str) -> Callable[..., None]:
        def call(*events: int) -> None:
            if events:
                loop.unwatch(pairs[name][0].fileno())
            raise ValueError(name)

        return call

    def note(error: Exception) -> None:
        told.append(str(error))

    pairs = {name: socket.socketpair() for name in ("owned", "nobody's", "good")}
    loop.watch(pairs["owned"][0].fileno(), READ, broken("owned"), note)
    loop.watch(pairs["nobody's"][0].fileno(), READ, broken("nobody's"))
    loop.watch(pairs["good"][0].fileno(), READ, lambda events: called.append("descriptor"))
    for _, theirs in pairs.values():
        theirs.send(b"x")
    now = time.monotonic()
    loop.call_at(now, broken("owned timer"), note)
    loop.call_at(now, broken("nobody's timer"))
    loop.call_at(now, lambda: called.append("timer"))
    loop.call_from_thread(broken("owned call"), note)
    loop.call_from_thread(broken("nobody's call"))
    loop.call_from_thread(lambda: called.append("call"))
    turn_until(loop, lambda: {"descriptor", "timer", "call"} <= set(called))
    assert sorted(told) == ["owned", "owned call", "owned timer"]
    assert sorted(map(str, defects)) == ["nobody's", "nobody's call", "nobody's timer"]
    loop.close()
    for one in (end for both in pairs.values() for end in both):
        one.close()


def test_exception_of_an_owner_is_a_defect_or_is_raised(loop: Loop) -> None:
    def fail() -> None:
        raise ValueError("callback")

    def fail_too(error: Exception) -> None:
        raise RuntimeError(f"owner, told of {error}")

    defects: list[Exception] = []
    other = Loop(defects.append)
    for one in (loop, other):
        one.call_later(0, fail, fail_too)
    other.run_once()
    assert [str(error) for error in defects] == ["owner, told of callback"]
    with pytest.raises(RuntimeError, match="owner, told of callback"):
        loop.run_once()
    other.close()


def test_cancelled_timer_holds_no_references(loop: Loop) -> None:
    class Owner:
        def ring(self) -> None: ...

        def on_error(self, error: Exception) -> None: ...

    owner = Owner()
    loop.call_later(600, owner.ring, owner.on_error).cancel()
    there = weakref.ref(owner)
    del owner
    assert there() is None


def test_calls_from_other_threads_run_in_the_thread_of_the_loop(loop: Loop) -> None:
    called: list[int] = []

    def call() -> None:
        for _ in range(100):
            loop.call_from_thread(lambda: called.append(threading.get_ident()))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    turn_until(loop, lambda: len(called) == 400)
    for thread in threads:
        thread.join()
    assert set(called) == {threading.get_ident()}


def test_signal_wakes_the_loop(loop: Loop) -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: loop.call_from_thread(lambda: called.append(number)))
    try:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        turn_until(loop, lambda: bool(called))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert called == [signal.SIGUSR1]


def test_call_after_close_has_no_effect() -> None:
    """The thread of a resolver may outlive the loop, and the number of its descriptor may belong to another file."""
    loop = Loop()
    loop.close()
    opened = [os.memfd_create(f"new-{number}") for number in range(4)]  # they get the numbers that are free now
    called: list[int] = []
    loop.call_from_thread(lambda: called.append(1))
    assert [os.fstat(descriptor).st_size for descriptor in opened] == [0] * 4
    assert called == []
    for descriptor in opened:
        os.close(descriptor)


FROZEN = """
import sys
from qtask.delivery.loop import READ, Loop

loop = Loop()
happened = []
loop.watch(0, READ, lambda events: happened.append("event"))
loop.call_later(0.5, lambda: happened.append("timer"))
print("ready", flush=True)
while not happened:
    loop.run_once(10.0)
print(happened[0])
"""


def test_events_from_before_a_freeze_are_handled_before_timers() -> None:
    command = [sys.executable, "-c", FROZEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)  # until it waits
        process.send_signal(signal.SIGSTOP)
        print(file=process.stdin, flush=True)
        time.sleep(0.5)  # until its timer is overdue
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "event\n"
