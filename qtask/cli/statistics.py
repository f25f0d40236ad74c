"""`qtask stats`, `graph`: show how punctual deliveries were."""

from __future__ import annotations

from pathlib import Path

import click

from qtask.cli.connection import connected
from qtask.cli.options import LOOK, LOOK_AT_QUEUES, check_folder, json_flag, queue_flag, settings
from qtask.config import Config
from qtask.model.errors import NotFound, QTaskError


@click.command()
@queue_flag
@json_flag
@settings(*LOOK_AT_QUEUES)
def stats(config: Config, queue: str | None, as_json: bool) -> None:
    """Print how punctual deliveries were.

    --queue restricts the number of tasks in each state, not the figures of deliveries.
    """
    from qtask.observe import stats as statistics
    from qtask.observe import tables
    from qtask.store import all_queues

    redis = connected(config)
    types = statistics.summary(redis)
    counts = all_queues.count_tasks(redis, queue)
    if as_json:
        click.echo(tables.to_json({"types": types, "tasks": counts}))
    else:
        tables.print_stats(types, counts)


@click.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="file to write, .png or .svg"
)
@click.option("--id", "task_id", help="fetch the picture (PNG) of this __graph__ task instead of drawing one")
@settings(*LOOK)
def graph(config: Config, output: Path, task_id: str | None) -> None:
    """Draw how punctual deliveries were."""
    kind = output.suffix.lower()
    if kind not in (".png", ".svg") or (task_id and kind != ".png"):
        raise QTaskError(
            f"the name of the picture must end in {'.png' if task_id else '.png or .svg'}, got {str(output)!r}"
        )
    check_folder(output)
    redis = connected(config)
    if task_id:
        from qtask.store import graphs

        kept = graphs.read(redis, task_id)
        if kept is None:
            raise NotFound(f"there is no graph {task_id!r}; graphs are kept for a day")
        picture = kept
    else:
        from qtask.observe.graph import render

        picture = render(redis, "svg" if kind == ".svg" else "png")
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise QTaskError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{output} ({len(picture)} bytes)")
