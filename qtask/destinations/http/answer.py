"""What an HTTP receiver answered, read the same way for both transports.

The status decides, as soon as all headers are there: a receiver that answers 200 has taken the request, whatever
becomes of the rest of its answer. What is lost of the body is noted.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress

import brotli

from qtask.model.outcome import ANSWER_LIMIT_BYTES, Answer, Failure, excerpt

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

REDIRECTS = frozenset({301, 302, 303, 307, 308})

# Of a connection that was used before: the receiver may have closed it just then, or read the request and died.
BROKEN_KEPT_CONNECTION = "the kept connection broke before any answer; whether the request was read is not known"

# RFC 9112, section 8: then nothing can be said of what the receiver did.
BROKEN_HEADERS = "the connection broke within the headers of the answer"
HEADERS_LIMIT_BYTES = 307_200  # libcurl's, and so the other transport's, of all headers of an answer together

# Decoded no further than this, however much a small body swells to.
_DECODE_LIMIT_BYTES = ANSWER_LIMIT_BYTES


def header(headers: Sequence[tuple[str, str]], name: str) -> str:
    """The value of a header by its lower-case name, or nothing; of several the last."""
    found = ""
    for key, value in headers:
        if key.lower() == name:
            found = value
    return found


def redirect_target(status: int, headers: Sequence[tuple[str, str]]) -> str:
    """Where an answer redirects to; empty when it does not.

    Args:
        status: the HTTP status.
        headers: of the final answer, decoded as Latin-1.

    Receivers send `Location` in UTF-8 where it is not ASCII. Bytes that are not UTF-8 become lone surrogates (PEP 383).
    """
    target = header(headers, "location") if status in REDIRECTS else ""
    return target if target.isascii() else target.encode("latin-1").decode("utf-8", "surrogateescape")


def answer_of(status: int, headers: Sequence[tuple[str, str]], body: bytes, note: str = "") -> Answer:
    """Reads an answer.

    Args:
        status: the HTTP status.
        headers: of the final answer.
        body: its beginning as it came, still compressed; it may be cut anywhere.
        note: what was lost of the answer; empty when nothing was.
    """
    codings = header(headers, "content-encoding") if headers else ""
    if codings:
        for coding in reversed(codings.lower().split(",")):
            decode = _DECODERS.get(coding.strip())
            if decode is not None:
                with suppress(zlib.error, brotli.error, ZstdError, EOFError):
                    body = decode(body) or body  # where it is not what its header says, it is shown as it came
    return Answer(status, excerpt(body), note)


def lost(reason: str, timeout: float) -> str:
    """The note about an answer whose body did not come to its end.

    Args:
        reason: why; empty when time ran out.
        timeout: seconds of the task.
    """
    return f"the rest of the answer was lost: {reason or f'it did not come within {timeout:g} s'}"


def judge(status: int, headers: Sequence[tuple[str, str]], answer: Answer) -> None:
    """Raises `Failure` unless a status means that the receiver took the delivery: 2xx, or 304."""
    if 200 <= status < 300 or status == 304:
        return
    if status in REDIRECTS:
        raise Failure("redirect", f"the receiver answered {status}, a redirect without a target", answer)
    message = f"the receiver answered {status}" + (f"; {answer.note}" if answer.note else "")
    raise Failure("status", message, answer, header(headers, "retry-after"))


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
