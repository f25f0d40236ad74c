"""Structured logs: one line per event, for people on a terminal and as JSON elsewhere.

Code logs an event with a short name, and its fields as `extra`:
`logger.info("listening", extra={"port": 5123})`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from types import TracebackType
from typing import Any

from qtask.config import Config
from qtask.model.errors import ConfigError
from qtask.model.mask import Mask, mask_of
from qtask.model.redis_address import secrets_of, without_secrets
from qtask.model.timing import format_instant

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "human", "json")

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}
_BARE = re.compile(r'[^\x00-\x20"\x7f-\x9f]+')  # a value that needs no quotes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CONTROL_IN_TRACE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

logger = logging.getLogger("qtask")


def setup(config: Config, process: str) -> None:
    """Sets up logging of this process to standard error. An uncaught error is logged as an event as well.

    Args:
        config: `log_level` and `log_format`.
        process: name of the process, such as `worker`.

    Raises `ConfigError` for a level or format that does not exist.
    """
    if config.log_level.lower() not in LEVELS:
        raise ConfigError(f"log_level must be {_either(LEVELS)}, got {config.log_level!r}")
    if config.log_format not in FORMATS:
        raise ConfigError(f"log_format must be {_either(FORMATS)}, got {config.log_format!r}")
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    handler = _handler(config, process)
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logger.setLevel(level)
    for foreign in ("rq.worker", "rq.job", "rq_scheduler", "uvicorn", "uvicorn.error"):
        logging.getLogger(foreign).setLevel(max(level, logging.WARNING))
    sys.excepthook = _on_crash


def setup_beside(config: Config, process: str) -> None:
    """Sets up QTask's events in a process that belongs to another program, such as a stock `rq worker`.

    If that program already logs QTask's events, nothing is changed.
    """
    level = logging.getLevelNamesMapping().get(config.log_level.upper(), logging.INFO)
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(_handler(config, process))
        logger.setLevel(level)


def _handler(config: Config, process: str) -> logging.Handler:
    human = config.log_format == "human" or (config.log_format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    cleaner = _Cleaner(mask_of(config.mask_headers), secrets_of(config.redis))
    handler.setFormatter(_Human(process, cleaner) if human else _Json(process, cleaner))
    return handler


def _on_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("crashed", exc_info=(kind, error, trace))


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


class _Cleaner:
    """Removes credentials from everything that is logged, including messages of redis-py and libcurl, and tracebacks.

    Args:
        mask: masks links.
        secrets: the secrets in the address of Redis.
    """

    def __init__(self, mask: Mask, secrets: list[str]) -> None:
        self._mask = mask
        self._secrets = secrets

    def text(self, text: str) -> str:
        return self._mask.text(without_secrets(text, self._secrets))

    def event(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        return message if message.isidentifier() else self.text(message)  # names of events are constants of QTask

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """The fields of an event; values that are neither numbers nor lists become text."""
        return {key: self._value(value) for key, value in _fields(record).items()}

    def _value(self, value: Any) -> Any:
        if value is None or isinstance(value, int | float):
            return value
        return [self._value(one) for one in value] if isinstance(value, list) else self.text(str(value))


class _Json(logging.Formatter):
    def __init__(self, process: str, cleaner: _Cleaner) -> None:
        super().__init__()
        self._process = process
        self._cleaner = cleaner

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": format_instant(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "event": self._cleaner.event(record),
            **self._cleaner.fields(record),
        }
        if record.exc_info:
            line["exception"] = self._cleaner.text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _Human(logging.Formatter):
    def __init__(self, process: str, cleaner: _Cleaner) -> None:
        super().__init__()
        self._process = process
        self._cleaner = cleaner
        self._colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ

    def format(self, record: logging.LogRecord) -> str:
        clock = format_instant(record.created)[11:23]
        said = self._cleaner.event(record).replace("\n", " ")
        event = " ".join([said, *_particulars(self._cleaner.fields(record))])
        line = f"{clock} {record.levelname.lower():8} {self._process:9} {event}"
        if self._colour and record.levelname in _COLOURS:
            line = f"{_COLOURS[record.levelname]}{line}\x1b[0m"
        if not record.exc_info:
            return line
        trace = self._cleaner.text(self.formatException(record.exc_info))
        return f"{line}\n{_CONTROL_IN_TRACE.sub(lambda match: repr(match[0])[1:-1], trace)}"


def _particulars(fields: dict[str, Any]) -> list[str]:
    """`key=value`; values with spaces, line breaks or control characters are quoted."""
    pairs = []
    for key, value in fields.items():
        text = str(value)
        if not _BARE.fullmatch(text):
            text = json.dumps(text, ensure_ascii=_CONTROL.search(text) is not None)
        pairs.append(f"{key}={text}")
    return pairs
