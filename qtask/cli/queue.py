"""`qtask queue`: list, pause, resume and purge queues."""

from __future__ import annotations

import click

from qtask.cli.connection import connected
from qtask.cli.options import json_flag, settings
from qtask.config import Config

_LOOK = ("redis_url", "data_dir")


@click.group()
def queue() -> None:
    """List queues, and pause, resume and purge them.

    A task waits in the queue that `settings.queue` names, else in the one that is configured.
    """


@queue.command("list")
@json_flag
@settings(*_LOOK)
def list_queues(config: Config, as_json: bool) -> None:
    """List queues."""
    from qtask.observe import tables
    from qtask.store import queues

    records = queues.list_queues(connected(config))
    if as_json:
        for record in records:
            click.echo(tables.to_json(record))
    else:
        tables.print_queues(records)


@queue.command()
@click.argument("name")
@json_flag
@settings(*_LOOK)
def pause(config: Config, name: str, as_json: bool) -> None:
    """Pause a queue: none of its deliveries begins.

    Tasks that workers have already claimed are delivered.
    """
    _set_paused(config, name, True, as_json)


@queue.command()
@click.argument("name")
@json_flag
@settings(*_LOOK)
def resume(config: Config, name: str, as_json: bool) -> None:
    """Resume a queue that was paused."""
    _set_paused(config, name, False, as_json)


def _set_paused(config: Config, name: str, paused: bool, as_json: bool) -> None:
    from qtask.observe import tables
    from qtask.store import queues

    record = queues.pause_queue(connected(config), name, paused)
    if as_json:
        click.echo(tables.to_json(record))
    else:
        tables.print_queues([record])


@queue.command()
@click.argument("name")
@json_flag
@settings(*_LOOK)
def purge(config: Config, name: str, as_json: bool) -> None:
    """Cancel the queued tasks of a queue.

    Also those that wait in flows for this queue. Tasks that are not yet due, wait for a retry or are being delivered
    stay.
    """
    from qtask.observe import tables
    from qtask.store import queues

    cancelled = queues.purge_queue(connected(config), name)
    if as_json:
        click.echo(tables.to_json({"name": name, "cancelled": cancelled}))
    else:
        click.echo(f"{cancelled} {'task' if cancelled == 1 else 'tasks'} of the queue {name} cancelled")
