"""Task ids: those that QTask makes, and how those that clients choose are stored.

Ids made by QTask have twelve characters, sort by time and cannot collide.

Such an id has seven characters of milliseconds, three of the node number (which Redis leases to one process at a
time, see `qtask.store.nodes`) and two of a sequence number within the millisecond. The alphabet is in ASCII order, so
ids sort like their instants, and has only characters that RQ allows in a job id.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_SEQUENCE_LIMIT = 64**2
NODE_LIMIT = 64**3
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def _encode(number: int, length: int) -> str:
    letters = []
    for _ in range(length):
        number, digit = divmod(number, 64)
        letters.append(_ALPHABET[digit])
    return "".join(reversed(letters))


class IdSource:
    """Makes ids under one node number.

    Args:
        node: the node number of this process, below `NODE_LIMIT`.
        clock: Unix time in nanoseconds; must be Redis's clock if ids are to tell when their tasks were accepted.
    """

    def __init__(self, node: int, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._node = _encode(node, 3)
        self._millisecond = 0
        self._sequence = 0
        self._prefix = ""

    def next(self) -> str:
        """Returns a new id. When the clock stands still or steps back, ids take milliseconds from the future."""
        now = self._clock() // 1_000_000
        if now > self._millisecond:
            self._start(now)
        elif self._sequence == _SEQUENCE_LIMIT:
            self._start(self._millisecond + 1)
        made = self._prefix + _PAIRS[self._sequence]
        self._sequence += 1
        return made

    def _start(self, millisecond: int) -> None:
        self._millisecond = millisecond
        self._sequence = 0
        self._prefix = _encode(millisecond, 7) + self._node


def instant_of(task_id: str) -> float | None:
    """Unix seconds (to the millisecond) at which an id was made, or None for an id that QTask did not make."""
    if len(task_id) != 12 or any(letter not in _ALPHABET for letter in task_id):
        return None
    number = 0
    for letter in task_id[:7]:
        number = number * 64 + _ALPHABET.index(letter)
    return number / 1000


# RQ allows letters, digits, '-' and '_' in the id of a job, and splits some of its keys at ':'. Other ids are stored in
# an escaped form with this prefix. No id made by QTask begins with it: that id would be from the years 1972 to 1974.
_ESCAPED = "0__"
_PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_TO_ESCAPE = re.compile(r"[^A-Za-z0-9-]", re.ASCII)
_ESCAPE = re.compile(r"_([0-9A-F]{2})", re.ASCII)


def stored_id(task_id: str) -> str:
    """The form in which Redis stores an id: unchanged, or escaped if RQ would not accept it.

    `order:7` is stored as `0__order_3A7`. An id that begins with `0__` is escaped as well, so that no two ids have the
    same form. All characters but letters, digits and `-` become `_` and two hexadecimal digits for each byte of UTF-8.
    """
    if _PLAIN.fullmatch(task_id) and not task_id.startswith(_ESCAPED):
        return task_id
    return _ESCAPED + _TO_ESCAPE.sub(_escape, task_id)


def client_id(stored: str) -> str:
    """The id as the client knows it; the reverse of `stored_id`."""
    if not stored.startswith(_ESCAPED):
        return stored
    raw = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), stored.removeprefix(_ESCAPED))
    return raw.encode("latin-1", "replace").decode("utf-8", "replace")


def _escape(match: re.Match[str]) -> str:
    return "".join(f"_{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))
