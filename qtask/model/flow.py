"""Flows: what `settings.flow` and the limits of a flow may hold. Pure.

The tasks of a flow share its limits. A task belongs to the flow whose key it names, else to that of its destination.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from msgspec import UNSET, Struct, UnsetType, structs

from qtask.model.errors import Refused

FIELD = "settings.flow"
MAX_KEY_CHARACTERS = 200
MAX_PARALLEL = 100_000
MAX_RATE = 1_000_000.0  # deliveries in `per` seconds
MIN_PER_SECONDS = 0.1
MAX_PER_SECONDS = 86_400.0
MAX_SPACING_SECONDS = 86_400.0  # between two deliveries: fewer than one a day is a mistake in units
MAX_BURST = 100_000

MAX_NAME_CHARACTERS = 400  # of a flow that has the name of its destination, such as a host of 253 characters

_KEY = re.compile(r"[ -~]+", re.ASCII)


class Limits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of a flow. A field that is left out sets no limit.

    Attributes:
        parallel: deliveries in flight at most; `auto` adapts to the destination.
        rate: at most so many deliveries begin in `per` seconds, evenly spaced.
        per: seconds; 1 when left out.
        burst: so many deliveries may begin at once after a pause; 1 when left out.
        ordered: one delivery after another, by due and then by submission. A task that waits for a retry holds back
            those behind it.
    """

    parallel: int | Literal["auto"] | UnsetType = UNSET
    rate: float | UnsetType = UNSET
    per: float | UnsetType = UNSET
    burst: int | UnsetType = UNSET
    ordered: bool | UnsetType = UNSET

    @property
    def any(self) -> bool:
        """Whether a limit is set."""
        return self.parallel is not UNSET or self.rate is not UNSET or self.ordered is True

    @property
    def spacing(self) -> float:
        """Seconds between two deliveries of a backlog; 0 without a rate."""
        if self.rate is UNSET:
            return 0.0
        return (1.0 if self.per is UNSET else self.per) / self.rate


class Changes(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Changes to the limits of a flow: those that are left out stay, and None removes one. See `Limits`."""

    parallel: int | Literal["auto"] | UnsetType | None = UNSET
    rate: float | UnsetType | None = UNSET
    per: float | UnsetType | None = UNSET
    burst: int | UnsetType | None = UNSET
    ordered: bool | UnsetType | None = UNSET


def changed(limits: Limits, changes: Limits | Changes) -> Limits:
    """The limits after some changes. A new rate does not keep the span and the burst of the old one."""
    fields = structs.asdict(limits)
    if changes.rate is not UNSET:
        fields |= {"per": UNSET, "burst": UNSET}
    fields |= {name: value for name, value in structs.asdict(changes).items() if value is not UNSET}
    return Limits(**{name: UNSET if value is None else value for name, value in fields.items()})


class Flow(Limits, frozen=True):
    """`settings.flow` as an object: a key, and limits that become those of the flow.

    Attributes:
        key: any printable ASCII; the destination when left out.
    """

    key: str | UnsetType = UNSET


def check_flow(flow: str | Flow) -> None:
    """Checks `settings.flow`. Raises `Refused`, which names the field."""
    if isinstance(flow, str):
        check_key(flow, FIELD)
        return
    if flow.key is not UNSET:
        check_key(flow.key, f"{FIELD}.key")
    check_limits(flow, FIELD)


def check_key(key: str, field: str = "key", most: int = MAX_KEY_CHARACTERS) -> None:
    """Raises `Refused` for a key that is empty, longer than `most`, or holds other characters than printable ASCII."""
    if len(key) > most or not _KEY.fullmatch(key):
        words = f"a key is 1 to {most} printable ASCII characters"
        raise Refused("invalid_value", field, f"{words}, got {len(key)} characters: {key[:40]!r}")


def check_limits(limits: Limits, field: str = "") -> None:
    """Checks the limits of a flow.

    Args:
        limits: those.
        field: path of the object that holds them, for messages.

    Raises `Refused` for a number out of its bounds, and for limits that contradict each other.
    """
    check_values(limits, field)
    prefix = f"{field}." if field else ""
    if limits.rate is UNSET and limits.per is not UNSET:
        raise Refused("invalid_value", f"{prefix}per", "per is the span of a rate; give a rate, or leave it out")
    if limits.rate is UNSET and limits.burst is not UNSET:
        raise Refused("invalid_value", f"{prefix}burst", "burst belongs to a rate; give a rate, or leave it out")
    if limits.spacing > MAX_SPACING_SECONDS:
        words = f"at least one delivery a day is needed, got one in {limits.spacing:.6g} seconds; `per` is up to a day"
        raise Refused("invalid_value", f"{prefix}rate", words)
    if limits.ordered is True and limits.parallel is not UNSET and limits.parallel != 1:
        words = "an ordered flow delivers one task at a time; leave parallel out, or set it to 1"
        raise Refused("invalid_value", f"{prefix}parallel", words)


def check_values(limits: Limits | Changes, field: str = "") -> None:
    """Checks each number by itself. Raises `Refused` for one that is not finite or out of its bounds."""
    prefix = f"{field}." if field else ""
    if isinstance(limits.parallel, int):
        _check_count(f"{prefix}parallel", limits.parallel, MAX_PARALLEL)
    if isinstance(limits.rate, int | float):
        _check_number(f"{prefix}rate", limits.rate, 0.0, MAX_RATE)
    if isinstance(limits.per, int | float) and not MIN_PER_SECONDS <= limits.per <= MAX_PER_SECONDS:
        words = f"seconds from {MIN_PER_SECONDS:g} to {MAX_PER_SECONDS:.0f} (a day) are needed"
        raise Refused("invalid_value", f"{prefix}per", f"{words}, got {limits.per:g}")
    if isinstance(limits.burst, int):
        _check_count(f"{prefix}burst", limits.burst, MAX_BURST)


def _check_count(field: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        got = count if abs(count) < 10**15 else f"{count:.6g}" if abs(count) < 10**300 else "a much larger one"
        raise Refused("invalid_value", field, f"a whole number from 1 to {most} is needed, got {got}")


def _check_number(field: str, number: float, above: float, most: float) -> None:
    if not (math.isfinite(number) and above < number <= most):
        raise Refused(
            "invalid_value", field, f"a number above {above:g} and up to {most:.0f} is needed, got {number:g}"
        )
