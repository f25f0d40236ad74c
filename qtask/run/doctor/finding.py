"""The input and the result of a check of `qtask doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qtask.config import Config

if TYPE_CHECKING:
    from redis import Redis

Level = Literal["fine", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: what was found, and what to do about it.

    Attributes:
        level: `fine`, `note` (may be intended), or `wrong`.
        what: the finding in words.
        advice: how to fix it; empty if nothing needs to be done.
    """

    level: Level
    what: str
    advice: str = ""

    def as_line(self) -> str:
        """For people."""
        mark = {"fine": "ok  ", "note": "note", "wrong": "BAD "}[self.level]
        return f"{mark}  {self.what}" + (f"\n      {self.advice}" if self.advice else "")

    def as_dict(self) -> dict[str, str]:
        """For programs."""
        return {"level": self.level, "what": self.what, "advice": self.advice}


@dataclass(frozen=True, slots=True)
class Examined:
    """An installation whose Redis answers.

    Attributes:
        config: the settings of the command.
        redis: a client of its Redis.
        gateway_answers: whether the gateway of this host answers.
    """

    config: Config
    redis: Redis
    gateway_answers: bool
