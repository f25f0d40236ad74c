"""Implements `qtask send`: makes a dict from flags, submits dicts through a client, and prints the answers."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import click
from msgspec import UNSET

from qtask.cli import destination_flags
from qtask.cli.task_files import Item
from qtask.client import Client
from qtask.client.protocol import Answer
from qtask.model.errors import QTaskError, Refused
from qtask.model.mask import Mask
from qtask.model.task import MAX_TITLE_CHARACTERS
from qtask.model.timing import format_instant

_SHOWN = 20  # accepted tasks that are listed, and refused ones as well


def from_flags(flags: Mapping[str, Any], mask: Mask) -> list[Item]:
    """The one dict that the flags describe. Its default title contains no credentials.

    Raises `QTaskError` if the destination is missing, or if flags do not go together.
    """
    destination, link = destination_flags.chosen(flags)
    settings = _when(flags)
    settings |= {name: flags[name] for name in ("timeout", "expires") if flags[name] is not None}
    if flags["attempts"] is not None:
        settings["retry"] = {"attempts": flags["attempts"]}
    if flags["flow"] is not None:
        settings["flow"] = _flow(flags["flow"])
    if flags["queue"] is not None:
        settings["queue"] = flags["queue"]
    if flags["task_id"] is not None:
        settings["id"] = flags["task_id"]
    data = destination_flags.settings_data(destination, flags)
    if data is not UNSET:
        settings["data"] = data
    address = {"type": destination.name, "link": link} if link else {"type": destination.name}
    title = flags["title"] or mask.text(destination.title_of(link))[:MAX_TITLE_CHARACTERS]
    return [("task", {"title": title, "address": address, "settings": settings})]


def send(url: str, queue: str, items: Iterable[Item], as_json: bool, with_bar: bool = False) -> int:
    """Submits dicts and prints the answers; returns how many were refused. Raises `Unavailable`.

    Args:
        url, queue: for the client.
        items: the dicts.
        as_json: print each answer as a line of JSON when it arrives; else print the first ones in words, at the end.
        with_bar: show progress on standard error if that is a terminal, until the answers are printed.
    """
    refused: list[tuple[str, Refused]] = []
    shown: list[str] = []
    accepted = 0
    try:
        with Client(url, queue=queue) as client, closing(_with_progress(_answers(client, items), with_bar)) as answers:
            for place, answer in answers:
                if isinstance(answer, Refused):
                    refused.append((place, answer))
                    if as_json:
                        click.echo(json.dumps({"ok": False, "error": answer.as_dict()}, ensure_ascii=False))
                else:
                    accepted += 1
                    if as_json:
                        again = {"duplicate": True} if answer.duplicate else {}
                        click.echo(json.dumps({"ok": True, "id": answer.id, "due": answer.due, **again}))
                    elif accepted <= _SHOWN:
                        again_in_words = "  was accepted before" if answer.duplicate else ""
                        shown.append(f"{answer.id}  due {format_instant(answer.due)}{again_in_words}")
    finally:  # also if the connection breaks
        if not as_json:
            for line in shown:
                click.echo(line)
            if accepted > _SHOWN:
                click.echo(f"… {accepted} accepted in all")
            for place, why in refused[:_SHOWN]:
                click.echo(f"{place} refused: {why} ({why.code})", err=True)
            if len(refused) > _SHOWN:
                click.echo(f"… {len(refused)} refused in all", err=True)
    return len(refused)


def _answers(client: Client, items: Iterable[Item]) -> Iterator[tuple[str, Answer]]:
    """The answer to each dict, in order; dicts that are refused here are not sent to the client."""
    owed: deque[tuple[str, Refused | None]] = deque()

    def valid() -> Iterator[Mapping[str, Any]]:
        for place, item in items:
            if isinstance(item, Refused):
                owed.append((place, item))
            else:
                owed.append((place, None))
                yield item

    def refused_here() -> Iterator[tuple[str, Answer]]:
        while owed and (known := owed[0][1]) is not None:
            yield owed.popleft()[0], known

    for answer in client.send_iter(valid()):
        yield from refused_here()
        yield owed.popleft()[0], answer
    yield from refused_here()


def _with_progress(answers: Iterable[tuple[str, Answer]], with_bar: bool) -> Generator[tuple[str, Answer], None, None]:
    if not with_bar or not sys.stderr.isatty():
        yield from answers
        return
    try:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:  # only the client is installed
        yield from answers
        return

    columns = (SpinnerColumn(), TextColumn("{task.completed} sent"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("send", total=None)
        for answer in answers:
            progress.advance(bar)
            yield answer


def _flow(text: str) -> Any:
    """`settings.flow`: a key, or an object for a text that begins with a brace."""
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise QTaskError(f'--flow must be a key, or JSON such as {{"key": "api", "rate": 5}}: {error}') from None


def _when(flags: Mapping[str, Any]) -> dict[str, Any]:
    if flags["at"] is None:
        return {"time": flags["delay"] or 0.0}
    if flags["delay"] is not None:
        raise QTaskError("give either --in or --at, not both")
    try:
        return {"at": float(flags["at"])}
    except ValueError:
        return {"at": flags["at"]}
