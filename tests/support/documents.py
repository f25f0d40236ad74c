"""Reads the project's Markdown: code blocks, links and headings, and runs its examples."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A code block: its language, which may be empty, its text, and the line on which it begins."""

    language: str
    text: str
    line: int


def blocks(document: Path) -> list[Block]:
    """Every code block of a document, in order."""
    text = document.read_text()
    return [Block(found[1], found[2], text.count("\n", 0, found.start()) + 1) for found in _BLOCK.finditer(text)]


def blocks_under(document: Path, heading: str) -> list[Block]:
    """The code blocks between a heading (`### With Docker`) and the next one."""
    # A line of a code block may look like a heading.
    text = _BLOCK.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), document.read_text())
    begin = text.index(f"\n{heading}\n") + 1
    following = re.compile(r"^#+ ", re.MULTILINE).search(text, begin + len(heading))
    first, last = (text.count("\n", 0, place) + 1 for place in (begin, following.start() if following else len(text)))
    return [block for block in blocks(document) if first < block.line < last]


def broken_links(document: Path) -> list[str]:
    """The relative links of a document to a missing file or heading."""
    broken = []
    for link in _LINK.findall(_BLOCK.sub("", document.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


def _anchors(document: Path) -> list[str]:
    heads = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


def run(block: Block, ports: Mapping[str, int], folder: Path, environment: Mapping[str, str]) -> str:
    """Runs a block of `sh` or `python` unchanged except for its ports, and returns its output.

    Args:
        block: the block to run.
        ports: replacement for each port of the document.
        folder: working directory.
        environment: added to our own.
    """
    text = with_ports(block.text, ports)
    command = ["sh", "-euc", text] if block.language == "sh" else [sys.executable, "-c", text]
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), f"line {block.line}:\n{text}\n{result.stderr}"
    return result.stdout


def with_ports(text: str, ports: Mapping[str, int]) -> str:
    """A text of a document with other ports."""
    for written, real in ports.items():
        text = re.sub(rf"\b{written}\b", str(real), text)
    return text
