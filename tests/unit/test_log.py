"""Logs of real processes: JSON without a terminal, text on a terminal, one line for each event."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from qtask.config import Config
from qtask.model.errors import ConfigError
from qtask.observe.log import setup
from tests.support.command import on_terminal

EVENTS = """
import logging, sys
from qtask.observe import log
from qtask.config import Config
log.setup(Config(log_level=sys.argv[1], log_format=sys.argv[2]), "worker")
logger = logging.getLogger("qtask.worker")
logger.debug("looked")
logger.info("working", extra={"queue": "qtask", "concurrency": 1000})
logger.warning("redis_away", extra={"error": 'Connection "lost"', "retry_in_s": 0.05})
logger.error("odd", extra={"text": "two\\nlines \\x1b[2J", "name_of": "größer"})
for foreign in ("rq.worker", "uvicorn.error", "somebody.else"):
    logging.getLogger(foreign).info("%s says something", foreign)
    logging.getLogger(foreign).warning("%s warns", foreign)
"""
CRASH = """
from qtask.observe import log
from qtask.config import Config
log.setup(Config(log_format="{format}"), "worker")
raise RuntimeError("what nobody foresaw\\nat all")
"""


def piped(code: str, *arguments: str) -> list[str]:
    """Lines on standard error of a Python process without a terminal."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.stdout == ""
    return result.stderr.splitlines()


def shown(code: str, *arguments: str, **environment: str) -> list[str]:
    """Lines on the terminal of a Python process that has one."""
    _, text = on_terminal(sys.executable, "-c", code, *arguments, environment=environment)
    return text.splitlines()


def events(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_without_a_terminal_each_event_is_one_line_of_json() -> None:
    found = events(piped(EVENTS, "info", "auto"))
    first, second, third, *_ = found
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first.pop("pid") > 1
    assert first == {"level": "info", "process": "worker", "event": "working", "queue": "qtask", "concurrency": 1000}
    assert (second["level"], second["error"], second["retry_in_s"]) == ("warning", 'Connection "lost"', 0.05)
    assert (third["level"], third["text"], third["name_of"]) == ("error", "two\nlines \x1b[2J", "größer")


def test_on_a_terminal_each_event_is_one_line_of_text() -> None:
    first, second, third, *_ = shown(EVENTS, "info", "auto")
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} info     worker    working queue=qtask concurrency=1000", first)
    assert second.startswith("\x1b[33m") and second.endswith("\x1b[0m")
    assert r'warning  worker    redis_away error="Connection \"lost\"" retry_in_s=0.05' in second
    assert third.startswith("\x1b[31m")
    assert r'odd text="two\nlines \u001b[2J" name_of=größer' in third, "a value must not control the terminal"


def test_no_color_is_respected() -> None:
    assert not any("\x1b" in line for line in shown(EVENTS, "info", "auto", NO_COLOR="1"))


def test_format_can_be_chosen() -> None:
    assert events(shown(EVENTS, "info", "json"))[0]["event"] == "working"
    assert piped(EVENTS, "info", "human")[0].endswith("working queue=qtask concurrency=1000")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["looked", "working", "redis_away", "odd"]),
        ("info", ["working", "redis_away", "odd"]),
        ("WARNING", ["redis_away", "odd"]),
        ("error", ["odd"]),
    ],
)
def test_level_filters_events(level: str, expected: list[str]) -> None:
    found = [event["event"] for event in events(piped(EVENTS, level, "json"))]
    assert [event for event in found if " " not in event] == expected


def test_only_warnings_of_other_packages_are_logged() -> None:
    found = [event["event"] for event in events(piped(EVENTS, "debug", "json"))]
    warnings = ["rq.worker warns", "uvicorn.error warns", "somebody.else warns"]
    assert [event for event in found if " " in event] == warnings
    assert not any(" " in event["event"] for event in events(piped(EVENTS, "error", "json")))


def test_uncaught_exception_is_logged_as_an_event() -> None:
    (event,) = events(piped(CRASH.format(format="json")))
    assert (event["level"], event["event"]) == ("critical", "crashed")
    assert event["exception"].startswith("Traceback") and "what nobody foresaw\nat all" in event["exception"]
    first, *trace = piped(CRASH.format(format="human"))
    assert first.endswith("critical worker    crashed")
    assert "RuntimeError: what nobody foresaw" in trace


def test_unknown_levels_and_formats_are_refused() -> None:
    with pytest.raises(ConfigError, match="log_level must be debug, info, warning or error, got 'loud'"):
        setup(Config(log_level="loud"), "worker")
    with pytest.raises(ConfigError, match="log_level must be debug, info, warning or error, got 'notset'"):
        setup(Config(log_level="notset"), "worker")
    with pytest.raises(ConfigError, match="log_format must be auto, human or json, got 'xml'"):
        setup(Config(log_format="xml"), "worker")
