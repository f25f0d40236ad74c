"""The texts of one connection: cut from its bytes, checked, and handed to the intake, one dict at a time."""

from __future__ import annotations

from collections import deque

from qtask.destinations.parsing import parse
from qtask.gateway.answers import Answers, ArrayLine
from qtask.gateway.framing import Framing
from qtask.gateway.wrong_protocol import HttpRefused, is_http_request
from qtask.intake.intake import Intake, OnAnswer
from qtask.intake.limits import ARRAY_FACTOR, MAX_IN_ARRAY
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.model.validation import split_batch

TURN_BYTES = 16_384  # a dict of so many bytes takes as much of a turn as two


class Texts:
    """What a client has sent and what has not been handed on.

    Args:
        intake: where checked tasks go.
        answers: where their answers go.
        max_bytes: of a dict.
        http_port: for clients that speak HTTP here.
    """

    def __init__(self, intake: Intake, answers: Answers, max_bytes: int, http_port: int) -> None:
        self._intake = intake
        self._answers = answers
        self._max_bytes = max_bytes
        self._http_port = http_port
        self._framing = Framing(max_bytes * ARRAY_FACTOR)
        self._array: deque[bytes] = deque()  # what is still to be checked of the array in `_array_line`
        self._array_bytes = 0  # of the whole of it
        self._array_line: ArrayLine | None = None
        self.feed = self._framing.feed  # adds bytes as they came
        self.drop = self._framing.drop  # forgets what was not begun; an array that was begun stays

    @property
    def in_array(self) -> bool:
        """Whether an array was begun and dicts of it are left."""
        return bool(self._array)

    @property
    def unbegun(self) -> int:
        """Bytes of texts that were not begun."""
        return self._framing.held

    @property
    def held(self) -> int:
        """All bytes that are here."""
        return self._framing.held + (self._array_bytes if self._array else 0)

    def step(self) -> int:
        """Hands on one dict, or begins an array.

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
                    most = self._max_bytes * ARRAY_FACTOR
                    refused = Refused("too_large", "", f"a text on this socket has at most {most} bytes")
                    refused_log.write("socket", b"", refused)
                    raise refused
                return 0
            text = next_text
            if text:
                self._take(text)
        return 1 + len(text) // TURN_BYTES

    def step_last(self) -> None:
        """Takes what is left as a text that needs no line break, because nothing more will come; raises as `step`."""
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
            texts = split_batch(text, self._max_bytes * ARRAY_FACTOR)
            if len(texts) > MAX_IN_ARRAY:
                raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
        except Refused as refused:
            refused_log.write("socket", b"", refused)
            self._answers.expect_one()(refused)
            return
        self._array.extend(texts)
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
