"""Arrays of tasks, as the socket and the HTTP API take them."""

from __future__ import annotations

from qtask.intake.limits import ARRAY_FACTOR, MAX_IN_ARRAY
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.model.validation import split_batch


def split_array(text: bytes, max_bytes: int, via: str) -> list[bytes]:
    """The tasks of an array, each as JSON.

    Args:
        text: the array as JSON.
        max_bytes: of one task; the array may be `ARRAY_FACTOR` times as large.
        via: the way in, for the log: `socket` or `http`.

    Raises `Refused`, and logs it, when the text is no array of objects or is too large.
    """
    try:
        texts = split_batch(text, max_bytes * ARRAY_FACTOR)
        if len(texts) > MAX_IN_ARRAY:
            raise Refused("too_large", "", f"an array holds at most {MAX_IN_ARRAY} dicts, got {len(texts)}")
    except Refused as refused:
        refused_log.write(via, b"", refused)
        raise
    return texts
