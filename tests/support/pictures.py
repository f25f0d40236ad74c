"""Checks of drawn pictures."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree
import zlib
from html import unescape


def check_png(picture: bytes) -> None:
    """Checks a PNG chunk by chunk: checksums, completeness and size."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    position, names, packed = 8, [], b""
    while position < len(picture):
        (length,) = struct.unpack_from(">I", picture, position)
        name, data = picture[position + 4 : position + 8], picture[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", picture, position + 8 + length)
        assert zlib.crc32(name + data) == checksum
        names.append(name)
        packed += data if name == b"IDAT" else b""
        position += 12 + length
    assert names[0] == b"IHDR" and names[-1] == b"IEND"
    width, height, depth, colours = struct.unpack_from(">IIBB", picture, 16)
    assert (width, height, depth, colours) == (1_300, 900, 8, 6)
    pixels = zlib.decompress(packed)
    assert len(pixels) == height * (1 + 4 * width)
    assert len(set(pixels)) > 20, "the picture is not empty"


def texts(picture: bytes) -> str:
    """The text in an SVG. matplotlib draws letters as outlines, and writes the text next to them as a comment."""
    ElementTree.fromstring(picture)
    return "\n".join(unescape(part.partition(" -->")[0]) for part in picture.decode().split("<!-- ")[1:])
