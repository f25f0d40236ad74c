"""The Lua scripts by name. Each stands in a file of its own, which begins with its keys, arguments and reply.

What several need stands in a file, too; they ask for it by a line `-- Needs NAME.lua.`
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError

from qtask.store.faults import reach

Value = str | bytes | int | float

_FOLDER = Path(__file__).parent
_NEEDS = re.compile(rb"^-- Needs (\w+\.lua)\.$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its text, and the SHA-1 under which Redis remembers it."""

    name: str
    text: bytes
    sha: str

    @property
    def before(self) -> str:
        """The fault point before it is sent."""
        return f"{self.name}:before"

    @property
    def after(self) -> str:
        """The fault point after its reply."""
        return f"{self.name}:after"

    def run(self, redis: Redis, keys: list[str], arguments: list[Value]) -> Any:
        """Runs the script in one round trip (two when Redis has forgotten it) and returns its reply."""
        reach(self.before)
        try:
            reply = redis.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            reply = redis.eval(self.text, len(keys), *keys, *arguments)  # type: ignore[arg-type]
        reach(self.after)
        return reply

    async def run_async(self, redis: AsyncRedis, keys: list[str], arguments: list[Value]) -> Any:
        """As `run`, for redis.asyncio."""
        reach(self.before)
        try:
            reply = await redis.evalsha(self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            reply = await redis.eval(self.text, len(keys), *keys, *arguments)  # type: ignore[arg-type]
        reach(self.after)
        return reply


class Call(NamedTuple):
    """A script with its keys and arguments."""

    script: Script
    keys: list[str]
    arguments: list[Value]

    def run(self, redis: Redis) -> Any:
        """As `Script.run`."""
        return self.script.run(redis, self.keys, self.arguments)


@cache
def script(name: str) -> Script:
    """The script in `name.lua` of this folder, behind what it needs, in the order in which it asks."""
    text = (_FOLDER / f"{name}.lua").read_bytes()
    for needed in reversed(_NEEDS.findall(text)):
        text = (_FOLDER / needed.decode()).read_bytes() + text
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())
