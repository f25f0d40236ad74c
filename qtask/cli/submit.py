"""`qtask send`: submit a task from flags, or many from a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from qtask.cli.options import duration, duration_or_auto, json_flag, settings
from qtask.config import Config, in_url
from qtask.model.errors import QTaskError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_TASK_FLAGS = (
    click.option(
        "--in", "delay", type=duration, help="when: after 90 (seconds), 90s, 10m, 2h, 3d or 1h30m  [default: 0]"
    ),
    click.option("--at", metavar="INSTANT", help="when: ISO 8601 with zone, or Unix seconds"),
    click.option("--title", help="name of the task"),
    click.option("--data", metavar="JSON", help="the data to send, as JSON (for --http the JSON body)"),
    click.option(
        "--timeout", type=duration_or_auto, help="how long a delivery may take; auto: as long as lately  [default: 30]"
    ),
    click.option("--attempts", type=int, metavar="N", help="deliveries in all, retries included  [default: 5]"),
    click.option("--expires", type=duration, help="how long after its due instant a delivery may still begin"),
    click.option("--flow", metavar="KEY", help='flow of the task: its key, or JSON such as {"key": "api", "rate": 5}'),
    click.option("--queue", metavar="NAME", help="queue of the task  [default: the one that is configured]"),
    click.option("--id", "task_id", metavar="ID", help="idempotency key: a second task with it is a duplicate"),
)


def _task_flags(command: _Command) -> _Command:
    """Adds the flags that describe a task."""
    for flag in reversed(_TASK_FLAGS):
        command = flag(command)
    return command


class _WithDestinations(click.Command):
    """Lists the flags of the destinations before its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from qtask.cli.destination_flags import options

        own = super().get_params(ctx)
        arguments = [one for one in own if isinstance(one, click.Argument)]
        flags = {flag for one in own if isinstance(one, click.Option) for flag in (*one.opts, *one.secondary_opts)}
        return [*arguments, *options(flags), *own[len(arguments) :]]


@click.command(cls=_WithDestinations)
@click.argument("file", type=click.File("rb"), required=False)
@_task_flags
@json_flag
@settings("redis_url", "host", "port", "mask_headers")
def send(config: Config, file: Any, as_json: bool, **flags: Any) -> None:
    """Submit a task, or a file of them.

    Submits one task from flags, or many from FILE (`-` for standard input). FILE holds NDJSON, one JSON object in any
    layout, or a JSON array. Tasks go to the gateway, or with --redis directly to Redis. Exits with 1 if any task was
    refused; all others are accepted.
    """
    from qtask.cli import sending, task_files
    from qtask.model.mask import mask_of

    given = [name for name, value in flags.items() if value not in (None, False, ())]
    if file is not None and given:
        raise QTaskError("FILE holds complete dicts: leave out the flags that describe a task")
    items = task_files.read(file) if file is not None else sending.from_flags(flags, mask_of(config.mask_headers))
    url = config.redis_url or f"socket://{in_url(config.local_host)}:{config.port}"
    with_bar = file is not None and not file.isatty() and not as_json
    if sending.send(url, config.queue, items, as_json, with_bar):
        sys.exit(1)
