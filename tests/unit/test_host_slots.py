"""Which deliveries start and which wait, for each host, under a limit of connections."""

from __future__ import annotations

import pytest

from qtask.destinations.http.host_slots import STREAMS, Entry, HostSlots
from qtask.model.link import http_place


def entry(name: str) -> Entry:
    return name, 1, b"", b"{}"


def began(slots: HostSlots) -> list[str]:
    """Takes out the tasks that may start."""
    ids = [one[0] for _, one in slots.ready]
    slots.ready.clear()
    return ids


def test_host_gets_its_limit_and_others_wait_in_order() -> None:
    slots = HostSlots(2)
    assert [slots.take("a", entry(name), 0.0) for name in "1234"] == [True, True, False, False]
    assert slots.take("b", entry("5"), 0.0), "each host has its own slots"
    assert len(slots) == 2
    slots.release("2")
    slots.release("1")
    assert began(slots) == ["3", "4"]
    assert slots.take("a", entry("3"), 1.0), "it already has its slot"
    assert not slots.take("a", entry("6"), 1.0)
    for name in "345":
        slots.release(name)
    assert began(slots) == ["6"]
    slots.release("6")
    slots.release("6")
    assert len(slots) == 0
    assert [slots.take("a", entry(name), 2.0) for name in "789"] == [True, True, False]


def test_task_that_waited_too_long_is_withdrawn_even_when_it_may_start() -> None:
    slots = HostSlots(1)
    assert slots.take("a", entry("1"), 0.0)
    for number, name in enumerate("2345"):
        assert not slots.take("a", entry(name), float(number))
    slots.release("1")
    assert slots.withdraw(2.0) == ["3", "2"]
    assert began(slots) == ["4"], "the slot of a withdrawn task goes to the next one"
    assert slots.withdraw() == ["5"]
    slots.release("4")
    assert slots.take("a", entry("6"), 9.0)


def test_host_that_multiplexes_gets_the_stream_limit() -> None:
    slots = HostSlots(1)
    assert slots.take("a", entry("0"), 0.0)
    waiting = [str(number) for number in range(1, 2 * STREAMS)]
    assert not any(slots.take("a", entry(name), 0.0) for name in waiting)
    slots.multiplexes("a")
    slots.multiplexes("a")
    assert began(slots) == waiting[: STREAMS - 1]
    slots.release("0")
    assert began(slots) == [waiting[STREAMS - 1]]


@pytest.mark.parametrize(
    ("links", "place"),
    [
        (["http://Example.org", "http://example.org:80/x?y", "http://u:p@EXAMPLE.org/"], "http://example.org:80"),
        (["https://example.org/", "https://example.org:443/a"], "https://example.org:443"),
        (["http://[::1]:8000/", "http://[::1]:8000/b"], "http://::1:8000"),
        (["http://unix:/run/app.sock:/x", "http://unix:/run/app.sock:/y"], "/run/app.sock"),
    ],
)
def test_links_of_one_host_share_one_place(links: list[str], place: str) -> None:
    assert {http_place(link) for link in links} == {place}
