"""The shares of flows in the places of a worker."""

from __future__ import annotations

from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from qtask.destinations.http.host_slots import Entry
from qtask.worker.shares import FIRST_SHARE, HUNG_SECONDS, LATELY_SECONDS, SLOW_SECONDS, Shares

_numbers = count()


def entry() -> Entry:
    return f"task{next(_numbers)}", 1, b"", b""


def proven(places: int, *flows: str) -> Shares:
    """Shares of a worker that has a quarter of its places taken, and in which a delivery of each flow has ended."""
    shares = Shares(places)
    shares.start((entry()[0], f"other{number}", 0.0) for number in range(places // 4))
    for flow in flows:
        one = entry()
        assert shares.take(flow, one, 0.0)
        shares.end(one[0], 0.0)
    return shares


def begin_all(shares: Shares, flow: str, most: int, now: float = 0.0) -> int:
    return sum(shares.take(flow, entry(), now) for _ in range(most))


def test_one_flow_does_not_get_all_places() -> None:
    fast, slow = proven(100, "a"), proven(100, "a")
    assert begin_all(fast, "a", 200) == 66, "seven eighths of what is free"
    assert begin_all(slow, "a", 1) == 1
    assert begin_all(slow, "a", 200, now=2 * HUNG_SECONDS) == 37, "half of what is free"


def test_flow_that_is_alone_gets_all_places_while_its_deliveries_end() -> None:
    shares = proven(100, "a")
    for task_id in [f"task{number}" for number in range(10_000)]:
        shares.end(task_id, 0.0)
    shares.start([])
    assert begin_all(shares, "a", 200) == 100


def test_flow_is_no_longer_fast_a_while_after_its_last_delivery_has_ended() -> None:
    shares = proven(160, "a")
    assert begin_all(shares, "a", 200, now=LATELY_SECONDS) == 160 // FIRST_SHARE


def test_flow_of_which_no_delivery_has_ended_begins_with_a_few() -> None:
    shares = proven(160, "proven")
    assert begin_all(shares, "a", 200) == 160 // FIRST_SHARE
    assert begin_all(shares, "proven", 200) == 97


def test_greedy_flows_leave_places_for_others() -> None:
    shares = proven(1_000, "a", "b", "c")
    for _ in range(2_000):
        for flow in ("a", "b", "c"):
            shares.take(flow, entry(), 0.0)
    assert begin_all(shares, "healthy", 10) == 10


def test_tasks_of_a_flow_stay_in_order() -> None:
    shares = proven(4, "a")
    begun, waiting = [entry() for _ in range(3)], [entry() for _ in range(2)]
    assert all(shares.take("a", one, 0.0) for one in begun)
    assert not any(shares.take("a", one, 0.0) for one in waiting)
    assert shares.next(0.0) is None
    shares.end(begun[0][0], 0.1)
    assert shares.next(0.1) == waiting[0]
    assert shares.next(0.1) is None
    shares.end(begun[1][0], 0.2)
    assert shares.next(0.2) == waiting[1]


def test_slow_flow_is_parked_and_a_fast_one_is_not() -> None:
    shares = proven(10, "a")
    begun, waiting = [entry() for _ in range(7)], [entry() for _ in range(2)]
    assert all(shares.take("a", one, 0.0) for one in begun)
    assert not any(shares.take("a", one, 0.0) for one in waiting)
    assert shares.parkings(SLOW_SECONDS / 2) == []
    shares.end(begun[0][0], SLOW_SECONDS)
    assert shares.parkings(SLOW_SECONDS * 1.5) == []
    (parking,) = shares.parkings(SLOW_SECONDS * 3)
    assert parking.flow == "a"
    assert len(shares) == 0
    assert parking.in_flight == [one[0] for one in begun[1:]]
    assert parking.waiting == [one[0] for one in waiting]
    again = [shares.take("a", entry(), SLOW_SECONDS * 3) for _ in range(6)]
    assert not all(again)
    assert shares.parkings(SLOW_SECONDS * 3), "what follows is parked at once"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=300))
def test_places_are_never_exceeded_and_nothing_gets_lost(steps: list[tuple[str, bool]]) -> None:
    shares = Shares(8)
    running: list[str] = []
    seen: set[str] = set()
    now = 0.0
    for flow, ends in steps:
        now += 0.01
        if ends and running:
            shares.end(running.pop(0), now)
        one = entry()
        seen.add(one[0])
        if not shares.counts:
            if len(running) < shares.threshold_from:
                running.append(one[0])
                continue
            shares.start((task_id, flow, now) for task_id in running)
        if shares.take(flow, one, now):
            running.append(one[0])
        while (following := shares.next(now)) is not None:
            running.append(following[0])
        assert len(running) <= 8
        parked = [task_id for parking in shares.parkings(now) for task_id in parking.waiting]
        seen -= set(parked)
    assert len(shares) == len(shares.withdraw())


def test_task_that_has_waited_keeps_the_place_that_it_got() -> None:
    """The worker begins what `next` returns as it begins all others, with `take`."""
    shares = Shares(4)
    begun, waiting = entry(), [entry() for _ in range(4)]
    assert shares.take("a", begun, 0.0)
    assert not any(shares.take("a", one, 0.0) for one in waiting)
    shares.end(begun[0], 0.1)
    for one in waiting:
        assert shares.next(0.1) == one
        assert shares.take("a", one, 0.1), "although others of its flow wait"
        shares.end(one[0], 0.2)
    assert len(shares) == 0
