"""`qtask send`: dicts from flags or a file, through a client, with a progress bar on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import click
import msgspec

from qtask.client import Client
from qtask.client.requests import Answer
from qtask.errors import QTaskError, Refused
from qtask.timing import format_instant

_SHOWN_REFUSALS = 20


def from_flags(flags: Mapping[str, object]) -> list[dict[str, object]]:
    """The one dict that flags describe. Raises `QTaskError` when they do not say where to."""
    kinds = [
        (kind, link)
        for kind, link in (
            ("http", flags["http"]),
            ("socket", flags["socket_link"]),
            ("pipe", flags["pipe"]),
            ("__graph__", flags["graph"]),
        )
        if link
    ]
    if len(kinds) != 1:
        raise QTaskError(
            "say where to: one of --http URL, --socket HOST:PORT, --pipe NAME, --graph, or a FILE of dicts"
        )
    ((kind, link),) = kinds
    settings: dict[str, object] = {}
    if flags["at"] is not None:
        settings["at"] = _number_or_text(str(flags["at"]))
        if flags["delay"] is not None:
            raise QTaskError("either --in or --at says when, not both")
    else:
        settings["time"] = flags["delay"] or 0.0
    if flags["timeout"] is not None:
        settings["timeout"] = flags["timeout"]
    data = _json(str(flags["data"])) if flags["data"] is not None else None
    if kind == "http":
        settings["data"] = _http(flags, data)
    elif kind == "pipe":
        settings["data"] = {"data": data}
    elif kind == "socket":
        settings["data"] = data
    address = {"type": kind} if kind == "__graph__" else {"type": kind, "link": link}
    return [
        {
            "title": flags["title"] or f"{kind} {link}" if kind != "__graph__" else "graph",
            "address": address,
            "settings": settings,
        }
    ]


def from_file(file: BinaryIO) -> Iterator[Mapping[str, object]]:
    """The dicts of NDJSON, of one JSON object in any layout, or of a JSON array. Raises `QTaskError`."""
    first = file.readline()
    while first and not first.strip():
        first = file.readline()
    try:
        one = msgspec.json.decode(first)
    except msgspec.DecodeError:
        try:
            one = msgspec.json.decode(first + file.read())
        except msgspec.DecodeError as error:
            raise QTaskError(f"this is neither NDJSON nor one JSON document: {error}") from None
    yield from one if isinstance(one, list) else [one]
    for number, line in enumerate(file, 2):
        if line.strip():
            try:
                yield msgspec.json.decode(line)
            except msgspec.DecodeError as error:
                raise QTaskError(f"line {number} is not JSON: {error}; the lines before it were sent") from None


def send(url: str, queue: str, tasks: Iterable[Mapping[str, object]], as_json: bool) -> int:
    """Submits tasks and prints each answer; returns how many were refused. Raises `Unavailable`."""
    refusals: list[tuple[int, Refused]] = []
    accepted = 0
    with Client(url, queue=queue) as client:
        for number, answer in enumerate(_with_progress(client.send_iter(tasks), as_json), 1):
            if isinstance(answer, Refused):
                refusals.append((number, answer))
                if as_json:
                    click.echo(json.dumps({"ok": False, "error": answer.as_dict()}, ensure_ascii=False))
            else:
                accepted += 1
                if as_json:
                    click.echo(json.dumps({"ok": True, "id": answer.id, "due": answer.due}))
                elif accepted <= _SHOWN_REFUSALS:
                    click.echo(f"{answer.id}  due {format_instant(answer.due)}")
    if not as_json:
        if accepted > _SHOWN_REFUSALS:
            click.echo(f"… {accepted} accepted in all")
        for number, refused in refusals[:_SHOWN_REFUSALS]:
            click.echo(f"dict {number} refused: {refused} ({refused.code})", err=True)
        if len(refusals) > _SHOWN_REFUSALS:
            click.echo(f"… {len(refusals)} refused in all", err=True)
    return len(refusals)


def _with_progress(answers: Iterable[Answer], as_json: bool) -> Iterator[Answer]:
    if as_json or not sys.stderr.isatty():
        yield from answers
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} sent"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("send", total=None)
        for answer in answers:
            progress.advance(bar)
            yield answer


def _http(flags: Mapping[str, object], data: object) -> dict[str, object]:
    built: dict[str, object] = {}
    if flags["method"] or data is not None:
        built["method"] = flags["method"] or "POST"
    headers = flags["headers"]
    assert isinstance(headers, tuple)
    if headers == ("auto",):
        built["headers"] = "auto"
    elif headers:
        pairs = [header.partition(":") for header in headers]
        built["headers"] = {name.strip(): value.strip() for name, _, value in pairs}
    if data is not None:
        built["json"] = data
    return built


def _json(text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise QTaskError(f'--data wants JSON, such as {{"a": 1}} or "text" in quotes: {error}') from None


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
