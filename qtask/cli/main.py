"""The command line: one thin function a command; what a command needs is imported when it runs."""

from __future__ import annotations

import codecs
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from qtask.config import Config, concerns, flag_name, in_url, is_duration, load
from qtask.model.errors import NotFound, QTaskError, WrongState, without_extra
from qtask.model.timing import parse_duration
from qtask.version import VERSION

if TYPE_CHECKING:
    from redis import Redis

_Command = TypeVar("_Command", bound=Callable[..., Any])

_CONCERNS = "qtask.concerns"  # where a command finds what is questionable in its settings
_STORE = ("redis_url", "queue")
_LOGS = ("log_level", "log_format", "mask_headers")
_LIMITS = ("max_bytes", "max_held_bytes", "max_connections", "idle_seconds", "hold_seconds", "wait_replicas")
_GATEWAY = (*_STORE, "host", "port", "http_port", "allowed_hosts", *_LIMITS, *_LOGS)
_KEEPING = ("history_keep", "history_seconds", "dead_keep", "id_seconds", "stats_keep", "stats_seconds")
# Commands that only look at Redis find the one of a `qtask up` by the data folder.
_LOOK = (*_STORE, "data_dir")
_WORKER = (*_STORE, "concurrency", "host_connections", "ca_file", "data_dir", "pipe_dir", *_KEEPING, *_LOGS)


def duration(text: str) -> float:
    """Reads a flag that is a span of time: seconds, or a text such as 10m. Its name stands in the help."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def settings(*names: str) -> Callable[[_Command], _Command]:
    """Adds the flags of some settings, and `--config`, to a command, which gets them as a `Config`."""

    def decorate(command: _Command) -> _Command:
        def wrapped(config_file: str | None, **arguments: Any) -> Any:
            flags = {name: arguments.pop(name) for name in names}
            config = load(flags, file=config_file)
            found = concerns(file=config_file)
            if "log_format" in names:
                click.get_current_context().meta[_CONCERNS] = found  # logged when the log is set up
            else:
                for sentence in found:
                    click.echo(f"qtask: {sentence}", err=True)
            return command(config, **arguments)

        wrapped.__doc__ = command.__doc__
        wrapped.__name__ = command.__name__
        wrapped.__click_params__ = list(getattr(command, "__click_params__", []))  # type: ignore[attr-defined]
        table = {setting.name: setting for setting in fields(Config)}
        for name in reversed(names):
            setting = table[name]
            kind = duration if is_duration(name) else type(setting.default)
            default = "" if setting.default == "" else f"  [default: {setting.default}]"
            about = setting.metadata["about"] + default
            wrapped = click.option(flag_name(name), name, type=kind, default=None, help=about)(wrapped)
        flag = click.option("--config", "config_file", type=click.Path(dir_okay=False), help="a TOML file of settings")
        return flag(wrapped)  # type: ignore[return-value]

    return decorate


def _dead_filter(command: _Command) -> _Command:
    """Adds the flags that say which of the dead are meant."""
    for option in (
        click.option("--title", metavar="TEXT", help="those with this in their title"),
        click.option("--link", metavar="TEXT", help="those with this in their link"),
        click.option("--error", metavar="KIND", help="those that failed so: timeout, connect, 404, …"),
        click.option("--type", "kind", metavar="TYPE", help="those of one type: http, socket, …"),
        click.option("--all", "everything", is_flag=True, help="all of them"),
    ):
        command = option(command)
    return command


_json_flag = click.option("--json", "as_json", is_flag=True, help="for programs: JSON, a line each")


class _InOrder(click.Group):
    """Lists the commands as they stand in this file, not by the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="qtask")
def cli() -> None:
    """QTask delivers requests later. Begin with `qtask demo`, go on with `qtask up`."""


# --- processes -------------------------------------------------------------------------------------------------


@cli.command()
@settings("redis_url", "redis_memory_mib", "workers", *dict.fromkeys((*_GATEWAY[1:], *_WORKER[1:])))
def up(config: Config) -> None:
    """Run all of QTask, on a Redis of its own.

    A gateway, a scheduler and workers, each a process that is started again when it dies. With --redis they use that
    Redis; else QTask starts one and keeps its data in --data-dir.
    """
    from qtask.run.up import up as run

    _need_service()
    _run("up", run, config)


@cli.command()
@settings(*_GATEWAY)
def gateway(config: Config) -> None:
    """Run a gateway: accept tasks."""
    from qtask.gateway.process import run

    _run("gateway", run, config)


@cli.command()
@settings(*_STORE, *_LOGS)
def scheduler(config: Config) -> None:
    """Run a scheduler: release due tasks."""
    from qtask.scheduler.process import run

    _run("scheduler", run, config)


