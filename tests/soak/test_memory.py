"""The leak detection of the soak: leaks are found in noise, and steps and noise are not leaks."""

from __future__ import annotations

import math
import os
import random

from tests.soak.memory import Reading, Series, open_files, resident_bytes

RATE = 2_000.0
SECONDS = 480
MIB = 1_048_576


def series(bytes_a_task: float = 0.0, noise: float = 0.0, swing: float = 0.0) -> Series:
    generator = random.Random(1)
    return Series(
        "worker",
        [
            Reading(
                at,
                int(
                    60 * MIB
                    + bytes_a_task * RATE * at
                    + noise * generator.uniform(-1, 1)
                    + swing * math.sin(at / 20)  # such as waiting tasks
                ),
            )
            for at in range(0, SECONDS, 2)
        ],
    )


def test_leak_of_the_smallest_object_for_each_task_is_detected() -> None:
    assert series(bytes_a_task=16).grows(RATE)
    assert series(bytes_a_task=16, noise=4 * MIB, swing=4 * MIB).grows(RATE)


def test_noise_and_swings_are_not_leaks() -> None:
    assert not series().grows(RATE)
    assert not series(noise=4 * MIB).grows(RATE)
    assert not series(swing=4 * MIB).grows(RATE)


def test_small_step_in_a_short_run_is_not_a_leak() -> None:
    short = Series("gateway", [Reading(at, 60 * MIB + (MIB if at > 15 else 0)) for at in range(30)])
    assert short.slope > 4 * RATE
    assert not short.grows(RATE)


def test_shrinking_is_not_growing() -> None:
    assert not series(bytes_a_task=-50).grows(RATE)


def test_warm_up_is_excluded() -> None:
    warm = series()
    warm.readings[:60] = [Reading(one.at, int(one.size * one.at / 120)) for one in warm.readings[:60]]
    assert warm.grows(RATE)
    assert not warm.since(120).grows(RATE)


def test_growing_number_of_open_files_is_detected() -> None:
    growing = Series("files", [Reading(at, 100 + at // 10) for at in range(300)])
    assert growing.grows_in_pieces(20)
    assert not Series("files", [Reading(at, 100 + at % 10) for at in range(300)]).grows_in_pieces(20)


def test_readings_of_this_process_are_plausible() -> None:
    before = open_files(os.getpid())
    opened = os.open("/dev/null", os.O_RDONLY)
    assert open_files(os.getpid()) == before + 1
    os.close(opened)
    assert MIB < resident_bytes(os.getpid()) < 10_000 * MIB
