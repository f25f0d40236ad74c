"""What a task waits for in its flow, in words."""

from __future__ import annotations

from typing import Any

import pytest

from qtask.model.flow_record import FlowRecord, Reason, wait_in

UNTIL = 1_795_867_902.97
IN_WORDS = "2026-11-28 12:11:42Z"


@pytest.mark.parametrize(
    ("position", "ordinal"),
    [
        *((1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (10, "10th"), (11, "11th"), (12, "12th"), (13, "13th")),
        *((21, "21st"), (22, "22nd"), (101, "101st"), (111, "111th"), (1_000_012, "1000012th"), (113, "113th")),
    ],
)
def test_position_is_an_ordinal(position: int, ordinal: str) -> None:
    wait = wait_in(FlowRecord("k", "paused"), position)
    assert (wait.position, wait.words) == (position, f"{ordinal} in flow k, which is paused")


@pytest.mark.parametrize(
    ("flow", "reason", "until", "words"),
    [
        ({"state": "paused", "until": UNTIL, "ordered": True, "queued": 1}, "paused", None, "which is paused"),
        (
            {
                "state": "resting",
                "until": UNTIL,
                "why": "its destination asked for a pause",
                "parallel": 1,
                "queued": 1,
            },
            "resting",
            UNTIL,
            f"which rests until {IN_WORDS} (its destination asked for a pause)",
        ),
        (
            {"state": "open", "breaker": "open", "until": UNTIL, "why": "its deliveries keep failing"},
            "open",
            UNTIL,
            f"whose circuit breaker is open, and the next probe is at {IN_WORDS} (its deliveries keep failing)",
        ),
        (
            {"state": "half-open", "breaker": "half-open"},
            "half-open",
            None,
            "whose circuit breaker is half-open: the outcome of one delivery decides",
        ),
        (
            {"state": "waiting", "ordered": True, "in_flight": 1},
            "ordered",
            None,
            "which is ordered, and another task before it is not delivered yet",
        ),
        (
            {"state": "waiting", "parallel": 5, "in_flight": 5, "rate": 1.0, "next_token": UNTIL},
            "parallel",
            None,
            "which has 5 of 5 deliveries in flight",
        ),
        (
            {"state": "waiting", "parallel": 5, "in_flight": 3, "queued": 2},
            "parallel",
            None,
            "which has 5 of 5 deliveries queued or in flight",
        ),
        (
            {"state": "waiting", "share": 2, "in_flight": 2},
            "parallel",
            None,
            "which is slow and has 2 of 2 deliveries in flight",
        ),
        (
            {"state": "waiting", "parallel": 5, "in_flight": 4, "rate": 1.0, "next_token": UNTIL},
            "rate",
            UNTIL,
            "whose rate admits the next at 2026-11-28T12:11:42.970Z",
        ),
        ({"state": "waiting", "rate": 1.0, "queued": 1}, "rate", None, "whose rate is used up by 1 queued task"),
        ({"state": "waiting", "rate": 1.0, "queued": 2}, "rate", None, "whose rate is used up by 2 queued tasks"),
        ({"state": "waiting", "parallel": 5}, "next", None, "which a scheduler will admit to its queue"),
    ],
)
def test_reason_is_the_first_that_holds_tasks_back(
    flow: dict[str, Any], reason: Reason, until: float | None, words: str
) -> None:
    wait = wait_in(FlowRecord("k", **flow), 1)
    assert (wait.reason, wait.until, wait.words) == (reason, until, f"1st in flow k, {words}")


def test_ordered_flow_names_the_task_that_holds_its_slot() -> None:
    flow = FlowRecord("k", "waiting", ordered=True, in_flight=1)
    assert wait_in(flow, 1, "first").words == (
        "1st in flow k, which is ordered, and task first before it is not delivered yet"
    )
    retry = wait_in(flow, 1, "first", UNTIL)
    assert retry.until == UNTIL
    assert retry.words == (f"1st in flow k, which is ordered, and task first before it waits for a retry at {IN_WORDS}")
