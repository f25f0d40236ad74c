"""The command line: the table of commands, and errors as one line.

`qtask --help` must be fast. So the module of a command is imported when the command is looked up. It imports only click
and the settings at the top, and everything else inside the command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, MutableMapping
from importlib import import_module

import click

from qtask.cli import streams
from qtask.model.errors import QTaskError, without_extra
from qtask.version import VERSION

# Each command's name, the module in qtask.cli that holds it, and its function there; in the order of `qtask --help`.
_COMMANDS = {
    "up": "processes:up",
    "gateway": "processes:gateway",
    "scheduler": "processes:scheduler",
    "worker": "processes:worker",
    "send": "submit:send",
    "list": "tasks:list_tasks",
    "show": "tasks:show",
    "cancel": "tasks:cancel",
    "forget": "tasks:forget",
    "retry": "dead_letters:retry",
    "remove": "dead_letters:remove",
    "flow": "flow:flow",
    "queue": "queue:queue",
    "stats": "statistics:stats",
    "graph": "statistics:graph",
    "demo": "demo:demo",
    "doctor": "diagnosis:doctor",
    "audit": "diagnosis:audit",
    "health": "processes:health",
}


class _Commands(MutableMapping[str, click.Command]):
    """The commands by name; each is imported when it is looked up."""

    def __init__(self, places: dict[str, str]) -> None:
        self._places = places
        self._imported: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._imported:
            module, _, function = self._places[name].partition(":")
            self._imported[name] = getattr(import_module(f"qtask.cli.{module}"), function)
        return self._imported[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError("commands are added to _COMMANDS")

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands are removed from _COMMANDS")


class _InOrder(click.Group):
    """Lists the commands in the order of the table instead of alphabetically."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    commands=_Commands(_COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(VERSION, prog_name="qtask")
def cli() -> None:
    """QTask delivers requests later. Start with `qtask demo`, then try `qtask up`."""


def main() -> None:
    """Runs the command line; an expected error becomes one line on standard error and exit code 1."""
    streams.prepare()
    try:
        cli(prog_name="qtask")
    except QTaskError as error:
        _fail(str(error))
    except UnicodeEncodeError as error:  # bytes on the command line that are not UTF-8
        _fail(f"this is not UTF-8: {error.object!r}")
    except ModuleNotFoundError as error:
        _fail(without_extra(error))
    except Exception as error:
        from redis.exceptions import RedisError

        if isinstance(error, OSError) and error.errno in streams.OUTPUT_ERRORS:
            streams.discard_output()
            _fail(f"the output cannot be written: {error.strerror}")
        elif isinstance(error, RedisError):
            from qtask.store.connect import reason_of

            _fail(f"Redis rejected the command: {reason_of(error)}")
        else:
            raise


def _fail(message: str) -> None:
    click.echo(f"qtask: {message}", err=True)
    sys.exit(1)
