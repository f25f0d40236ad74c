"""Queues: names, what a worker serves, and the order of its claims."""

from __future__ import annotations

from collections import Counter

import pytest

from qtask.destinations.parsing import check_task
from qtask.model.errors import ConfigError, Refused
from qtask.model.queues import MAX_NAME_CHARACTERS, MAX_SERVED, Served, one_queue, served_queues
from qtask.worker.claim_order import BEHIND_EVERY, ClaimOrder


def claims(text: str, ready: str, count: int) -> list[str]:
    """The queues of some claims, while all the named ones hold tasks."""
    order = ClaimOrder(served_queues(text))
    return [order.next(ready.split()) for _ in range(count)]


def test_served_queues_are_parsed_in_order() -> None:
    assert served_queues("critical, default:3,bulk:1") == [
        Served("critical"),
        Served("default", 3),
        Served("bulk", 1),
    ]
    assert served_queues("qtask") == [Served("qtask")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "letters, digits"),
        ("a,,b", "got ''"),
        ("a b", "got 'a b'"),
        ("a:0", "the weight of the queue a must be from 1 to 1000, got '0'"),
        ("a:", "the weight of the queue a must be from 1 to 1000, got ''"),
        ("a:x", "got 'x'"),
        ("a:1.5", "got '1.5'"),
        ("a:²", "got '²'"),
        ("a:1001", "got '1001'"),
        ("a,b,a:2", "the queue a is named twice"),
        (",".join(f"q{number}" for number in range(MAX_SERVED + 1)), "at most 16 queues, got 17"),
    ],
)
def test_invalid_served_queues_are_refused_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        served_queues(text)
    assert message in str(error.value)


def test_one_queue_names_the_setting_for_several() -> None:
    assert one_queue("a.b_c-1") == "a.b_c-1"
    with pytest.raises(ConfigError, match="several queues are for workers only: set `queues`"):
        one_queue("a,b")
    with pytest.raises(ConfigError, match=r"got 'a b'$"):
        one_queue("a b")


@pytest.mark.parametrize("name", ["a", "Z9._-", "x" * MAX_NAME_CHARACTERS])
def test_task_with_a_valid_queue_is_accepted(name: str) -> None:
    task = {"title": "t", "address": {"type": "http", "link": "http://a/"}, "settings": {"time": 1, "queue": name}}
    assert check_task(task).task.settings.queue == name


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "ä", "a\n", "x" * (MAX_NAME_CHARACTERS + 1)])
def test_task_with_an_invalid_queue_is_refused(name: str) -> None:
    task = {"title": "t", "address": {"type": "http", "link": "http://a/"}, "settings": {"time": 1, "queue": name}}
    with pytest.raises(Refused) as error:
        check_task(task)
    assert (error.value.code, error.value.field) == ("invalid_value", "settings.queue")
    assert "a name of 1 to 64 letters" in error.value.message


def test_strict_queues_are_claimed_in_order() -> None:
    assert claims("a,b,c", "a b c", BEHIND_EVERY - 1) == ["a"] * (BEHIND_EVERY - 1)
    assert claims("a,b,c", "b c", 3) == ["b"] * 3
    assert claims("a,b,c", "c", 30) == ["c"] * 30


def test_weighted_queues_share_claims_evenly_spread() -> None:
    assert claims("a:3,b:1", "a b", 8) == ["a", "a", "b", "a"] * 2
    assert Counter(claims("a:5,b:3,c:2", "a b c", 1_000)) == {"a": 500, "b": 300, "c": 200}


def test_weighted_queue_without_tasks_saves_nothing_up() -> None:
    order = ClaimOrder(served_queues("a:1,b:1"))
    assert [order.next(["a"]) for _ in range(50)] == ["a"] * 50
    assert sorted(order.next(["a", "b"]) for _ in range(4)) == ["a", "a", "b", "b"]


def test_strict_queue_leaves_a_share_to_each_queue_behind_it() -> None:
    number = BEHIND_EVERY**2 * 10
    found = Counter(claims("a,b:3,c:1,d", "a b c d", number))
    behind = number // BEHIND_EVERY
    assert found["a"] == number - behind
    assert found["d"] == behind // BEHIND_EVERY
    assert found["b"] == pytest.approx(3 * found["c"], rel=0.05)
    assert claims("a,b", "a b", 2 * BEHIND_EVERY).count("b") == 2


def test_weighted_queues_between_strict_ones_are_levels_of_their_own() -> None:
    assert claims("a:1,b,c:9", "b c", 5) == ["b"] * 5
    assert claims("a:1,b,c:9", "a b c", 5) == ["a"] * 5
