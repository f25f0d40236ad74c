"""Shared by the commands: flags of settings, groups of settings, `--json`, and the check of an output file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from qtask.config import Config, concerns, flag_name, is_duration, load
from qtask.model.errors import QTaskError
from qtask.model.timing import parse_duration

_Command = TypeVar("_Command", bound=Callable[..., Any])

CONCERNS = "qtask.concerns"  # in the context's `meta`: warnings about the settings, for the log

STORE = ("redis_url", "queue")
LOGS = ("log_level", "log_format", "mask_headers")
# Commands on Redis find the one that `qtask up` started by its data folder.
LOOK = (*STORE, "data_dir")
LOOK_AT_QUEUES = ("redis_url", "data_dir")  # with `queue_flag`
_LIMITS = ("max_bytes", "max_held_bytes", "max_connections", "idle_seconds", "accept_retry_seconds", "wait_replicas")
_RETENTION = (
    *("retention_count", "retention_seconds", "dead_retention_count", "idempotency_seconds"),
    *("stats_retention_count", "stats_retention_seconds"),
)
_FLOWS = ("flow_rest_cap", "circuit_breaker", "flow_parallel_limit")
GATEWAY = (*STORE, "host", "port", "http_port", "allowed_hosts", *_LIMITS, *LOGS)
WORKER = (
    *STORE,
    "queues",
    "concurrency",
    "host_connections",
    "ca_file",
    "data_dir",
    "pipe_dir",
    *_RETENTION,
    *_FLOWS,
    *LOGS,
)

json_flag = click.option("--json", "as_json", is_flag=True, help="print JSON for programs, one line each")

queue_flag = click.option("--queue", metavar="NAME", help="only tasks of this queue  [default: of all]")


def duration(text: str) -> float:
    """Parses a flag that is a duration: seconds, or text such as 10m. The function's name appears in the help."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def duration_or_auto(text: str) -> float | str:
    """Like `duration`, for a flag that also accepts `auto`."""
    return text if text == "auto" else duration(text)


def settings(*names: str) -> Callable[[_Command], _Command]:
    """Adds the flags of some settings, and `--config`, to a command, which gets them as a `Config`.

    Args:
        names: fields of `Config`, in the order in which the help lists them.
    """

    def decorate(command: _Command) -> _Command:
        @wraps(command)  # copies the flags that click has stored on the function
        def wrapped(config_file: str | None, **arguments: Any) -> Any:
            flags = {name: arguments.pop(name) for name in names}
            config = load(flags, file=config_file)
            found = concerns(file=config_file)
            if "log_format" in names:
                click.get_current_context().meta[CONCERNS] = found  # logged when the log is set up
            else:
                for sentence in found:
                    click.echo(f"qtask: {sentence}", err=True)
            return command(config, **arguments)

        decorated: Callable[..., Any] = wrapped
        table = {setting.name: setting for setting in fields(Config)}
        for name in reversed(names):
            setting = table[name]
            kind = duration if is_duration(name) else type(setting.default)
            default = "" if setting.default == "" else f"  [default: {setting.default}]"
            about = setting.metadata["about"] + default
            decorated = click.option(flag_name(name), name, type=kind, default=None, help=about)(decorated)
        flag = click.option("--config", "config_file", type=click.Path(dir_okay=False), help="TOML file with settings")
        return flag(decorated)  # type: ignore[return-value]

    return decorate


def check_folder(path: Path) -> None:
    """Raises `QTaskError` if the folder of an output file does not exist. Call it before doing the work."""
    if not path.parent.is_dir():
        raise QTaskError(f"{path} cannot be written: there is no folder {path.parent}")
