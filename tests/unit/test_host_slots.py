"""Which deliveries begin and which wait, host by host, under a limit of connections."""

from __future__ import annotations

import pytest

from qtask.destinations.http.host_slots import STREAMS, Entry, HostSlots
from qtask.model.link import http_place


def entry(name: str) -> Entry:
    return name, 1, b"", b"{}"


def began(slots: HostSlots) -> list[str]:
    """Takes out the tasks that may begin."""
    ids = [one[0] for _, one in slots.ready]
    slots.ready.clear()
    return ids


def test_a_host_gets_so_many_and_the_others_wait_in_order() -> None:
    slots = HostSlots(2)
    assert [slots.take("a", entry(name), 0.0) for name in "1234"] == [True, True, False, False]
    assert slots.take("b", entry("5"), 0.0), "another host has slots of its own"
    assert len(slots) == 2
    slots.release("2")
    slots.release("1")
    assert began(slots) == ["3", "4"]
    assert slots.take("a", entry("3"), 1.0), "it has its slot already"
    assert not slots.take("a", entry("6"), 1.0)
    for name in "345":
        slots.release(name)
    assert began(slots) == ["6"]
    slots.release("6")
    slots.release("6")
    assert len(slots) == 0
    assert [slots.take("a", entry(name), 2.0) for name in "789"] == [True, True, False]


def test_what_has_waited_too_long_is_given_up_also_when_its_turn_has_come() -> None:
    slots = HostSlots(1)
    assert slots.take("a", entry("1"), 0.0)
    for number, name in enumerate("2345"):
        assert not slots.take("a", entry(name), float(number))
    slots.release("1")
    assert slots.withdraw(2.0) == ["3", "2"]
    assert began(slots) == ["4"], "the slot of what was given up goes to the next"
    assert slots.withdraw() == ["5"]
    slots.release("4")
    assert slots.take("a", entry("6"), 9.0)


def test_a_host_that_multiplexes_gets_as_many_streams() -> None:
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
def test_links_of_one_host_have_one_place(links: list[str], place: str) -> None:
    assert {http_place(link) for link in links} == {place}
