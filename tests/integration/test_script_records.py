"""Records that cross into Lua are named once: scripts use every name and no numeric positions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import pytest
from msgspec import Struct
from redis import Redis

from qtask import store
from qtask.store.scripts import NoArguments, NoKeys, Script, needed_files

FOLDER = Path(store.__path__[0])


def scripts() -> Iterator[Script[Any, Any]]:
    """Every script that a module of the store declares."""
    found: dict[str, Script[Any, Any]] = {}
    for module in iter_modules(store.__path__):
        for value in vars(import_module(f"qtask.store.{module.name}")).values():
            if isinstance(value, Script):
                found[value.name] = value
    yield from found.values()


SCRIPTS = sorted(scripts(), key=lambda script: script.name)
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FRAGMENTS = {  # included by other scripts
    *(
        "adapt_parallel",
        "adapt_timeout",
        "admission",
        "timeout_of",
        "flow_of_link",
        "flow_outcomes",
        "flows",
        "is_foreign",
    ),
    *("newest_lines", "note_destination", "requeued", "set_limits", "start_over", "unlink_jobs"),
}


def test_every_lua_file_is_a_script_or_a_fragment() -> None:
    assert {script.name for script in SCRIPTS} | FRAGMENTS == {path.stem for path in FOLDER.glob("*.lua")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_uses_and_explains_all_its_names(script: Script[Any, Any]) -> None:
    text = (FOLDER / f"{script.name}.lua").read_text()
    head = re.match(r"(--.*\n)+", text)
    assert head is not None
    code = re.sub(r"--.*", "", text[head.end() :])
    assert not re.search(r"(KEYS|ARGV)\[[^A-Z]*\d", code), "a numeric position"
    code += "".join((FOLDER / name).read_text() for name in needed_files(text))
    for name in script.names:
        if name not in ("FIRST", "FIRST_KEY"):
            assert re.search(rf"\b{name}\b", head[0]) or name in ("WIDTH", "KEY_WIDTH"), f"{name} is not explained"
            assert re.search(rf"\b{name}\b", code), f"{name} is not used"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_redis_loads_each_script_under_its_hash(redis: Redis, script: Script[Any, Any]) -> None:
    assert redis.script_load(script.text) == script.sha


class SomeKeys(NamedTuple):
    place: str


class SomeArguments(NamedTuple):
    title: str
    limit: int


class Row(Struct):
    id: str
    body: str


class KeyRow(NamedTuple):
    started: str
    queue: str


class Reply(NamedTuple):
    now: bytes


def test_names_are_replaced_by_what_the_records_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qtask.store.scripts._FOLDER", tmp_path)
    (tmp_path / "some.lua").write_text(
        "-- Needs other.lua.\n"
        "return {PLACE, TITLE, LIMIT, FIRST, WIDTH, ID, BODY},\n"
        "{FIRST_KEY, KEY_WIDTH, STARTED, QUEUE, [NOW] = JOB_PREFIX}\n"
        "local MINE = 'TITLE' .. \"LIMIT\" -- NOW\n"
    )
    (tmp_path / "other.lua").write_text("local limit = LIMIT -- TITLE\n")
    script = Script("some", SomeKeys, SomeArguments, each_key=KeyRow, each=Row, replies=(Reply,))
    assert script.text.decode().splitlines() == [
        "local KEYS, ARGV = KEYS, ARGV",
        "local limit = ARGV[2]",
        "",
        "return {KEYS[1], ARGV[1], ARGV[2], 3, 2, 0, 1},",
        "{2, 2, 0, 1, [1] = 'rq:job:'}",
        "local MINE = 'TITLE' .. \"LIMIT\"",
    ]
    call = script.call(
        SomeKeys(place="p"),
        SomeArguments(title="t", limit=9),
        records=[Row(id="i", body="b")],
        key_records=[KeyRow(started="s", queue="q")],
    )
    assert (call.keys, call.arguments) == (["p", "s", "q"], ["t", 9, "i", "b"])


def test_name_in_two_records_is_refused() -> None:
    class Same(NamedTuple):
        place: str

    with pytest.raises(ValueError, match=r"two records of nack\.lua have the field 'place'"):
        _ = Script("nack", SomeKeys, Same).names
    assert Script("nack", NoKeys, NoArguments).names == ["FIRST_KEY", "FIRST"]


def test_no_other_package_spells_a_key() -> None:
    """import-linter keeps key names and scripts inside store; this test finds keys in string literals."""
    found = []
    for path in sorted(FOLDER.parent.rglob("*.py")):
        if path.parent == FOLDER:
            continue
        tree = ast.parse(path.read_text())
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, _WITH_DOCSTRING)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and node.value not in docs:
                text = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
                if re.match(r"(rq|qtask):\w", text):
                    found.append(f"{path.relative_to(FOLDER.parent)}:{node.lineno}: {text!r}")
    assert found == []
