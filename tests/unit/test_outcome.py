"""Outcomes: encoding and decoding, and bounded excerpts of answers."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtask.model.outcome import (
    ANSWER_LIMIT_BYTES,
    Answer,
    ErrorKind,
    Failure,
    Outcome,
    Status,
    decode_outcomes,
    encode_outcome,
    excerpt,
)

_seconds = st.floats(0, 4e9)
_outcomes = st.builds(
    Outcome,
    status=st.sampled_from(get_args(Status)),
    started=_seconds,
    ended=_seconds,
    lateness=_seconds,
    duration=_seconds,
    attempt=st.integers(1, 100),
    code=st.integers(0, 999),
    answer=st.text(),
    error=st.sampled_from(["", *get_args(ErrorKind)]),
    message=st.text(),
)


@given(st.lists(_outcomes, max_size=5))
def test_encoded_outcomes_are_decoded_in_order(outcomes: list[Outcome]) -> None:
    lines = [encode_outcome(outcome) for outcome in outcomes]
    assert all(b"\n" not in line for line in lines)
    assert decode_outcomes(b"\n".join(lines)) == outcomes
    assert decode_outcomes(b"".join(line + b"\n" for line in lines)) == outcomes


def test_default_values_are_not_encoded() -> None:
    outcome = Outcome("delivered", started=10.5, ended=10.75, lateness=0.5, duration=0.25)
    assert encode_outcome(outcome) == (
        b'{"status":"delivered","started":10.5,"ended":10.75,"lateness":0.5,"duration":0.25}'
    )
    assert decode_outcomes(b"") == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", ""),
        (b"ok", "ok"),
        ("größer".encode(), "größer"),
        (b"a\xffb", "a\ufffdb"),
        (b"\x89PNG\x00", "\ufffdPNG\x00"),
        (b"x" * 3000, "x" * 2048),
        (b"x" * 2047 + "é".encode(), "x" * 2047),
        (b"x" * 2046 + "é".encode(), "x" * 2046 + "é"),
        (b"x" * 2047 + b"\xc3", "x" * 2047),
        (b"ends in \xc3", "ends in \ufffd"),
        (b"\xff" * 3000, "\ufffd" * 682),
    ],
)
def test_excerpt_is_the_beginning_of_the_answer(body: bytes, text: str) -> None:
    assert excerpt(body) == text


@given(st.binary(max_size=100), st.integers(1, 60))
def test_excerpt_never_exceeds_its_limit(body: bytes, times: int) -> None:
    assert len(excerpt(body * times).encode()) <= ANSWER_LIMIT_BYTES


@given(st.text(min_size=1, max_size=60), st.integers(1, 100))
def test_excerpt_of_text_is_a_prefix_of_maximal_length(text: str, times: int) -> None:
    text *= times
    found = excerpt(text.encode())
    assert text.startswith(found)
    assert found == text or len(found.encode()) > ANSWER_LIMIT_BYTES - 4


@pytest.mark.parametrize(("answer", "kept"), [(None, Answer()), (Answer(503, "busy"), Answer(503, "busy"))])
def test_failure_has_kind_message_and_answer(answer: Any, kept: Answer) -> None:
    failure = Failure("status", "the receiver answered 503", answer)
    assert (failure.error, failure.message, str(failure)) == ("status", failure.message, "the receiver answered 503")
    assert failure.answer == kept
