"""The Lua scripts: how they are declared, loaded and run.

A script is a file `NAME.lua` in this folder. It begins with comments on what it does, its keys, arguments and reply.
The module that runs it declares it with its records, which alone define the order of values passed to Lua and back:

    class CountKeys(NamedTuple):
        ledger: str

    class CountArguments(NamedTuple):
        queue: str

    COUNT = Script("count", CountKeys, CountArguments)
    COUNT.call(CountKeys(ledger="…"), CountArguments(queue="…")).run(redis)

The loader replaces the names of the fields, in capitals, in the text of the script:

- `LEDGER` is the key, `QUEUE` the argument.
- If a record is repeated after the arguments (`each`), `FIRST` is the index in ARGV at which the first one begins,
  `WIDTH` the number of its fields, and each field is an offset: `ARGV[i + ID]`. `FIRST_KEY` and `KEY_WIDTH` are the
  same for a record that is repeated after the keys (`each_key`).
- Fields of a reply are indices: `return {[NOW] = now, [IDS] = ids}`.
- A name in capitals that no record has is a constant of `qtask.store.keys`, such as `JOB_PREFIX`.

Functions that several scripts need are in separate files; a script includes one with a line `-- Needs NAME.lua.`
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec import Struct, structs
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError

from qtask.store import keys as key_names
from qtask.store.faults import reach

Value = str | bytes | int | float
Record = tuple[Any, ...] | Struct

_FOLDER = Path(__file__).parent
_NEEDS = re.compile(r"^-- Needs (\w+\.lua)\.$", re.MULTILINE)
# A comment, a string, or a name in capitals.
_TOKEN = re.compile(r"""[ \t]*--.*$|'[^'\n]*'|"[^"\n]*"|\b[A-Z][A-Z_]+\b""", re.MULTILINE)

Keys = TypeVar("Keys", bound=tuple[str, ...])
Arguments = TypeVar("Arguments", bound=tuple[Value, ...])


class NoKeys(NamedTuple):
    """For a script whose keys are all built from a prefix, or are all of one kind."""


class NoArguments(NamedTuple):
    """For a script without arguments, or with arguments of one kind only."""


class Script(Generic[Keys, Arguments]):
    """One script.

    Args:
        name: name of its file, without `.lua`.
        keys: the record of its keys.
        arguments: the record of its arguments.
        each_key: the record that is repeated after the keys, if any.
        each: the record that is repeated after the arguments, if any.
        replies: the records that its reply consists of.
    """

    def __init__(
        self,
        name: str,
        keys: type[Keys],
        arguments: type[Arguments],
        *,
        each_key: type[tuple[str, ...]] | None = None,
        each: type[Struct] | None = None,
        replies: tuple[type[Record], ...] = (),
    ) -> None:
        self.name = name
        self.before = f"{name}:before"  # the fault point before it is sent
        self.after = f"{name}:after"  # the fault point after its reply
        self._keys = fields_of(keys)
        self._arguments = fields_of(arguments)
        self._each_key = fields_of(each_key) if each_key else ()
        self._each = fields_of(each) if each else ()
        self._replies = tuple(fields_of(reply) for reply in replies)

    def call(
        self,
        keys: Keys,
        arguments: Arguments,
        *,
        rest: Iterable[Value] = (),
        records: Iterable[Struct] = (),
        key_records: Iterable[tuple[str, ...]] = (),
        rest_of_keys: Iterable[str] = (),
    ) -> Call:
        """The script with its keys and arguments.

        Args:
            keys: its keys.
            arguments: its arguments.
            rest: values that follow the arguments.
            records: records that follow the arguments.
            key_records: records that follow the keys.
            rest_of_keys: other keys that follow the keys.
        """
        values: list[Value] = [*arguments, *rest]
        for record in records:
            values += structs.astuple(record)
        return Call(self, [*keys, *chain.from_iterable(key_records), *rest_of_keys], values)

    @cached_property
    def text(self) -> bytes:
        """The Lua text: the included files and its own file, with values for names and without comments.

        Values are written in place, since a local variable costs time in every run, for each function that uses it.
        """
        own = (_FOLDER / f"{self.name}.lua").read_text(encoding="utf-8")
        needed = "".join((_FOLDER / name).read_text(encoding="utf-8") for name in needed_files(own))
        names = {**self._values(), **self._positions()}

        def replaced(found: re.Match[str]) -> str:
            token = found[0]
            if token[0] in "'\"":
                return token
            if token.lstrip().startswith("--"):
                return ""
            value = names.get(token, vars(key_names).get(token))
            if value is None:
                return token
            return f"'{value}'" if isinstance(value, str) and token not in names else str(value)

        return ("local KEYS, ARGV = KEYS, ARGV\n" + _TOKEN.sub(replaced, needed + own)).encode()

    @cached_property
    def sha(self) -> str:
        """The SHA-1 under which Redis remembers the script."""
        return hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    @property
    def names(self) -> list[str]:
        """The Lua names that its records define."""
        return [*self._values(), *self._positions()]

    def _values(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for table, fields in (("KEYS", self._keys), ("ARGV", self._arguments)):
            for position, field in enumerate(fields, 1):
                self._add(found, field, f"{table}[{position}]")
        return found

    def _positions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        repeated = (
            ("FIRST_KEY", "KEY_WIDTH", self._keys, self._each_key),
            ("FIRST", "WIDTH", self._arguments, self._each),
        )
        for first, width, before, fields in repeated:
            self._add(found, first, str(len(before) + 1))
            if fields:
                self._add(found, width, str(len(fields)))
            for offset, field in enumerate(fields):
                self._add(found, field, str(offset))
        for fields in self._replies:
            for position, field in enumerate(fields, 1):
                self._add(found, field, str(position))
        return found

    def _add(self, found: dict[str, str], field: str, value: str) -> None:
        name = field.upper()
        if name in found:
            raise ValueError(f"two records of {self.name}.lua have the field {field!r}; give one of them another name")
        found[name] = value


class Call(NamedTuple):
    """A script with its keys and arguments."""

    script: Script[Any, Any]
    keys: list[str]
    arguments: list[Value]

    def run(self, redis: Redis) -> Any:
        """Runs the script in one round trip (two when Redis has forgotten it) and returns its reply."""
        script, keys, arguments = self
        reach(script.before)
        try:
            reply = redis.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            reply = redis.eval(script.text, len(keys), *keys, *arguments)  # type: ignore[arg-type]
        reach(script.after)
        return reply

    async def run_async(self, redis: AsyncRedis) -> Any:
        """As `run`, for redis.asyncio."""
        script, keys, arguments = self
        reach(script.before)
        try:
            reply = await redis.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            reply = await redis.eval(script.text, len(keys), *keys, *arguments)  # type: ignore[arg-type]
        reach(script.after)
        return reply

    @property
    def as_eval(self) -> tuple[Value, ...]:
        """The command EVAL with the whole text."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments)


def needed_files(text: str) -> list[str]:
    """The names of the files that the text of a script includes."""
    return _NEEDS.findall(text)


def fields_of(record: type[Record]) -> tuple[str, ...]:
    """The names of a record's fields, in order."""
    fields: tuple[str, ...] = record.__struct_fields__ if issubclass(record, Struct) else record._fields  # type: ignore[attr-defined]
    return fields
