"""`qtask send`: dicts from flags or a file, through a client; with a progress bar for a file on a terminal."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, BinaryIO

import click
import msgspec
from msgspec import UNSET

from qtask.cli import destination_flags
from qtask.client import Client
from qtask.client.protocol import Answer
from qtask.destinations.parsing import parse
from qtask.model.errors import QTaskError, Refused
from qtask.model.mask import Mask
from qtask.model.rejection import refusal_of_form
from qtask.model.task import MAX_TITLE_CHARACTERS
from qtask.model.timing import format_instant
from qtask.model.validation import bare

_SHOWN = 20  # of the accepted and of the refused, so many are shown one by one

_OneLevel = list[msgspec.Raw] | dict[str, msgspec.Raw] | str | int | float | bool | None

Item = tuple[str, Mapping[str, Any] | Refused]
"""Where a dict stands ("line 3"), and the dict, or why it is none."""


def from_flags(flags: Mapping[str, Any], mask: Mask) -> list[Item]:
    """The one dict that flags describe, with a title that holds no credentials.

    Raises `QTaskError` when the flags do not say where to, or do not go together.
    """
    destination, link = destination_flags.chosen(flags)
    settings = _when(flags)
    settings |= {name: flags[name] for name in ("timeout", "expires") if flags[name] is not None}
    if flags["attempts"] is not None:
        settings["retry"] = {"attempts": flags["attempts"]}
    if flags["task_id"] is not None:
        settings["id"] = flags["task_id"]
    data = destination_flags.settings_data(destination, flags)
    if data is not UNSET:
        settings["data"] = data
    address = {"type": destination.name, "link": link} if link else {"type": destination.name}
    title = flags["title"] or mask.text(destination.title_of(link))[:MAX_TITLE_CHARACTERS]
    return [("task", {"title": title, "address": address, "settings": settings})]


def from_file(file: BinaryIO) -> Iterator[Item]:
    """The dicts of NDJSON, of one JSON object in any layout, or of a JSON array.

    A broken line of NDJSON costs only itself; byte order marks are ignored. Raises `QTaskError` when the whole is not
    JSON, or nothing.
    """
    lines = ((number, line) for number, line in enumerate(file, 1) if bare(line))
    number, first = next(((number, bare(line)) for number, line in lines), (0, b""))
    if not first:
        raise QTaskError("there is nothing to send: the file is empty")
    if (refused := refusal_of_form(first)) is not None:
        raise QTaskError(f"this file cannot be read: {refused}")
    try:
        one = _decode(first)
    except msgspec.DecodeError as error:
        rest = b"".join(line for _, line in lines)
        try:
            one = _decode(first + rest)
        except msgspec.DecodeError as whole:
            why = f"line {number}: {error}; as one document: {whole}"
            raise QTaskError(f"this is neither NDJSON nor one JSON document ({why})") from None
    if isinstance(one, list):
        yield from ((f"element {position}", _checked(element)) for position, element in enumerate(one, 1))
    else:
        yield f"line {number}", _checked(one)
    for number, line in lines:
        yield from _line(number, line)


def send(url: str, queue: str, items: Iterable[Item], as_json: bool, with_bar: bool = False) -> int:
    """Submits dicts and prints the answers; returns how many were refused. Raises `Unavailable`.

    Args:
        url, queue: for the client.
        items: the dicts.
        as_json: print a line of JSON for each answer as it comes; else the first ones in words, when all have come.
        with_bar: show the progress on standard error where that is a terminal; the bar is gone before the answers.
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
    finally:  # also when the connection is lost in the middle
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
    """The answer to each dict in order; those that are refused here never reach the client."""
    owed: deque[tuple[str, Refused | None]] = deque()

    def sound() -> Iterator[Mapping[str, Any]]:
        for place, item in items:
            if isinstance(item, Refused):
                owed.append((place, item))
            else:
                owed.append((place, None))
                yield item

    def refused_here() -> Iterator[tuple[str, Answer]]:
        while owed and (known := owed[0][1]) is not None:
            yield owed.popleft()[0], known

    for answer in client.send_iter(sound()):
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
    except ModuleNotFoundError:  # a client alone does without it
        yield from answers
        return

    columns = (SpinnerColumn(), TextColumn("{task.completed} sent"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("send", total=None)
        for answer in answers:
            progress.advance(bar)
            yield answer


def _line(number: int, line: bytes) -> Iterator[Item]:
    place = f"line {number}"
    try:
        found = _decode(bare(line))
    except msgspec.DecodeError as error:
        yield place, Refused("invalid_json", "", f"this is not JSON: {error}")
        return
    for one in found if isinstance(found, list) else [found]:
        yield place, _checked(one)


def _decode(text: bytes | str) -> Any:
    """Reads JSON one level deep, so that the values in a list or an object keep the text in which they were written."""
    return msgspec.json.decode(msgspec.json.format(text, indent=-1), type=_OneLevel)


def _checked(found: Any) -> Mapping[str, Any] | Refused:
    """A dict as it is; of anything else, why it is refused."""
    if isinstance(found, msgspec.Raw):
        found = _decode(bytes(found))
    if isinstance(found, dict):
        return found
    try:
        parse(msgspec.json.encode(found))
    except Refused as refused:
        return refused
    raise AssertionError("what is no dict is never a task")


def _when(flags: Mapping[str, Any]) -> dict[str, Any]:
    if flags["at"] is None:
        return {"time": flags["delay"] or 0.0}
    if flags["delay"] is not None:
        raise QTaskError("either --in or --at says when, not both")
    try:
        return {"at": float(flags["at"])}
    except ValueError:
        return {"at": flags["at"]}
