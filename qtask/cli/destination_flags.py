"""The flags of `qtask send` that the destinations bring, and the address and data that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import msgspec

from qtask.destinations.registry import REGISTRY
from qtask.model.destination import Destination, Flag
from qtask.model.errors import QTaskError


def options() -> list[click.Option]:
    """The flags: first where to, then what some destinations take beside it. Two destinations may share a flag."""
    REGISTRY.look_for_more()
    known = REGISTRY.known()
    shared = {flag.name: flag for one in known for flag in one.flags}
    return [_option(flag) for flag in (*(one.flag for one in known), *shared.values())]


def _option(flag: Flag) -> click.Option:
    names = [flag.name, _parameter(flag)]
    if not flag.metavar:
        return click.Option(names, is_flag=True, help=flag.about)
    return click.Option(names, metavar=flag.metavar, multiple=flag.many, help=flag.about)


def _parameter(flag: Flag) -> str:
    """The name of the parameter; apart from those of the command itself, such as its FILE."""
    return f"flag_{flag.key}"


def chosen(flags: Mapping[str, Any]) -> tuple[Destination[...], str]:
    """The destination that flags name, and the link.

    Args:
        flags: the values of all parameters of the command.

    Raises `QTaskError` when they name none or several, or when a flag is given that goes with another destination.
    """
    known = REGISTRY.known()
    given = [one for one in known if flags[_parameter(one.flag)]]
    if len(given) != 1:
        forms = ", ".join(f"{one.flag.name} {one.flag.metavar}".strip() for one in known)
        raise QTaskError(f"say where to: one of {forms}, or a FILE of dicts")
    (destination,) = given
    for other in known:
        foreign = [flag for flag in other.flags if flag not in destination.flags]
        if any(flags[_parameter(flag)] for flag in foreign):
            *most, last = [flag.name for flag in foreign]
            names = f"{', '.join(most)} and {last} go" if most else f"{last} goes"
            raise QTaskError(f"{names} with {other.flag.name}")
    value = flags[_parameter(destination.flag)]
    return destination, value if isinstance(value, str) else ""


def settings_data(destination: Destination[...], flags: Mapping[str, Any]) -> Any:
    """`settings.data` of a task; `UNSET` for none. Whether there must be some, the gateway says. Raises `QTaskError`.

    Args:
        destination: as `chosen` returns it.
        flags: the values of all parameters of the command.
    """
    data = None
    if flags["data"] is not None:
        try:
            data = msgspec.Raw(msgspec.json.format(flags["data"], indent=-1).encode())
            msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise QTaskError(f'--data wants JSON, such as {{"a": 1}} or "text" in quotes: {error}') from None
    return destination.data_of_flags({flag.key: flags[_parameter(flag)] for flag in destination.flags}, data)
