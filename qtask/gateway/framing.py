"""Splitting a stream of bytes into JSON texts, however they are laid out and cut into packets. Pure.

A text on one line is found by its line break. A text over several lines is found by its brackets, which are counted
as the bytes come in, each byte once. After a connection has sent one whole text on one line it is held to that
layout: a broken line then costs only itself.
"""

from __future__ import annotations

import re

_STRUCTURE = re.compile(rb'["\\\[\]{}]')
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


class Framing:
    """Feed it bytes, take texts.

    Args:
        max_bytes: a text may grow to this; beyond it, `overflow` is set and nothing more comes out.
    """

    def __init__(self, max_bytes: int) -> None:
        self.overflow = False
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._lines_only = False
        self._begun = False
        self._scanned = 0  # of a text over several lines: how far its brackets are counted
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> None:
        """Adds bytes as they came."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole text, or None when more bytes are needed."""
        while not self.overflow:
            if not self._begun:
                self._skip_space()
            if self._scanned == 0:
                end = self._buffer.find(b"\n")
                if end < 0:
                    self.overflow = len(self._buffer) > self._max_bytes
                    return None
                line = bytes(self._buffer[:end])
                if self._lines_only or _looks_whole(line):
                    self._lines_only = True
                    self._drop(end + 1)
                    return line.strip(_SPACE)
            found = self._scan()
            if found is None:
                self.overflow = len(self._buffer) > self._max_bytes
                return None
            return found
        return None

    def rest(self) -> bytes:
        """What is left when no more bytes will come: a text without a line break after it, or nothing."""
        left = bytes(self._buffer).strip(_SPACE).removeprefix(_BOM)
        self._drop(len(self._buffer))
        return left

    @property
    def held(self) -> int:
        """How many bytes wait for the end of their text."""
        return len(self._buffer)

    def _scan(self) -> bytes | None:
        """Counts brackets from where it stopped; the text ends where the last one closes."""
        buffer, position = self._buffer, self._scanned
        limit = len(buffer)
        while (match := _STRUCTURE.search(buffer, position)) is not None:
            position = match.end()
            letter = buffer[position - 1]
            if letter == 0x5C:  # a backslash takes the next byte with it
                if position == limit:
                    self._scanned = position - 1
                    return None
                position += 1
            elif letter == 0x22:
                self._in_string = not self._in_string
            elif self._in_string:
                continue
            elif letter in b"[{":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return self._take(position)
        self._scanned = max(limit, 1)
        if self._depth == 0 and not self._in_string:  # no bracket at all: a line that is no object, answered as such
            return self._take(buffer.find(b"\n") + 1 or limit)
        return None

    def _take(self, end: int) -> bytes:
        text = bytes(self._buffer[:end]).strip(_SPACE)
        self._drop(end)
        return text

    def _drop(self, end: int) -> None:
        del self._buffer[:end]
        self._begun = False
        self._scanned = self._depth = 0
        self._in_string = False

    def _skip_space(self) -> None:
        buffer = self._buffer
        if buffer.startswith(_BOM):
            del buffer[:3]
        if buffer and buffer[0] in _SPACE:
            stripped = len(buffer) - len(buffer.lstrip(_SPACE))
            del buffer[:stripped]
        self._begun = bool(buffer)


def _looks_whole(line: bytes) -> bool:
    """Whether a line may be a whole text: it ends as it began, and its brackets are even."""
    line = line.strip(_SPACE)
    if not line or line[:1] not in b"[{":
        return True  # no object and no array: to be refused by itself
    if line[-1:] != (b"}" if line[:1] == b"{" else b"]"):
        return False
    depth = 0
    in_string = False
    position = 0
    while (match := _STRUCTURE.search(line, position)) is not None:
        position = match.end()
        letter = line[position - 1]
        if letter == 0x5C:
            position += 1
        elif letter == 0x22:
            in_string = not in_string
        elif not in_string:
            depth += 1 if letter in b"[{" else -1
    return depth == 0 and not in_string
