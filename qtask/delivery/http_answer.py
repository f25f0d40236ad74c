"""What an HTTP receiver answered, read the same way for both transports."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import brotli

from qtask.outcome import ANSWER_LIMIT_BYTES, Answer, Failure, excerpt

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Decoded no further than this, however much a small body swells to.
_DECODE_LIMIT_BYTES = ANSWER_LIMIT_BYTES


def header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """The value of a header by its lower-case name, or nothing; of several the last."""
    found = ""
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def answer_of(status: int, headers: Sequence[tuple[str, str]], body: bytes) -> Answer:
    """Reads an answer.

    Args:
        status: the HTTP status.
        headers: of the final answer.
        body: its beginning as it came, still compressed; it may be cut anywhere.
    """
    for coding in reversed(header(headers, "content-encoding").lower().split(",")):
        decode = _DECODERS.get(coding.strip())
        if decode is not None:
            with suppress(zlib.error, brotli.error, ZstdError, EOFError):
                body = decode(body) or body  # where it is not what its header says, it is shown as it came
    return Answer(status, excerpt(body))


def judge(status: int, headers: Sequence[tuple[str, str]], answer: Answer) -> None:
    """Raises `Failure` unless a status means that the receiver took the delivery: 2xx, or 304."""
    if 200 <= status < 300 or status == 304:
        return
    if status in REDIRECTS:
        raise Failure("redirect", f"the receiver answered {status}, a redirect without a target", answer)
    raise Failure("status", f"the receiver answered {status}", answer, header(headers, "retry-after"))


def _gzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=47).decompress(body, _DECODE_LIMIT_BYTES)  # 47: gzip or zlib, whichever it is


def _deflate(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, _DECODE_LIMIT_BYTES)
    except zlib.error:  # some receivers send the bare stream, without zlib's head
        return zlib.decompressobj(wbits=-15).decompress(body, _DECODE_LIMIT_BYTES)


def _brotli(body: bytes) -> bytes:
    return bytes(brotli.Decompressor().process(body, output_buffer_limit=_DECODE_LIMIT_BYTES))


def _zstd(body: bytes) -> bytes:
    return ZstdDecompressor().decompress(body, _DECODE_LIMIT_BYTES)


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
