"""`qtask demo`: shows all of QTask in a few seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qtask.cli.options import check_folder
from qtask.cli.processes import need_service


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("qtask-graph.png"),
    show_default=True,
    help="file for the graph",
)
def demo(output: Path) -> None:
    """Show all of QTask in a few seconds.

    Starts everything with its own Redis, submits tasks of every type, delivers them to its own receivers, and draws a
    graph. Only the graph remains.
    """
    from qtask.run.demo import run

    need_service()
    check_folder(output)
    sys.exit(run(output))
