"""The texts of one connection: cut from its bytes, checked, and handed to the intake, one task at a time.

A text is one JSON value: a task, or an array of tasks. `Framing` cuts the bytes of a connection into texts, `Texts`
parses them.

A text on one line is found by its line break. A text over several lines is found by its brackets, which are counted
as the bytes come in, each byte once. After a connection has sent one whole text on one line, each of its lines is a
text: then a broken line spoils only itself.
"""

from __future__ import annotations

import re
from collections import deque

import msgspec

from qtask.destinations.parsing import parse
from qtask.gateway.answers import Answers, ArrayLine
from qtask.gateway.wrong_protocol import HttpRefused, is_http_request
from qtask.intake.arrays import split_array
from qtask.intake.intake import Intake, OnAnswer
from qtask.intake.limits import ARRAY_FACTOR
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused

TURN_BYTES = 16_384  # a task of so many bytes takes as much of a turn as two

_STRUCTURE = re.compile(rb'["\\\[\]{}]')
_SPACE = b" \t\r\n"
_BLANK = re.compile(rb"(?:[ \t\r\n]|\xef\xbb\xbf)+")
_BOM = b"\xef\xbb\xbf"
_ANY_JSON = msgspec.json.Decoder(msgspec.Raw)


class Texts:
    """What a client has sent and what is not with the intake yet.

    Args:
        intake: where checked tasks go.
        answers: where their answers go.
        max_bytes: of a task.
        http_port: named to clients that speak HTTP on the socket.
    """

    def __init__(self, intake: Intake, answers: Answers, max_bytes: int, http_port: int) -> None:
        self._intake = intake
        self._answers = answers
        self._max_bytes = max_bytes
        self._http_port = http_port
        self._framing = Framing(max_bytes * ARRAY_FACTOR)
        self._array: deque[bytes] | None = None  # the tasks that are left of the array in `_array_line`
        self._array_bytes = 0  # of the whole array
        self._array_line: ArrayLine | None = None
        self.feed = self._framing.feed  # adds bytes
        self.drop = self._framing.drop  # forgets texts that were not begun; an array that was begun stays

    @property
    def in_array(self) -> bool:
        """Whether an array was begun and tasks of it are left."""
        return bool(self._array)

    @property
    def unbegun(self) -> int:
        """Bytes of texts that were not begun."""
        return self._framing.held

    @property
    def held(self) -> int:
        """All bytes that are held, those of the array included."""
        return self._framing.held + (self._array_bytes if self._array else 0)

    def step(self) -> int:
        """Takes one task, or begins an array.

        Returns how much of a turn that took, and 0 when no whole text is here. Raises `Refused` when the connection
        must end: at a text that is too large, and at an HTTP request.
        """
        if self._array:
            text = self._array.popleft()
            assert self._array_line is not None
            self._submit(text, self._array_line.expect_one())
        else:
            next_text = self._framing.next()
            if next_text is None:
                if self._framing.overflow:
                    limit = self._max_bytes * ARRAY_FACTOR
                    refused = Refused("too_large", "", f"a text on this socket has at most {limit} bytes")
                    refused_log.write("socket", b"", refused)
                    raise refused
                return 0
            text = next_text
            if text:
                self._take(text)
        return 1 + len(text) // TURN_BYTES

    def step_last(self) -> None:
        """Takes the rest as a text without its line break, because nothing more will come; raises as `step`."""
        text = self._framing.rest()
        if text:
            self._take(text)

    def _take(self, text: bytes) -> None:
        if is_http_request(text):
            raise HttpRefused(self._http_port)
        if text[:1] == b"[":
            self._begin_array(text)
        else:
            self._submit(text, self._answers.expect_one())

    def _begin_array(self, text: bytes) -> None:
        try:
            texts = split_array(text, self._max_bytes, "socket")
        except Refused as refused:
            self._answers.expect_one()(refused)
            return
        self._array = deque(texts)
        self._array_bytes = len(text)
        self._array_line = self._answers.expect_array(len(texts))

    def _submit(self, text: bytes, on_answer: OnAnswer) -> None:
        try:
            checked = parse(text, self._max_bytes)
        except Refused as refused:
            refused_log.write("socket", text, refused)
            on_answer(refused)
            return
        self._intake.add(checked, on_answer)


class Framing:
    """Cuts a stream of bytes into JSON texts, in any layout and in packets of any size. Pure.

    Args:
        max_bytes: the largest text; at a larger one `overflow` is set, and `next` returns no more texts.
    """

    def __init__(self, max_bytes: int) -> None:
        self.overflow = False
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._lines_only = False
        self._begun = False
        self._searched = 0  # up to here there is no line break
        self._scanned = 0  # of a text over several lines: up to here its brackets are counted
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> None:
        """Adds bytes."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole text, or None when more bytes are needed."""
        if not self._buffer or self.overflow or not (self._begun or self._begin()):
            return None
        text = self._scan() if self._scanned else self._line()
        if text is None:
            self.overflow = len(self._buffer) > self._max_bytes
        return text

    def rest(self) -> bytes:
        """What is left when no more bytes will come: a text without a line break after it, or nothing."""
        if not self._buffer:
            return b""
        blank = _BLANK.match(self._buffer)
        left = bytes(self._buffer[blank.end() if blank else 0 :]).strip(_SPACE)
        self._drop(len(self._buffer))
        return left

    def drop(self) -> None:
        """Forgets all bytes that are here."""
        if self._buffer:
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
        # A line that is no object and no array is refused by itself, and so is one with more after its end.
        if self._lines_only or buffer[0] not in b"[{" or _is_json(buffer[:end]) or self._close(end):
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


def _is_json(line: bytearray) -> bool:
    """Whether a line is a whole JSON value; much faster than counting its brackets."""
    try:
        _ANY_JSON.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
