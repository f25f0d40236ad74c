"""What `settings.flow` and the limits of a flow may hold."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from qtask.model.errors import Refused
from qtask.model.flow import Flow, Limits, check_flow, check_limits


@pytest.mark.parametrize("key", ["a", "partner-api", "tenant 7", "http://host:80", "~" * 200, '"\\'])
def test_printable_ascii_is_a_key(key: str) -> None:
    check_flow(key)
    check_flow(Flow(key=key))


@pytest.mark.parametrize("key", ["", "x" * 201, "ä", "a\n", "a\x7f", "\t"])
def test_other_keys_are_rejected(key: str) -> None:
    with pytest.raises(Refused, match="1 to 200 printable ASCII characters") as refused:
        check_flow(key)
    assert refused.value.field == "settings.flow"
    with pytest.raises(Refused) as refused:
        check_flow(Flow(key=key))
    assert refused.value.field == "settings.flow.key"


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"parallel": 1},
        {"parallel": 100_000},
        {"parallel": "auto", "rate": 10},
        {"rate": 0.5, "per": 60, "burst": 10},
        {"rate": 1, "per": 86_400},
        {"ordered": True, "parallel": 1},
        {"ordered": True, "rate": 5},
        {"ordered": False, "parallel": 7},
    ],
)
def test_sensible_limits_are_accepted(limits: dict[str, Any]) -> None:
    check_limits(msgspec.convert(limits, Limits))


@pytest.mark.parametrize(
    ("limits", "field", "words"),
    [
        ({"parallel": 0}, "parallel", "a whole number from 1 to 100000 is needed, got 0"),
        ({"parallel": 100_001}, "parallel", "got 100001"),
        ({"rate": 0}, "rate", "a number above 0 and up to 1000000 is needed, got 0"),
        ({"rate": -1}, "rate", "got -1"),
        ({"rate": 2_000_000}, "rate", "got 2e"),
        ({"rate": float("inf")}, "rate", "got inf"),
        ({"rate": 1, "per": 0.01}, "per", "seconds from 0.1 to 86400"),
        ({"rate": 1, "per": 90_000}, "per", "got 90000"),
        ({"per": 1}, "per", "give a rate"),
        ({"burst": 5}, "burst", "give a rate"),
        ({"rate": 1, "burst": 0}, "burst", "got 0"),
        ({"rate": 0.5, "per": 86_400}, "rate", "at least one delivery a day is needed, got one in 172800 seconds"),
        ({"ordered": True, "parallel": 2}, "parallel", "one task at a time"),
        ({"ordered": True, "parallel": "auto"}, "parallel", "one task at a time"),
    ],
)
def test_absurd_and_contradicting_limits_are_rejected(limits: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        check_limits(msgspec.convert(limits, Limits), "settings.flow")
    assert refused.value.field == f"settings.flow.{field}"


@pytest.mark.parametrize(
    "flow", [{"parallel": "many"}, {"parallel": 1.5}, {"keys": "x"}, {"rate": "5"}, {"ordered": 1}, 5]
)
def test_values_of_a_wrong_type_are_no_flow(flow: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(flow, str | Flow)


def test_any_and_spacing() -> None:
    assert not Limits().any and not Limits(ordered=False).any
    assert Limits(parallel=1).any and Limits(rate=1).any and Limits(ordered=True).any
    assert Limits(rate=4, per=2).spacing == 0.5
    assert Limits(parallel=4).spacing == 0
