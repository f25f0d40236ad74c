"""The command line: one thin function a command; what a command needs is imported when it runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from qtask.config import Config, flag_name, load
from qtask.errors import QTaskError
from qtask.version import VERSION

if TYPE_CHECKING:
    from redis import Redis

_Command = TypeVar("_Command", bound=Callable[..., Any])

_STORE = ("redis_url", "queue")
_LOGS = ("log_level", "log_format")
_GATEWAY = (*_STORE, "host", "port", "http_port", "max_bytes", "max_connections", "idle_seconds", *_LOGS)
_KEEPING = ("history_keep", "history_seconds", "stats_keep", "stats_seconds")
_WORKER = (*_STORE, "concurrency", "data_dir", "pipe_dir", *_KEEPING, *_LOGS)


def settings(*names: str) -> Callable[[_Command], _Command]:
    """Adds the flags of some settings, and `--config`, to a command, which gets them as a `Config`."""

    def decorate(command: _Command) -> _Command:
        def wrapped(config_file: str | None, **arguments: Any) -> Any:
            flags = {name: arguments.pop(name) for name in names}
            return command(load(flags, file=config_file), **arguments)

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        table = {setting.name: setting for setting in fields(Config)}
        for name in reversed(names):
            setting = table[name]
            kind = type(setting.default)
            default = "" if setting.default == "" else f"  [default: {setting.default}]"
            about = setting.metadata["about"] + default
            wrapped = click.option(flag_name(name), name, type=kind, default=None, help=about)(wrapped)
        flag = click.option("--config", "config_file", type=click.Path(dir_okay=False), help="a TOML file of settings")
        return flag(wrapped)  # type: ignore[return-value]

    return decorate


_json_flag = click.option("--json", "as_json", is_flag=True, help="for programs: JSON, a line each")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="qtask")
def cli() -> None:
    """QTask delivers requests later. Begin with `qtask demo`, go on with `qtask up`."""


# --- processes -------------------------------------------------------------------------------------------------


@cli.command()
@settings("redis_url", "workers", *dict.fromkeys((*_GATEWAY[1:], *_WORKER[1:])))
def up(config: Config) -> None:
    """Run gateway, scheduler and workers, on a Redis of its own when none is named."""
    from qtask import log
    from qtask.up import up as run

    log.setup(config, "up")
    run(config)


@cli.command()
@settings(*_GATEWAY)
def gateway(config: Config) -> None:
    """Run a gateway: accept tasks on the socket, the inbox and HTTP."""
    from qtask import log
    from qtask.gateway import run

    log.setup(config, "gateway")
    run(config)


@cli.command()
@settings(*_STORE, *_LOGS)
def scheduler(config: Config) -> None:
    """Run a scheduler: move due tasks to their queues."""
    from qtask import log
    from qtask.scheduler import run

    log.setup(config, "scheduler")
    run(config)


@cli.command()
@settings(*_WORKER)
def worker(config: Config) -> None:
    """Run a worker: deliver tasks."""
    from qtask import log
    from qtask.worker import run

    log.setup(config, "worker")
    run(config)


# --- tasks -----------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--http", metavar="URL", help="deliver to an http or https URL")
@click.option("--socket", "socket_link", metavar="HOST:PORT", help="deliver to a socket")
@click.option("--pipe", metavar="NAME", help="deliver to a named pipe")
@click.option("--graph", is_flag=True, help="draw a graph")
@click.option("--in", "delay", type=float, metavar="SECONDS", help="when: seconds from now  [default: 0]")
@click.option("--at", metavar="INSTANT", help="when: ISO 8601 with zone, or Unix seconds")
@click.option("--title", help="name of the task")
@click.option("--method", help="HTTP method")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="an HTTP header, or `auto`")
@click.option("--data", metavar="JSON", help="what is sent: JSON (for --http the JSON body)")
@click.option("--timeout", type=float, metavar="SECONDS", help="how long the delivery may take")
@_json_flag
@settings("redis_url", "queue", "host", "port")
def send(config: Config, file: Any, as_json: bool, **flags: Any) -> None:
    """Submit one task from flags, or many from FILE (`-` for standard input): NDJSON, or one JSON document."""
    from qtask import send as sending

    tasks = sending.from_file(file) if file is not None else sending.from_flags(flags)
    url = config.redis_url or f"socket://{config.host}:{config.port}"
    if sending.send(url, config.queue, tasks, as_json):
        sys.exit(1)


@cli.command("list")
@click.option(
    "--state",
    type=click.Choice(["scheduled", "queued", "started", "delivered", "dead"]),
    default="scheduled",
    show_default=True,
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@_json_flag
@settings(*_STORE)
def list_(config: Config, state: Any, limit: int, as_json: bool) -> None:
    """List tasks in one state, the next due first; of what has ended the newest first."""
    from qtask import tables
    from qtask.store import tasks

    redis = _connect(config)
    records = tasks.list_tasks(redis, config.queue, state, limit)
    if as_json:
        for record in records:
            click.echo(tables.to_json(record))
    else:
        tables.print_tasks(records, tasks.count_tasks(redis, config.queue))


@cli.command()
@click.argument("id")
@_json_flag
@settings(*_STORE)
def show(config: Config, id: str, as_json: bool) -> None:
    """Show one task, with the outcome of each delivery."""
    from qtask import tables
    from qtask.store import tasks

    record = tasks.show(_connect(config), id)
    if as_json:
        click.echo(tables.to_json(record))
    else:
        tables.print_task(record)


@cli.command()
@click.argument("ids", nargs=-1, required=True)
@_json_flag
@settings(*_STORE)
def cancel(config: Config, ids: tuple[str, ...], as_json: bool) -> None:
    """Remove tasks that are not being delivered."""
    from qtask.store import tasks

    redis = _connect(config)
    for task_id in ids:
        state = tasks.cancel(redis, task_id)
        click.echo(json.dumps({"id": task_id, "was": state}) if as_json else f"{task_id} removed; it was {state}")


# --- statistics ------------------------------------------------------------------------------------------------


@cli.command()
@_json_flag
@settings(*_STORE)
def stats(config: Config, as_json: bool) -> None:
    """Print how punctual and how fast deliveries were."""
    from qtask import stats as statistics
    from qtask import tables
    from qtask.store import tasks

    redis = _connect(config)
    kinds = statistics.summary(redis)
    counts = tasks.count_tasks(redis, config.queue)
    if as_json:
        click.echo(tables.to_json({"kinds": kinds, "tasks": counts}))
    else:
        tables.print_stats(kinds, counts)


@cli.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="a .png or .svg file"
)
@click.option("--id", "task_id", help="instead of drawing: fetch the picture of a __graph__ task")
@settings(*_STORE)
def graph(config: Config, output: Path, task_id: str | None) -> None:
    """Draw how punctual deliveries were."""
    from qtask import stats as statistics

    redis = _connect(config)
    if task_id:
        from qtask.store.keys import graph as graph_key

        picture: Any = redis.get(graph_key(task_id))
        if picture is None:
            raise QTaskError(f"there is no graph {task_id!r}; graphs are kept for a day")
    else:
        from qtask.graph import draw

        picture = draw(statistics.read(redis), "svg" if output.suffix.lower() == ".svg" else "png")
    try:
        output.write_bytes(picture)
    except OSError as error:
        raise QTaskError(f"{output} cannot be written: {error.strerror}") from None
    click.echo(f"{output} ({len(picture)} bytes)")


# --- trying and mending ------------------------------------------------------------------------------------------


@cli.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("qtask-graph.png"),
    show_default=True,
    help="where the graph goes",
)
def demo(output: Path) -> None:
    """Show the whole of it: tasks of every kind, delivered to receivers of its own, and a graph."""
    from qtask.demo import run

    sys.exit(run(output))


@cli.command()
@_json_flag
@settings(*dict.fromkeys((*_STORE, "host", "port", "http_port", "data_dir", "pipe_dir")))
def doctor(config: Config, as_json: bool) -> None:
    """Say what is wrong with this installation, and what to do about it."""
    from qtask import doctor as examination

    findings = examination.examine(config)
    for finding in findings:
        click.echo(json.dumps(finding.as_dict()) if as_json else finding.as_line())
    sys.exit(1 if any(finding.level == "wrong" for finding in findings) else 0)


@cli.command()
@click.argument("process", type=click.Choice(["gateway", "scheduler", "worker"]))
@settings(*dict.fromkeys((*_STORE, "host", "http_port")))
def health(config: Config, process: str) -> None:
    """Exit with 0 when a process of this host is well (for health checks)."""
    from qtask import doctor as examination

    finding = examination.health(config, process)
    click.echo(finding.as_line())
    sys.exit(0 if finding.level == "fine" else 1)


def _connect(config: Config) -> Redis:
    from qtask.embedded import embedded_url
    from qtask.store.connect import connect, require

    url = config.redis_url or embedded_url(Path(config.data_dir)) or config.redis
    redis = connect(url, timeout=10.0)
    require(redis, url)
    return redis


def main() -> None:
    """Runs the command line; errors that QTask raises on purpose become one line and exit code 1."""
    try:
        cli(prog_name="qtask")
    except QTaskError as error:
        click.echo(f"qtask: {error}", err=True)
        sys.exit(1)
