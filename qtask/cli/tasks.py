"""`qtask list`, `show`, `cancel`, `forget`: show tasks, and remove single ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from qtask.cli.connection import connected
from qtask.cli.options import LOOK, LOOK_AT_QUEUES, json_flag, queue_flag, settings
from qtask.config import Config
from qtask.model.errors import QTaskError, WrongState

if TYPE_CHECKING:
    from redis import Redis

    from qtask.model.record import TaskRecord


@click.command("list")
@click.option(
    "--state",
    type=click.Choice(["scheduled", "waiting", "queued", "started", "delivered", "dead", "all"]),
    default="scheduled",
    show_default=True,
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="most tasks of each state"
)
@queue_flag
@json_flag
@settings(*LOOK_AT_QUEUES, "mask_headers")
def list_tasks(config: Config, state: Any, limit: int, queue: str | None, as_json: bool) -> None:
    """List tasks in one state, or in all.

    Tasks that are due next come first; of tasks that have ended, the newest. A task that waits for a retry is
    scheduled; the table shows it as `retrying`, with the time of the next attempt. A task that is due and waits for its
    flow is waiting; `qtask show ID` says why.
    """
    from qtask.model.mask import mask_of
    from qtask.model.record import STATES
    from qtask.observe import tables
    from qtask.store import all_queues

    redis = connected(config)
    states = STATES if state == "all" else (state,)
    mask = mask_of(config.mask_headers)
    found = (record for one in states for record in all_queues.each_task(redis, queue, one, limit, mask))
    records = _each_once(found)
    if as_json:
        for record in records:
            click.echo(tables.to_json(record))
    else:
        tables.print_tasks(list(records), all_queues.count_tasks(redis, queue))


def _each_once(records: Iterable[TaskRecord]) -> Iterator[TaskRecord]:
    """Leaves out tasks that were already listed, because they moved to another state meanwhile."""
    seen: set[str] = set()
    for record in records:
        if record.id not in seen:
            seen.add(record.id)
            yield record


@click.command()
@click.argument("id")
@json_flag
@settings(*LOOK, "mask_headers")
def show(config: Config, id: str, as_json: bool) -> None:
    """Show a task and its deliveries."""
    from qtask.model.mask import mask_of
    from qtask.observe import tables
    from qtask.store import tasks

    record = tasks.show(connected(config), id, mask_of(config.mask_headers))
    if as_json:
        click.echo(tables.to_json(record))
    else:
        tables.print_task(record)


@click.command()
@click.argument("ids", nargs=-1, required=True)
@json_flag
@settings(*LOOK)
def cancel(config: Config, ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks that wait to be delivered.

    Their ids may be used again. Exits with 1 if a task is being delivered or has ended, which cannot be cancelled.
    """
    from qtask.store import tasks

    _decide(config, ids, as_json, tasks.cancel, "cancelled")


@click.command()
@click.argument("ids", nargs=-1, required=True)
@json_flag
@settings(*LOOK)
def forget(config: Config, ids: tuple[str, ...], as_json: bool) -> None:
    """Forget delivered tasks.

    Deletes everything that is kept of them, except ids that the client chose: these stay known for
    `idempotency_seconds`, so that the same task is not delivered twice.
    """
    from qtask.store import tasks

    _decide(config, ids, as_json, tasks.forget, "forgotten")


def _decide(
    config: Config, ids: tuple[str, ...], as_json: bool, step: Callable[[Redis, str], str], done: str
) -> NoReturn:
    """Takes a step with each task, reports each result, and exits with 1 if the step failed for any of them."""
    redis = connected(config)
    failed = False
    for task_id in ids:
        answer = {"id": task_id}
        try:
            answer["was"] = step(redis, task_id)
        except QTaskError as error:
            failed = True
            answer |= {"error": str(error), **({"state": error.state} if isinstance(error, WrongState) else {})}
        if as_json:
            click.echo(json.dumps(answer))
        elif "error" in answer:
            click.echo(f"qtask: {answer['error']}", err=True)
        else:
            click.echo(f"{task_id} {done}; it was {answer['was']}")
    sys.exit(1 if failed else 0)
