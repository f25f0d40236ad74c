"""Splitting a stream into JSON texts: any layout, any packets, bounded memory, linear time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtask.gateway.texts import Framing
from tests.support.json_texts import values, written

_brackets_and_quotes = st.text(alphabet='[]{}"\\,:x \té\U0001f600\n', max_size=12)
_hard = st.recursive(
    _brackets_and_quotes | values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_brackets_and_quotes, inner, max_size=3),
    max_leaves=8,
)
_texts = st.lists(_hard, max_size=6)
_random = st.randoms(use_true_random=False)


def split_packets(framing: Framing, packets: Iterable[bytes]) -> list[bytes]:
    """All texts of a stream that ends after these packets."""
    found = []
    for packet in packets:
        framing.feed(packet)
        while (text := framing.next()) is not None:
            found.append(text)
    rest = framing.rest()
    return [*found, rest] if rest else found


def in_packets(stream: bytes, random: Random) -> list[bytes]:
    """The stream in packets of random sizes."""
    packets = []
    while stream:
        size = random.choice([1, 2, 3, 10, 100, 1000])
        packets.append(stream[:size])
        stream = stream[size:]
    return packets


def texts_of(stream: bytes, *, max_bytes: int = 10_000_000) -> list[bytes]:
    return split_packets(Framing(max_bytes), [stream])


@given(_texts, _random)
@settings(max_examples=200)
def test_framing_is_independent_of_layout_and_of_how_bytes_are_split(texts: list[Any], random: Random) -> None:
    laid_out = [written(value, random).encode() for value in texts]
    laid_out.sort(key=lambda text: b"\n" not in text)  # after a text on one line, all texts must be on one line
    line_break = random.choice([b"\n", b"\r\n", b"\n\n", b" \n\t"])
    end = random.choice([b"", line_break])
    mark = random.choice([b"", b"\xef\xbb\xbf"])
    found = split_packets(Framing(10_000_000), in_packets(mark + line_break.join(laid_out) + end, random))
    assert found == laid_out
    assert [json.loads(text) for text in found] == [json.loads(text) for text in laid_out]


@given(st.lists(_hard, min_size=1, max_size=6), _random)
def test_multi_line_texts_may_follow_each_other_without_a_line_break(texts: list[Any], random: Random) -> None:
    laid_out = [json.dumps([value], indent=random.choice([0, 1, 2])).encode() for value in texts]
    assert split_packets(Framing(10_000_000), in_packets(b"".join(laid_out), random)) == laid_out


@given(st.lists(_hard, max_size=6), _random, st.lists(st.binary(max_size=30), max_size=4))
@settings(max_examples=80)
def test_broken_line_does_not_affect_others_after_a_whole_line(
    texts: list[Any], random: Random, junk: list[bytes]
) -> None:
    lines = [written(value, random, line_breaks=False).encode() for value in texts]
    broken = [line[: random.randrange(len(line) + 1)] + random.choice([b"", b"}", b'"', b"{"]) for line in lines]
    lines += broken + [piece.replace(b"\n", b"").replace(b"\xef\xbb\xbf", b"") for piece in junk]
    random.shuffle(lines)
    lines.insert(0, b'{"title":"whole"}')
    found = split_packets(Framing(10_000_000), in_packets(b"\n".join(lines) + b"\n", random))
    assert found == [line.strip(b" \t\r\n") for line in lines if line.strip(b" \t\r\n")]


@pytest.mark.parametrize(
    ("stream", "texts"),
    [
        (b"", []),
        (b" \r\n\t\n", []),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb\xbf\n{}\n", [b"{}"]),
        (b"{}", [b"{}"]),
        (b"{}\n[1]\n2\nnull", [b"{}", b"[1]", b"2", b"null"]),
        (b'{"a":\n1}\n', [b'{"a":\n1}']),
        (b'{"a":\n1}{"b":\n2}', [b'{"a":\n1}', b'{"b":\n2}']),
        (b'{"a":1}{"b":2}\n', [b'{"a":1}{"b":2}']),
        (b'{"a":1} x\n{"b":2}\n', [b'{"a":1} x', b'{"b":2}']),
        (b'{"a":\n1} x\n{"b":2}\n', [b'{"a":\n1}', b"x", b'{"b":2}']),
        (b'garbage\n{"a":1}\n', [b"garbage", b'{"a":1}']),
        (b']\n{"a":1}\n', [b"]", b'{"a":1}']),
        (b'{"a":"}\\"]\\\\"}\n', [b'{"a":"}\\"]\\\\"}']),
        (b'[\n"}\\"]\\\\"]\n', [b'[\n"}\\"]\\\\"]']),
        (b'[\\\n"]"]\n', [b'[\\\n"]"]']),
        (b"{\n]\n{}\n", [b"{\n]", b"{}"]),
        (b'{"a":\n\n{"b":1}\n', [b'{"a":\n\n{"b":1}']),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", [b"GET / HTTP/1.1", b"Host: a"]),
        (b"{}\n{\n}\n", [b"{}", b"{", b"}"]),
    ],
)
def test_stream_is_split_at_the_end_of_each_text(stream: bytes, texts: list[bytes]) -> None:
    assert texts_of(stream) == texts
    assert split_packets(Framing(10_000_000), [stream[i : i + 1] for i in range(len(stream))]) == texts


def test_text_is_returned_as_soon_as_it_is_complete() -> None:
    framing = Framing(1000)
    framing.feed(b'{\n"a": 1')
    assert framing.next() is None
    assert framing.held == 8
    framing.feed(b"}")
    assert framing.next() == b'{\n"a": 1}'
    assert framing.next() is None
    assert framing.held == 0


@pytest.mark.parametrize("fill", [b"x", b"[", b"[\n", b'"\n', b"\\", b"{\n\\"])
def test_text_above_the_limit_ends_the_stream(fill: bytes) -> None:
    framing = Framing(1000)
    framing.feed(b"{}\n")
    framing.feed((fill * 1000)[:1000])
    assert framing.next() == b"{}"
    while framing.next() is not None:
        continue
    assert not framing.overflow
    framing = Framing(1000)
    framing.feed(b'{"first":\n1}\n' + b"[" + fill.replace(b"\n", b"") * 1001)
    assert framing.next() == b'{"first":\n1}'
    assert framing.next() is None
    assert framing.overflow
    framing.feed(b"\n{}\n")
    assert framing.next() is None


def test_texts_of_exactly_the_limit_are_accepted() -> None:
    text = b"[\n" + b" " * 997 + b"]"
    framing = Framing(1000)
    for _ in range(5):
        framing.feed(text)
    for _ in range(5):
        assert framing.next() == text
    assert framing.next() is None
    assert not framing.overflow


# Rescanning the whole buffer for every packet would take minutes here, far beyond the timeout of a test.
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b'"' + b"x" * 16_000_000 + b'"', 16),
        (b'[\n"' + b"x" * 16_000_000 + b'"]', 16),
        (b"[\n" + b'[],"\\"",' * 130_000 + b"1]", 1),
    ],
    ids=["one line", "several lines", "many brackets"],
)
def test_each_byte_is_scanned_once_for_any_packet_size(text: bytes, size: int) -> None:
    packets = (text[start : start + size] for start in range(0, len(text), size))
    assert split_packets(Framing(20_000_000), [*packets, b"\n"]) == [text]


@pytest.mark.timeout(60)
def test_many_texts_in_one_packet_take_linear_time() -> None:
    assert texts_of(b"1 \n\n " * 150_000) == [b"1"] * 150_000
    assert texts_of(b"[\n]" * 150_000) == [b"[\n]"] * 150_000
