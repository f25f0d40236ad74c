"""`qtask retry`, `remove`: retry or remove dead letters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtask.cli.connection import connected
from qtask.cli.options import LOOK_AT_QUEUES, json_flag, queue_flag, settings
from qtask.config import Config
from qtask.model.errors import QTaskError

if TYPE_CHECKING:
    from redis import Redis

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _filter_flags(command: _Command) -> _Command:
    """Adds the flags that select dead letters."""
    for option in (
        click.option("--title", metavar="TEXT", help="tasks whose title contains this"),
        click.option("--link", metavar="TEXT", help="tasks whose link contains this"),
        click.option("--error", metavar="KIND", help="tasks that failed with this: timeout, connect, 404, …"),
        click.option("--type", metavar="TYPE", help="tasks of this type: http, socket, …"),
        click.option("--all", "everything", is_flag=True, help="all dead tasks"),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("ids", nargs=-1)
@_filter_flags
@queue_flag
@json_flag
@settings(*LOOK_AT_QUEUES)
def retry(config: Config, ids: tuple[str, ...], queue: str | None, as_json: bool, **wanted: Any) -> None:
    """Retry dead tasks.

    Select them by id, with the flags below, or with --all. They get all their attempts again.
    """
    from qtask.store import tasks

    redis = connected(config)
    queued = [task_id for page in _selected(redis, queue, ids, wanted) for task_id in tasks.retry(redis, page)]
    for task_id in queued:
        click.echo(json.dumps({"id": task_id, "queued": True}) if as_json else f"{task_id} is queued again")
    _report_missing(set(ids) - set(queued), as_json)


@click.command()
@click.argument("ids", nargs=-1)
@_filter_flags
@queue_flag
@json_flag
@settings(*LOOK_AT_QUEUES)
def remove(config: Config, ids: tuple[str, ...], queue: str | None, as_json: bool, **wanted: Any) -> None:
    """Remove dead tasks.

    Select them by id, with the flags below, or with --all. The ids of removed tasks may be used again. To remove tasks
    that wait, use `cancel`; for delivered tasks, use `forget`.
    """
    from qtask.store import tasks

    redis = connected(config)
    pages = _selected(redis, queue, ids, wanted)
    removed = [task_id for page in pages for task_id in tasks.remove_dead(redis, page)]
    for task_id in removed:
        click.echo(json.dumps({"id": task_id, "removed": True}) if as_json else f"{task_id} removed")
    _report_missing(set(ids) - set(removed), as_json)


def _selected(redis: Redis, queue: str | None, ids: tuple[str, ...], wanted: dict[str, Any]) -> Iterator[Sequence[str]]:
    """Pages of the ids that the arguments select. Raises `QTaskError` unless exactly one way to select is used."""
    from qtask.store.all_queues import dead_pages
    from qtask.store.tasks import Filter

    everything = wanted.pop("everything")
    fits = Filter(**wanted)
    if (bool(ids) + everything + (fits != Filter())) != 1:
        raise QTaskError(
            "select tasks by IDs, with --all, or by what they have in common (--type, --error, --link, --title)"
        )
    return iter([ids]) if ids else dead_pages(redis, queue, fits)


def _report_missing(ids: set[str], as_json: bool) -> None:
    """Reports the given ids that belong to no dead task, and exits: with 1 if there are any, else with 0."""
    for task_id in sorted(ids):
        message = f"no dead task has the id {task_id!r}"
        click.echo(json.dumps({"id": task_id, "error": message}) if as_json else f"qtask: {message}", err=not as_json)
    sys.exit(1 if ids else 0)
