"""The outcome of a delivery. Pure."""

from __future__ import annotations

import codecs
from typing import Literal

import msgspec
from msgspec import Struct

ANSWER_LIMIT_BYTES = 2_048  # that are kept of a receiver's answer
OUTCOMES_KEEP = 20  # that are kept of a task, the newest ones
READ_LIMIT_BYTES = 65_536  # that are read of a receiver's answer; then the connection is closed

Status = Literal["delivered", "failed"]

ErrorKind = Literal[
    "dns",  # the host name cannot be resolved
    "connect",  # no connection: refused, unreachable, broken before an answer
    "timeout",  # the receiver took longer than settings.timeout
    "tls",  # the certificate or the handshake
    "protocol",  # the answer does not follow the protocol
    "redirect",  # too many redirects, or one to something else than an http(s) URL
    "status",  # an HTTP status of 400 or more
    "no_reader",  # a pipe that nobody reads
    "unavailable",  # the receiver accepts nothing at the moment
    "rejected",  # the receiver does not accept this task
    "refused",  # the stored dict is not a task
    "expired",  # settings.expires had passed before a delivery could begin
    "lost",  # the worker died or hung; the receiver may have got the task or not
    "internal",  # a bug in QTask
]


class Answer(Struct, frozen=True):
    """The answer of a receiver.

    Attributes:
        code: the HTTP status; 0 for destinations without one.
        text: the beginning of the answer, at most `ANSWER_LIMIT_BYTES` as UTF-8.
        note: what went wrong after the receiver had accepted or rejected the task, such as a truncated body; usually
            empty.
    """

    code: int = 0
    text: str = ""
    note: str = ""


class Failure(Exception):
    """A delivery that failed.

    Attributes:
        error: kind of the error, for programs.
        message: the reason, for people.
        answer: the receiver's answer, if there was one.
        retry_after: its header `Retry-After`; empty if there was none.
        at_once: whether the next attempt, if one is left, needs no delay.
    """

    def __init__(
        self,
        error: ErrorKind,
        message: str,
        answer: Answer | None = None,
        retry_after: str = "",
        at_once: bool = False,
    ) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.answer = answer or Answer()
        self.retry_after = retry_after
        self.at_once = at_once


class Outcome(Struct, frozen=True, omit_defaults=True):
    """How one delivery ended.

    Attributes:
        status: `delivered` or `failed`.
        started, ended: Unix seconds by Redis's clock.
        lateness: seconds from due to the start of the first delivery, never negative; None for those after it.
        duration: seconds from start to end.
        attempt: 1 for the first delivery of a task.
        code: HTTP status, 0 where there is none.
        answer: the beginning of what the receiver answered.
        error: kind of the failure, empty when delivered.
        message: the reason of the failure; for a delivered task the `note` of the answer.
    """

    status: Status
    started: float
    ended: float
    lateness: float | None
    duration: float
    attempt: int = 1
    code: int = 0
    answer: str = ""
    error: ErrorKind | Literal[""] = ""
    message: str = ""


def encode_outcome(outcome: Outcome) -> bytes:
    """The outcome as JSON on one line."""
    return msgspec.json.encode(outcome)


_DECODER = msgspec.json.Decoder(Outcome)


def decode_outcomes(lines: bytes) -> list[Outcome]:
    """Outcomes from JSON lines, oldest first, as the `outcomes` field of a job holds them."""
    return [_DECODER.decode(line) for line in lines.splitlines() if line]


def excerpt(body: bytes) -> str:
    """The beginning of an answer as text. It never ends inside a character; bytes that are not UTF-8 become �."""
    if len(body) * 3 <= ANSWER_LIMIT_BYTES:  # an invalid byte becomes three bytes
        return body.decode("utf-8", "replace")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(body[:ANSWER_LIMIT_BYTES], final=len(body) <= ANSWER_LIMIT_BYTES)
    return text.encode()[:ANSWER_LIMIT_BYTES].decode("utf-8", "ignore")
