"""Splitting a stream of bytes into JSON texts, however they are laid out and cut into packets. Pure.

A text on one line is found by its line break. A text over several lines is found by its brackets, which are counted
as the bytes come in, each byte once. After a connection has sent one whole text on one line it is held to that
layout: a broken line then costs only itself.
"""

from __future__ import annotations

import re

_STRUCTURE = re.compile(rb'["\\\[\]{}]')
_SPACE = b" \t\r\n"
_BLANK = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)+")
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
        self._searched = 0  # how far there is no line break
        self._scanned = 0  # of a text over several lines: how far its brackets are counted
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> None:
        """Adds bytes as they came."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole text, or None when more bytes are needed."""
        if self.overflow or not (self._begun or self._begin()):
            return None
        text = self._scan() if self._scanned else self._line()
        if text is None:
            self.overflow = len(self._buffer) > self._max_bytes
        return text

    def rest(self) -> bytes:
        """What is left when no more bytes will come: a text without a line break after it, or nothing."""
        blank = _BLANK.match(self._buffer)
        left = bytes(self._buffer[blank.end() if blank else 0 :]).strip(_SPACE)
        self._drop(len(self._buffer))
        return left

    def drop(self) -> None:
        """Forgets all bytes that are here."""
        self._drop(len(self._buffer))

    @property
    def held(self) -> int:
        """How many bytes wait for the end of their text."""
        return len(self._buffer)

    def _begin(self) -> bool:
        """Drops white space and byte order marks before a text; False when nothing else is there yet."""
        buffer = self._buffer
        blank = _BLANK.match(buffer)
        if blank is not None:
            del buffer[: blank.end()]
        self._begun = not _BOM.startswith(bytes(buffer[: len(_BOM)]))  # else it is empty, or the beginning of a mark
        return self._begun

    def _line(self) -> bytes | None:
        """The text that ends with its line; or, before any such text, one that goes on over several lines."""
        buffer = self._buffer
        end = buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(buffer)
            return None
        # What is no object and no array is a line to be refused by itself, and so is one with more after its end.
        if self._lines_only or buffer[0] not in b"[{" or self._close(end):
            self._lines_only = True
            return self._take(end + 1)
        return self._scan()

    def _scan(self) -> bytes | None:
        """The text that ends where its first bracket is closed."""
        end = self._close(len(self._buffer))
        return self._take(end) if end else None

    def _close(self, limit: int) -> int:
        """Counts brackets on from where it stopped, up to `limit`; returns where the first one is closed, else 0."""
        buffer, position = self._buffer, self._scanned
        while (match := _STRUCTURE.search(buffer, position, limit)) is not None:
            position = match.end()
            letter = buffer[position - 1]
            if letter == 0x5C:  # a backslash takes the next byte with it
                if position == limit:
                    self._scanned = position - 1
                    return 0
                position += 1
            elif letter == 0x22:
                self._in_string = not self._in_string
            elif self._in_string:
                continue
            elif letter in b"[{":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return position
        self._scanned = limit
        return 0

    def _take(self, end: int) -> bytes:
        text = bytes(self._buffer[:end]).strip(_SPACE)
        self._drop(end)
        return text

    def _drop(self, end: int) -> None:
        del self._buffer[:end]
        self._begun = False
        self._searched = self._scanned = self._depth = 0
        self._in_string = False
