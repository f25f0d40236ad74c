"""Ids: unique, ordered, and readable as the instant at which they were made, whatever the clock does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtask.model.ids import NODE_LIMIT, IdSource, instant_of

MILLISECOND = 1_000_000  # in nanoseconds
NOON = 1_795_539_666_250 * MILLISECOND
IDS_A_MILLISECOND = 64**2

_form = re.compile(r"[A-Za-z0-9_-]{12}", re.ASCII)


def source(readings: Iterator[int], node: int = 1) -> IdSource:
    return IdSource(node, readings.__next__)


def test_id_holds_the_millisecond_in_which_it_was_made() -> None:
    before = time.time_ns() // MILLISECOND
    made = IdSource(7).next()
    after = time.time_ns() // MILLISECOND
    instant = instant_of(made)
    assert instant is not None
    assert before <= round(instant * 1000) <= after


def test_ids_of_one_process_are_unique_and_ordered() -> None:
    ids = IdSource(1)
    made = [ids.next() for _ in range(50_000)]
    assert made == sorted(set(made))
    assert all(map(_form.fullmatch, made))


@given(st.lists(st.integers(0, 3 * MILLISECOND) | st.integers(-(10**13), 10**13), max_size=200))
def test_ids_stay_ordered_when_the_clock_steps(steps: list[int]) -> None:
    now, readings = NOON, []
    for step in steps:
        now = max(0, now + step)
        readings.append(now)
    ids = source(iter(readings))
    made = [ids.next() for _ in readings]
    assert made == sorted(set(made))


def test_ids_use_future_milliseconds_when_the_clock_stands_still() -> None:
    ids = source(repeat(NOON))
    made = [ids.next() for _ in range(3 * IDS_A_MILLISECOND)]
    assert made == sorted(set(made))
    milliseconds = [round((instant_of(one) or 0) * 1000) - NOON // MILLISECOND for one in made]
    assert milliseconds == [0] * IDS_A_MILLISECOND + [1] * IDS_A_MILLISECOND + [2] * IDS_A_MILLISECOND


def test_clock_that_steps_back_does_not_repeat_an_id() -> None:
    ids = source(iter([NOON, NOON - 3600 * 1000 * MILLISECOND, NOON + MILLISECOND]))
    first, second, third = ids.next(), ids.next(), ids.next()
    assert first < second < third
    assert instant_of(second) == instant_of(first)


@given(st.sets(st.integers(0, NODE_LIMIT - 1), min_size=2, max_size=20))
def test_processes_with_the_same_clock_make_different_ids(nodes: set[int]) -> None:
    sources = [source(repeat(NOON), node) for node in nodes]
    made = [ids.next() for ids in sources for _ in range(3)]
    assert len(set(made)) == len(made)


@given(st.lists(st.integers(0, 64**7 - 1), min_size=1, max_size=20))
def test_ids_sort_by_instant_and_can_be_read_back(milliseconds: list[int]) -> None:
    made = {one: source(repeat(one * MILLISECOND + 999_999)).next() for one in milliseconds if one > 0}
    assert sorted(made, key=made.__getitem__) == sorted(made)
    assert [instant_of(made[one]) for one in made] == [one / 1000 for one in made]


@pytest.mark.parametrize(
    "foreign", ["", "short", "thirteen-long", "P7DVFCP--0-", "P7DVFCP--0-.", "P7DVFCP--0-é", "a b c d e f g"]
)
def test_foreign_id_has_no_instant(foreign: str) -> None:
    assert instant_of(foreign) is None
