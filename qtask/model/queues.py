"""Queues: what a name of one may be, and which queues a worker serves in which order. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from qtask.model.errors import ConfigError, Refused

FIELD = "settings.queue"
MAX_NAME_CHARACTERS = 64
MAX_SERVED = 16  # queues of one worker; each has a connection to Redis
MAX_WEIGHT = 1_000

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_CHARACTERS}}}", re.ASCII)
_NAME_WORDS = f"a name of 1 to {MAX_NAME_CHARACTERS} letters, digits, '.', '_' and '-'"


class Served(NamedTuple):
    """A queue that a worker serves.

    Attributes:
        name: of the queue.
        weight: its share of the claims among the weighted queues next to it; None where the order is strict.
    """

    name: str
    weight: int | None = None


def check_name(name: str, field: str = FIELD) -> None:
    """Raises `Refused` for a text that cannot be the name of a queue."""
    if not _NAME.fullmatch(name):
        raise Refused("invalid_value", field, f"{_NAME_WORDS} is needed, got {name[:80]!r}")


def one_queue(text: str) -> str:
    """The setting `queue` of a process that puts tasks into one queue. Raises `ConfigError` if it is not one name."""
    if not _NAME.fullmatch(text):
        advice = "; several queues are for workers only: set `queues`" if "," in text or ":" in text else ""
        raise ConfigError(f"queue must be {_NAME_WORDS}, got {text[:80]!r}{advice}")
    return text


def served_queues(text: str) -> list[Served]:
    """Parses which queues a worker serves: names in order, separated by commas, each possibly with `:WEIGHT`.

    Raises `ConfigError`.
    """
    found: list[Served] = []
    for entry in text.split(","):
        name, colon, weight = entry.strip().partition(":")
        if not _NAME.fullmatch(name):
            example = "queues are given as critical,default:3,bulk:1"
            raise ConfigError(f"{example}; {_NAME_WORDS} is needed, got {entry.strip()[:80]!r}")
        if colon and not (weight.isascii() and weight.isdigit() and 1 <= int(weight) <= MAX_WEIGHT):
            raise ConfigError(f"the weight of the queue {name} must be from 1 to {MAX_WEIGHT}, got {weight!r}")
        if name in (one.name for one in found):
            raise ConfigError(f"the queue {name} is named twice in {text!r}")
        found.append(Served(name, int(weight) if colon else None))
    if len(found) > MAX_SERVED:
        raise ConfigError(f"a worker serves at most {MAX_SERVED} queues, got {len(found)}; start several workers")
    return found