@cli.command()
@settings(*_WORKER, "processes")
def worker(config: Config) -> None:
    """Run a worker: deliver tasks."""
    from qtask.worker.process import run

    _run("worker", run, config)


def _need_service() -> None:
    """Raises `ModuleNotFoundError` before other processes are started that would fail for it."""
    for package in ("uvloop", "pycurl", "rq", "rq_scheduler", "matplotlib"):
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def _run(process: str, run: Callable[[Config], None], config: Config) -> None:
    """Runs a process; when it fails for a reason that has words, they are its last event."""
    from qtask.observe import log

    log.setup(config, process)
    for sentence in click.get_current_context().meta.get(_CONCERNS, ()):
        log.logger.warning("setting", extra={"about": sentence})
    try:
        run(config)
    except QTaskError as error:
        log.logger.error("failed", extra={"error": str(error)})
        sys.exit(1)


# --- tasks -----------------------------------------------------------------------------------------------------


class _WithDestinations(click.Command):
    """Has the flags of the destinations before its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from qtask.cli.destination_flags import options

        own = super().get_params(ctx)
        arguments = [one for one in own if isinstance(one, click.Argument)]
        return [*arguments, *options(), *own[len(arguments) :]]


@cli.command(cls=_WithDestinations)
@click.argument("file", type=click.File("rb"), required=False)
@click.option("--in", "delay", type=duration, help="when: after 90 (seconds), 90s, 10m, 2h, 3d or 1h30m  [default: 0]")
@click.option("--at", metavar="INSTANT", help="when: ISO 8601 with zone, or Unix seconds")
@click.option("--title", help="name of the task")
@click.option("--data", metavar="JSON", help="what is sent: JSON (for --http the JSON body)")
@click.option("--timeout", type=duration, help="how long a delivery may take")
@click.option("--attempts", type=int, metavar="N", help="deliveries in all, while they fail  [default: 5]")
@click.option("--expires", type=duration, help="after due, when no delivery begins any more")
@click.option("--id", "task_id", metavar="ID", help="of your choosing: a second task with it is not accepted")
@_json_flag
@settings("redis_url", "queue", "host", "port", "mask_headers")
def send(config: Config, file: Any, as_json: bool, **flags: Any) -> None:
    """Submit a task, or a file of them.

    One task from flags, or many from FILE (`-` for standard input), which holds NDJSON, one JSON object in any layout,
    or a JSON array. Tasks go to the gateway, or with --redis straight into Redis. Exits with 1 when a dict was
    refused; all others are accepted nevertheless.
    """
    from qtask.cli import sending
    from qtask.model.mask import mask_of

    given = [name for name, value in flags.items() if value not in (None, False, ())]
    if file is not None and given:
        raise QTaskError("the dicts of a FILE say everything themselves: leave the other flags out")
    items = sending.from_file(file) if file is not None else sending.from_flags(flags, mask_of(config.mask_headers))
    url = config.redis_url or f"socket://{in_url(config.local_host)}:{config.port}"
    with_bar = file is not None and not file.isatty() and not as_json
    if sending.send(url, config.queue, items, as_json, with_bar):
        sys.exit(1)


@cli.command("list")
@click.option(
    "--state",
    type=click.Choice(["scheduled", "queued", "started", "delivered", "dead", "all"]),
    default="scheduled",
    show_default=True,
)
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="tasks of each state")
@_json_flag
@settings(*_LOOK, "mask_headers")
def list_(config: Config, state: Any, limit: int, as_json: bool) -> None:
    """List tasks in one state, or in all.

    The next due comes first; of what has ended the newest. A task that waits for its next attempt is scheduled; the
    table shows it as `retrying`, with the instant of that attempt.
    """
    from qtask.model.mask import mask_of
    from qtask.model.record import STATES
    from qtask.observe import tables
    from qtask.store import tasks

    redis = _connect(config)
    states = STATES if state == "all" else (state,)
    mask = mask_of(config.mask_headers)
    found = (record for one in states for record in tasks.list_tasks(redis, config.queue, one, limit, mask))
    records = list({record.id: record for record in found}.values())  # one may move on between two states
    if as_json:
        for record in records:
            click.echo(tables.to_json(record))
    else:
        tables.print_tasks(records, tasks.count_tasks(redis, config.queue))


@cli.command()
@click.argument("id")
@_json_flag
@settings(*_LOOK, "mask_headers")
def show(config: Config, id: str, as_json: bool) -> None:
    """Show a task and its deliveries."""
    from qtask.model.mask import mask_of
    from qtask.observe import tables
    from qtask.store import tasks

    record = tasks.show(_connect(config), id, mask_of(config.mask_headers))
    if as_json:
        click.echo(tables.to_json(record))
    else:
        tables.print_task(record)


@cli.command()
@click.argument("ids", nargs=-1, required=True)
@_json_flag
@settings(*_LOOK)
def cancel(config: Config, ids: tuple[str, ...], as_json: bool) -> None:
    """Cancel tasks that wait to be delivered.

    Their ids may be used again. Tasks that are being delivered or have ended are left alone; the exit code is 1 then.
    """
    from qtask.store import tasks

    _decide(config, ids, as_json, tasks.cancel, "cancelled")


@cli.command()
@click.argument("ids", nargs=-1, required=True)
@_json_flag
@settings(*_LOOK)
def forget(config: Config, ids: tuple[str, ...], as_json: bool) -> None:
    """Forget delivered tasks.

    All that is kept of them goes, except an id of a client's choosing: it stays remembered for its time, so that the
    same task is not delivered twice.
    """
    from qtask.store import tasks

    _decide(config, ids, as_json, tasks.forget, "forgotten")


def _decide(
    config: Config, ids: tuple[str, ...], as_json: bool, step: Callable[[Redis, str], str], done: str
) -> NoReturn:
    """Takes a step with each task, says what came of it, and exits with 1 when it was not possible with one of them."""
    redis = _connect(config)
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


@cli.command()
@click.argument("ids", nargs=-1)
@_dead_filter
@_json_flag
@settings(*_LOOK)
def retry(config: Config, ids: tuple[str, ...], as_json: bool, **wanted: Any) -> None:
    """Give dead tasks another chance.

    Those with the given ids, or those that fit, or --all.
    """
    from qtask.store import tasks

    redis = _connect(config)
    queued = [task_id for page in _dead(redis, config.queue, ids, wanted) for task_id in tasks.retry(redis, page)]
    for task_id in queued:
        click.echo(json.dumps({"id": task_id, "queued": True}) if as_json else f"{task_id} is queued again")
    _say_missing(set(ids) - set(queued), as_json)


@cli.command()
@click.argument("ids", nargs=-1)
@_dead_filter
@_json_flag
@settings(*_LOOK)
def remove(config: Config, ids: tuple[str, ...], as_json: bool, **wanted: Any) -> None:
    """Remove dead tasks.

    Those with the given ids, or those that fit, or --all. For tasks that wait there is `cancel`, for
    delivered ones `forget`. The ids of removed tasks may be used again.
    """
    from qtask.store import tasks

    redis = _connect(config)
    pages = _dead(redis, config.queue, ids, wanted)
    removed = [task_id for page in pages for task_id in tasks.remove_dead(redis, page)]
    for task_id in removed:
        click.echo(json.dumps({"id": task_id, "removed": True}) if as_json else f"{task_id} removed")
    _say_missing(set(ids) - set(removed), as_json)


def _dead(redis: Redis, queue: str, ids: tuple[str, ...], wanted: dict[str, Any]) -> Iterator[Sequence[str]]:
    """Pages of the ids that arguments mean. Raises `QTaskError` when they mean none, or two things."""
    from qtask.store.tasks import Filter, find_dead

    everything = wanted.pop("everything")
    fits = Filter(**wanted)
    if (bool(ids) + everything + (fits != Filter())) != 1:
        raise QTaskError("say which: IDs, or --all, or what they have in common (--type, --error, --link, --title)")
    return iter([ids]) if ids else find_dead(redis, queue, fits)


def _say_missing(ids: set[str], as_json: bool) -> None:
    """Says which of the ids that were asked for are not dead, and then exits with 1."""
    for task_id in sorted(ids):
        message = f"no dead task has the id {task_id!r}"
        click.echo(json.dumps({"id": task_id, "error": message}) if as_json else f"qtask: {message}", err=not as_json)
    sys.exit(1 if ids else 0)


# --- statistics ------------------------------------------------------------------------------------------------


@cli.command()
@_json_flag
@settings(*_LOOK)
def stats(config: Config, as_json: bool) -> None:
    """Print how punctual deliveries were."""
    from qtask.observe import stats as statistics
    from qtask.observe import tables
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
@click.option("--id", "task_id", help="instead of drawing: fetch the picture (PNG) of a __graph__ task")
@settings(*_LOOK)
def graph(config: Config, output: Path, task_id: str | None) -> None:
    """Draw how punctual deliveries were."""
    kind = output.suffix.lower()
    if kind not in (".png", ".svg") or (task_id and kind != ".png"):
        raise QTaskError(
            f"the name of the picture ends in {'.png' if task_id else '.png or .svg'}, got {str(output)!r}"
        )
    _check_folder(output)
    redis = _connect(config)
    if task_id:
        from qtask.model.ids import stored_id
        from qtask.store.keys import graph as graph_key

        picture: Any = redis.get(graph_key(stored_id(task_id)))
        if picture is None:
            raise NotFound(f"there is no graph {task_id!r}; graphs are kept for a day")
    else:
        from qtask.observe.graph import render

        picture = render(redis, "svg" if kind == ".svg" else "png")
    _write(output, picture)
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
    """Show the whole of it in a few seconds.

    Starts everything on a Redis of its own, submits tasks of every kind, delivers them to receivers of its own, and
    draws a graph. Nothing stays but the graph.
    """
    from qtask.run.demo import run

    _need_service()
    _check_folder(output)
    sys.exit(run(output))


@cli.command()
@_json_flag
@settings(*_LOOK, "host", "port", "http_port", "pipe_dir")
def doctor(config: Config, as_json: bool) -> None:
    """Say what is wrong here, and what to do."""
    from qtask.run import doctor as examination

    findings = examination.examine(config)
    for finding in findings:
        click.echo(json.dumps(finding.as_dict()) if as_json else finding.as_line())
    sys.exit(1 if any(finding.level == "wrong" for finding in findings) else 0)


@cli.command()
@click.option("--write-off", is_flag=True, help="count what is missing as gone, so that later audits balance")
@_json_flag
@settings(*_LOOK)
def audit(config: Config, as_json: bool, write_off: bool) -> None:
    """Check that every accepted task is accounted for.

    Prints that accepted = waiting + queued + in flight + delivered + dead + cancelled + removed, of all queues, and the
    ids of what does not fit. It may run at any time, beside everything else. Exits with 1 when it does not balance.
    """
    from qtask.observe import tables
    from qtask.store import audit as auditing

    redis = _connect(config)
    found = auditing.audit(redis)
    if as_json:
        click.echo(tables.to_json({"balances": found.balances, **asdict(found)}))
    else:
        tables.print_audit(found)
    if write_off and found.missing:
        auditing.write_off(redis, found.missing)
    sys.exit(0 if found.balances else 1)


@cli.command()
@click.argument("process", type=click.Choice(["gateway", "scheduler", "worker"]))
@settings(*_LOOK, "host", "port")
def health(config: Config, process: str) -> None:
    """Exit with 0 when a process is well.

    For health checks of a container or host: the gateway answers; the schedulers or workers that run here, for this
    Redis and queue, have lately given a sign of life. Whether Redis answers is not part of it.
    """
    from qtask.run import doctor as examination

    finding = examination.health(config, process)
    click.echo(finding.as_line())
    sys.exit(0 if finding.level == "fine" else 1)


def _connect(config: Config) -> Redis:
    from qtask.run.embedded import reachable_url
    from qtask.store.connect import connect, require

    url = reachable_url(config)
    redis = connect(url, timeout=10.0)
    require(redis, url)
    return redis


def _check_folder(path: Path) -> None:
    """Before all the work, not after it."""
    if not path.parent.is_dir():
        raise QTaskError(f"{path} cannot be written: there is no folder {path.parent}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise QTaskError(f"{path} cannot be written: {error.strerror}") from None


def main() -> None:
    """Runs the command line; errors that QTask raises on purpose become one line and exit code 1."""
    _prepare_streams()
    try:
        cli(prog_name="qtask")
    except QTaskError as error:
        click.echo(f"qtask: {error}", err=True)
        sys.exit(1)
    except UnicodeEncodeError as error:  # what came from the command line with bytes that are not UTF-8
        click.echo(f"qtask: this is not UTF-8: {error.object!r}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        click.echo(f"qtask: {without_extra(error)}", err=True)
        sys.exit(1)
    except Exception as error:
        from redis.exceptions import RedisError

        if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
            click.echo(f"qtask: the output cannot be written: {error.strerror}", err=True)
        elif isinstance(error, RedisError):
            from qtask.store.connect import reason_of

            click.echo(f"qtask: Redis did not do it: {reason_of(error)}", err=True)
        else:
            raise
        sys.exit(1)


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _prepare_streams() -> None:
    """Makes standard input, output and errors usable, whatever we were started with.

    One that is closed becomes /dev/null: else Python has None for it, and its number goes to the next socket or file,
    into which errors would then be written. What the encoding of an output lacks is written as JSON would escape it.
    Arguments are read as UTF-8 also where the locale says ASCII.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", encoding="utf-8"))
    codecs.register_error("qtask_escape", _escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="qtask_escape")
    if sys.getfilesystemencoding() != "utf-8":
        sys.argv[1:] = [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv[1:]]


def _escape(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: `\\u2603` for what cannot be encoded."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
