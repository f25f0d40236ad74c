"""Structured logs: one line an event, for people on a terminal and as JSON elsewhere.

Code logs an event by a short name and gives its particulars as `extra`:
`logger.info("listening", extra={"port": 5123})`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from qtask.config import Config
from qtask.errors import ConfigError
from qtask.timing import format_instant

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def setup(config: Config, process: str) -> None:
    """Sets up logging for this process, onto standard error.

    Args:
        config: `log_level` and `log_format`.
        process: name of the process, such as `worker`.

    Raises `ConfigError` for a level or format that does not exist.
    """
    level = logging.getLevelNamesMapping().get(config.log_level.upper())
    if level is None:
        raise ConfigError(f"log_level is debug, info, warning or error, got {config.log_level!r}")
    if config.log_format not in ("auto", "human", "json"):
        raise ConfigError(f"log_format is auto, human or json, got {config.log_format!r}")
    human = config.log_format == "human" or (config.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Human(process) if human else _Json(process))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("qtask").setLevel(level)
    for foreign in ("rq.worker", "rq.job", "rq_scheduler", "uvicorn", "uvicorn.error"):
        logging.getLogger(foreign).setLevel(max(level, logging.WARNING))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": format_instant(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _Human(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process
        self._colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def format(self, record: logging.LogRecord) -> str:
        clock = format_instant(record.created)[11:23]
        particulars = " ".join(f"{key}={value}" for key, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():7} {self._process:9} {record.getMessage()} {particulars}".rstrip()
        if self._colour and record.levelname in _COLOURS:
            line = f"{_COLOURS[record.levelname]}{line}\x1b[0m"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
