"""Sleeping until the next task is due, or until a message says that an earlier one was submitted."""

from __future__ import annotations

import select
from time import monotonic

from redis.client import PubSub

from qtask.private import redis_py

AHEAD_SECONDS = 0.001  # by which a sleep ends before the next task is due


def end_of_sleep(asked: float, wait: float) -> float:
    """When to ask Redis again, as an instant of `monotonic`.

    Args:
        asked: when Redis was asked, as an instant of `monotonic`.
        wait: its answer: seconds until the next task is due.

    It counts from when Redis was asked, not from its reply, so that the next request arrives as the task is due. A
    process that has slept is slow at first, so a longer sleep ends early, with a request that is too early.
    """
    return asked + (wait - AHEAD_SECONDS if wait > 2 * AHEAD_SECONDS else wait)


def sleep_until(instant: float, wake: PubSub) -> bool:
    """Sleeps until an instant of `monotonic`, or until a message comes; returns whether one came.

    Not by `get_message(timeout=…)`: that rounds up to whole milliseconds, so tasks would be late by half of one.
    """
    while True:
        came = False
        while wake.get_message() is not None:  # one look at the head of the schedule answers every message so far
            came = True
        seconds = instant - monotonic()
        if came or seconds <= 0:
            return came
        select.select([redis_py.socket_of(wake.connection)], [], [], seconds)
