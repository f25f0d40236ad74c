"""`qtask flow`: show flows, and set, pause, resume, reset and remove their limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from qtask.cli.connection import connected
from qtask.cli.options import json_flag, settings
from qtask.config import Config

if TYPE_CHECKING:
    from qtask.model.flow_record import FlowRecord

_LOOK = ("redis_url", "data_dir")


@click.group()
def flow() -> None:
    """Show flows and set their limits.

    The tasks of a flow share its limits. A task belongs to the flow that `settings.flow` names, else to that of its
    destination, such as https://api.example.org. Only flows with limits, a pause, a rest or waiting tasks are listed.
    """


@flow.command("list")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="most flows")
@json_flag
@settings(*_LOOK)
def list_flows(config: Config, limit: int, as_json: bool) -> None:
    """List flows, those with the most waiting tasks first."""
    from qtask.observe import tables
    from qtask.store import flow_records

    redis = connected(config)
    records = flow_records.busiest_flows(redis, limit)
    if as_json:
        for record in records:
            click.echo(tables.to_json(record))
    else:
        tables.print_flows(records, flow_records.count_flows(redis))


@flow.command()
@click.argument("key")
@json_flag
@settings(*_LOOK)
def show(config: Config, key: str, as_json: bool) -> None:
    """Show one flow."""
    from qtask.store import flow_records

    _print(flow_records.show_flow(connected(config), key), as_json)


@flow.command("set")
@click.argument("key")
@click.option("--parallel", metavar="N", help="deliveries in flight at most, or auto, or none to remove this limit")
@click.option("--rate", metavar="N", help="deliveries that begin in --per seconds at most, or none")
@click.option("--per", type=float, metavar="SECONDS", help="the span of --rate  [default: 1]")
@click.option("--burst", type=int, metavar="N", help="deliveries that may begin at once after a pause  [default: 1]")
@click.option("--ordered/--unordered", default=None, help="one delivery after another, in order")
@json_flag
@settings(*_LOOK)
def set_flow(config: Config, key: str, as_json: bool, **given: Any) -> None:
    """Set limits of a flow. Those that are not given stay as they are."""
    from qtask.model.flow_changes import changes_of
    from qtask.store import flow_records

    limits = {name: value for name, value in given.items() if value is not None}
    for name, kind in (("parallel", int), ("rate", float)):
        if name in limits:
            limits[name] = None if limits[name] == "none" else _number(kind, limits[name])
    _print(flow_records.set_flow(connected(config), key, changes_of(limits, removes="none")), as_json)


def _number(kind: Callable[[str], float], text: str) -> float | str:
    """The number that a flag has, or the text that is none."""
    try:
        return kind(text)
    except ValueError:
        return text


def _decision(name: str, about: str, decide: Callable[[Any, str], Any]) -> None:
    """Adds a command that changes one flow."""

    @flow.command(name, help=about)
    @click.argument("key")
    @json_flag
    @settings(*_LOOK)
    def command(config: Config, key: str, as_json: bool) -> None:
        _print(decide(connected(config), key), as_json)


def _pause(redis: Any, key: str) -> FlowRecord:
    from qtask.store import flow_records

    return flow_records.pause_flow(redis, key)


def _resume(redis: Any, key: str) -> FlowRecord:
    from qtask.store import flow_records

    return flow_records.pause_flow(redis, key, False)


def _reset(redis: Any, key: str) -> FlowRecord:
    from qtask.store import flow_records

    return flow_records.reset_flow(redis, key)


_decision("pause", "Pause a flow: none of its deliveries begins.", _pause)
_decision("resume", "Resume a flow that was paused.", _resume)
_decision("reset", "End the rest of a flow, and close its circuit breaker.", _reset)


@flow.command()
@click.argument("key")
@json_flag
@settings(*_LOOK)
def remove(config: Config, key: str, as_json: bool) -> None:
    """Remove the limits, the pause and the rest of a flow. Tasks that wait in it are delivered."""
    from qtask.observe import tables
    from qtask.store import flow_records

    flow_records.remove_flow(connected(config), key)
    click.echo(tables.to_json({"key": key, "removed": True}) if as_json else f"{key} has no limits any more")


def _print(record: FlowRecord, as_json: bool) -> None:
    from qtask.observe import tables

    if as_json:
        click.echo(tables.to_json(record))
    else:
        tables.print_flow(record)
