"""The flags that destinations add to `qtask send`, and the address and data that they stand for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click
import msgspec

from qtask.destinations.registry import REGISTRY
from qtask.model.destination import Destination, Flag
from qtask.model.errors import QTaskError


def options(own: Collection[str]) -> list[click.Option]:
    """The flags of all destinations: first those that name a destination, then the further ones.

    Args:
        own: the flags of `qtask send` itself, with their hyphens.

    Two destinations may share a further flag. Raises `QTaskError` for a flag that is taken.
    """
    REGISTRY.look_for_more()
    known = REGISTRY.known()
    _check_names(known, own)
    shared = {flag.name: flag for one in known for flag in one.flags}
    return [_option(flag) for flag in (*(one.flag for one in known), *shared.values())]


def _check_names(known: Sequence[Destination[...]], own: Collection[str]) -> None:
    """Raises `QTaskError` for a flag that belongs to `qtask send` itself or to another destination.

    click would hand the flag to one of the two without an error.
    """
    taken = dict.fromkeys(own, "`qtask send` itself")
    further: dict[str, str] = {}  # these may be shared, but not used to name a destination
    for one in known:
        owner = f"the destination {one.name!r}"
        _require_free(one, one.flag, taken | further)
        taken[one.flag.name] = owner
        for flag in one.flags:
            _require_free(one, flag, taken)
            further[flag.name] = owner


def _require_free(destination: Destination[...], flag: Flag, taken: Mapping[str, str]) -> None:
    if flag.name in taken:
        module = destination.deliverer.partition(":")[0]
        raise QTaskError(
            f"the destination {destination.name!r} (of {module}) adds the flag {flag.name}, which belongs to "
            f"{taken[flag.name]}: rename the flag, or uninstall the package of the destination"
        )


def _option(flag: Flag) -> click.Option:
    names = [flag.name, _parameter(flag)]
    if not flag.metavar:
        return click.Option(names, is_flag=True, help=flag.about)
    return click.Option(names, metavar=flag.metavar, multiple=flag.many, help=flag.about)


def _parameter(flag: Flag) -> str:
    """The name of the parameter, which differs from those of the command itself, such as FILE."""
    return f"flag_{flag.key}"


def chosen(flags: Mapping[str, Any]) -> tuple[Destination[...], str]:
    """The destination that the flags name, and the link.

    Args:
        flags: the values of all parameters of the command.

    Raises `QTaskError` when they name none or several, or when a flag belongs to another destination.
    """
    known = REGISTRY.known()
    given = [one for one in known if flags[_parameter(one.flag)]]
    if len(given) != 1:
        forms = ", ".join(f"{one.flag.name} {one.flag.metavar}".strip() for one in known)
        raise QTaskError(f"a destination is needed: one of {forms}, or a FILE of dicts")
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
    """`settings.data` of a task; `UNSET` for none. The gateway checks whether data is required. Raises `QTaskError`.

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
            raise QTaskError(f'--data must be JSON, such as {{"a": 1}} or "text" in quotes: {error}') from None
    return destination.data_of_flags({flag.key: flags[_parameter(flag)] for flag in destination.flags}, data)
