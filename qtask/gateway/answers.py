"""The answers of one connection: one line for each text, written in the order of the texts."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial

from qtask.intake.intake import Answer, OnAnswer, encode_answer

MAX_UNANSWERED = 2_000  # tasks of one connection without an answer; from here on nothing more is read
ANSWER_BYTES = 250  # estimated size of an answer that is not written yet


class Writing(Enum):
    """What the answers of a connection wait for."""

    IDLE = "for Redis, or for the client's next text"
    SCHEDULED = "for the end of this turn of the loop, so that all of them go out in one write"
    BLOCKED = "for the client to read those that were written"


# Looked up once: in Python 3.11 a member of an enum costs as much as a call.
IDLE, SCHEDULED, BLOCKED = Writing


class Answers:
    """Puts answers in order and writes them.

    Args:
        on_written: called after each attempt to write.

    Attributes:
        owed: tasks whose answers are not written.
    """

    def __init__(self, on_written: Callable[[], None]) -> None:
        self.owed = 0
        self._lines: deque[_Line] = deque()
        self._writing = IDLE
        self._transport: asyncio.Transport | None = None
        self._on_written = on_written

    def connect(self, transport: asyncio.Transport) -> None:
        """Writes to `transport` from now on."""
        self._transport = transport

    def disconnect(self) -> None:
        """Drops all answers, also those that are still to come: the client is gone."""
        self._transport = None
        self._writing = IDLE
        if self._lines:
            self._write()

    def close(self) -> None:
        """Breaks the reference cycle with the connection, so that both are freed without the garbage collector."""
        self._on_written = _nothing

    @property
    def pending(self) -> bool:
        """Whether answers are owed."""
        return bool(self._lines)

    @property
    def blocked(self) -> bool:
        """Whether the client does not read its answers."""
        return self._writing is BLOCKED

    @property
    def full(self) -> bool:
        """Whether no more texts should be taken: too many answers are owed, or the client does not read them."""
        blocked = self._writing is BLOCKED
        return blocked or self.owed >= MAX_UNANSWERED or len(self._lines) >= MAX_UNANSWERED

    # --- answers in ------------------------------------------------------------------------------------------

    def expect_one(self) -> OnAnswer:
        """Reserves the next line for the answer to one task; the returned function takes that answer."""
        line = _Line(self)
        self._lines.append(line)
        self.owed += 1
        return line.set

    def expect_array(self, count: int) -> ArrayLine:
        """Reserves the next line for the answers to an array of `count` tasks."""
        line = ArrayLine(self, count)
        self._lines.append(line)
        return line

    def on_complete(self) -> None:
        """Called by a line when it is complete."""
        if self._writing is IDLE:
            self._writing = SCHEDULED
            asyncio.get_running_loop().call_soon(self._write)

    # --- answers out -----------------------------------------------------------------------------------------

    def block(self) -> None:
        """Writes nothing more until `unblock`: the client does not read."""
        self._writing = BLOCKED

    def unblock(self) -> None:
        """The client has read: writes the lines that became complete in the meantime."""
        self._writing = IDLE
        self._write()

    def _write(self) -> None:
        """Writes the lines that are next in order and complete, all in one call."""
        if self._writing is BLOCKED:
            return
        self._writing = IDLE
        ready = []
        lines = self._lines
        while lines and lines[0].text:
            line = lines.popleft()
            self.owed -= line.dicts
            ready.append(line.text)
        if ready and self._transport is not None:
            self._transport.write(b"".join(ready))
        self._on_written()

    # --- memory ----------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes that are held because the client does not read its answers."""
        if self._writing is not BLOCKED or self._transport is None or self._transport.is_closing():
            return 0
        return self._transport.get_write_buffer_size() + self.owed * ANSWER_BYTES


class _Line:
    """The answer to a text that is one task.

    Attributes:
        text: the line; empty until it is complete.
        dicts: how many tasks it answers.
    """

    __slots__ = ("_answers", "text")

    dicts = 1

    def __init__(self, answers: Answers) -> None:
        self.text = b""
        self._answers = answers

    def set(self, answer: Answer) -> None:
        """Takes the answer."""
        self.text = encode_answer(answer) + b"\n"
        self._answers.on_complete()


class ArrayLine(_Line):
    """The answer to a text that is an array of tasks."""

    __slots__ = ("_begun", "_missing", "_parts", "dicts")

    def __init__(self, answers: Answers, count: int) -> None:
        super().__init__(answers)
        self.dicts = count
        self._begun = 0
        self._missing = count
        self._parts = [b""] * count
        if not count:
            self._complete()

    def expect_one(self) -> OnAnswer:
        """Reserves the place of the next task; the returned function takes its answer."""
        position = self._begun
        self._begun += 1
        self._answers.owed += 1
        return partial(self._set_part, position)

    def _set_part(self, position: int, answer: Answer) -> None:
        self._parts[position] = encode_answer(answer)
        self._missing -= 1
        if not self._missing:
            self._complete()

    def _complete(self) -> None:
        self.text = b"[" + b",".join(self._parts) + b"]\n"
        self._parts.clear()
        self._answers.on_complete()


def _nothing() -> None:
    """Replaces the callback of a closed connection."""


def unread(transport: asyncio.Transport) -> int:
    """Bytes that the client has not received: buffered here, or in the kernel, which discards them at a reset."""
    unsent = bytearray(4)
    fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, unsent)
    return transport.get_write_buffer_size() + int.from_bytes(unsent, sys.byteorder)
