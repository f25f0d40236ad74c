"""docs/architecture.md against the code: its tables name what exists, and all of it."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator

import pytest

import qtask
from qtask.store import keys
from tests.support.documents import ROOT, blocks

DOCUMENT = ROOT / "docs" / "architecture.md"
CODE = ROOT / "qtask"
WORDS = 1_300  # one page
FILES_OF_THE_WAY = 16


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1:]]


def names(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def scripts() -> Iterator[str]:
    """The files of the scripts that Python runs; the others are parts of these."""
    for file in (CODE / "store").glob("*.py"):
        for name in re.findall(r'^\w+ = Script\(\s*"(\w+)"', file.read_text(), re.MULTILINE):
            yield f"{name}.lua"


def test_page_is_one_page() -> None:
    assert len(DOCUMENT.read_text().replace("|", " ").split()) <= WORDS
    assert [block.language for block in blocks(DOCUMENT)] == [""], "the picture of the processes"


def test_way_of_an_http_task_has_few_files_and_all_exist() -> None:
    way = [names(files) for files, _ in rows("The way of an HTTP task, file by file")]
    assert 0 < len(way) <= FILES_OF_THE_WAY
    for first, *lua in way:
        assert (CODE / first).is_file(), first
        assert all((CODE / first).with_name(name).is_file() for name in lua), lua


def test_every_script_is_named() -> None:
    text = DOCUMENT.read_text()
    assert {name for name in names(text) if name.endswith(".lua")} == set(scripts())


def test_rooms_are_the_packages_and_modules() -> None:
    text = DOCUMENT.read_text()
    listed = [name for cells in rows("Rooms") for name in names(cells[0])]
    packages = {one.name for one in pkgutil.iter_modules(qtask.__path__) if one.ispkg}
    modules = {one.name for one in pkgutil.iter_modules(qtask.__path__) if not one.ispkg} - {"__main__"}
    assert sorted(listed) == sorted(packages)
    (sentence,) = re.findall(r"^(.*) are single modules\.", text, re.MULTILINE)
    assert set(names(sentence)) == modules


# Keys that only RQ's tools use, and a consumer group, which is not a key.
OMITTED = {
    *("INTERMEDIATE_SUFFIX", "CANCELLED_PREFIX", "SCHEDULER_LOCK", "STOCK_SCHEDULERS", "RQ_WORKERS", "SUSPENDED"),
    "INBOX_GROUP",
}
ALL = {name: value for name, value in vars(keys).items() if isinstance(value, str) and name.isupper()}


@pytest.mark.parametrize("name", sorted(ALL.keys() - OMITTED))
def test_key_is_in_the_table(name: str) -> None:
    listed = {re.sub(r"[A-Z]+$", "", key) for cells in rows("Keys in Redis") for key in names(cells[0])}
    assert ALL[name] in listed
