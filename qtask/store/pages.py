"""Pages of task ids, with a cursor that says where the next page begins.

The size of a page is bounded. A cursor names a position in the order, not a number of tasks to skip. So tasks may come
and go between two pages: a task that stays in its place is on exactly one page. A queue is a list, in which Redis
cannot find a position by order: a task of a queue may be on two pages, but none is left out.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from qtask.model.errors import Refused
from qtask.store import keys
from qtask.store.queries import Steps, commands
from qtask.store.scripts import Script

LIMIT = 1_000  # tasks of a page
LOOK = 1_000  # members that one script checks, which takes about a millisecond
_REMEMBERED = 5  # ids from the end of a page of a queue that its cursor holds

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """A part of a list.

    Attributes:
        items: at most as many as were requested.
        cursor: the cursor to request the next page with; empty if this is the last one.
    """

    items: list[Item] = field(default_factory=list)
    cursor: str = ""


class Read(Struct, array_like=True, forbid_unknown_fields=True):
    """A task of a queue that was on a page: its stored id, and its attempt then."""

    id: str
    attempt: str


class Cursor(Struct, array_like=True, forbid_unknown_fields=True):
    """Where a page ended.

    Attributes:
        order: name of the list.
        queue: name of the queue.
        score, member: the last member, in a sorted set.
        until: the highest score to be found there.
        index: how many ids came before, in a list.
        last: the last of these, the newest first.
        scan: Redis's cursor over the flows, in a list of waiting tasks; `0` after the last of them.
        flows: the flows that come before that cursor and were not read to their end; the position is in the first one.
    """

    order: str
    queue: str
    score: str = ""
    member: str = ""
    until: str = ""
    index: int = 0
    last: list[Read] = []
    scan: str = ""
    flows: list[str] = []


def encode_cursor(cursor: Cursor) -> str:
    """A cursor as a text of letters, digits, `-` and `_`."""
    return urlsafe_b64encode(msgspec.json.encode(cursor)).decode().rstrip("=")


def decode_cursor(text: str, order: str, queue: str) -> Cursor:
    """Parses a cursor; an empty text is the beginning.

    Args:
        text: as `encode_cursor` made it.
        order, queue: the list that it must belong to.

    Raises `Refused` if it is not a cursor, or belongs to another list.
    """
    if not text:
        return Cursor(order, queue)
    try:
        cursor = msgspec.json.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Cursor)
        if cursor.score:
            float(cursor.score)
        if cursor.until:
            float(cursor.until)
    except (ValueError, msgspec.DecodeError):
        message = "this is not a cursor; use the cursor of the page before, or none for the first page"
        raise Refused("invalid_value", "cursor", message) from None
    if (cursor.order, cursor.queue) != (order, queue):
        message = (
            f"this cursor belongs to another list: {cursor.order} tasks of the queue {cursor.queue!r}, "
            f"not {order} tasks of {queue!r}"
        )
        raise Refused("invalid_value", "cursor", message)
    return cursor


# --- sorted sets ---------------------------------------------------------------------------------------------------


class PageKeys(NamedTuple):
    """See page.lua."""

    place: str


class PageArguments(NamedTuple):
    """See page.lua."""

    reverse: str
    score: str
    member: str
    until: str
    queue_name: str
    look: int
    limit: int


class PageReply(NamedTuple):
    """See page.lua."""

    found: list[bytes]
    last_score: bytes
    last_member: bytes
    more: int
    highest: bytes


PAGE = Script("page", PageKeys, PageArguments, replies=(PageReply,))


class Place(NamedTuple):
    """The sorted set that holds a list.

    Attributes:
        key: of the sorted set.
        reverse: whether the highest score comes first.
        shared: whether it also holds tasks of other queues.
        bounded: whether tasks that are added at the end while pages are read are left out.
    """

    key: str
    reverse: bool = False
    shared: bool = False
    bounded: bool = False


def sorted_page(place: Place, cursor: Cursor, limit: int) -> Steps[Page[str]]:
    """The members of a sorted set after a cursor, up to `limit` of them (at least one)."""
    found: list[str] = []
    limit = max(1, min(limit, LIMIT))
    while True:
        arguments = PageArguments(
            reverse="1" if place.reverse else "",
            score=cursor.score,
            member=cursor.member,
            until=cursor.until,
            queue_name=cursor.queue if place.shared else "",
            look=LOOK,
            limit=limit - len(found),
        )
        reply = PageReply._make((yield PAGE.call(PageKeys(place=place.key), arguments)))
        found += texts(reply.found)
        if not reply.more:
            return Page(found)
        until = cursor.until or (text(reply.highest) if place.bounded else "")
        cursor = Cursor(cursor.order, cursor.queue, text(reply.last_score), text(reply.last_member), until)
        if len(found) == limit:
            return Page(found, encode_cursor(cursor))


# --- lists ---------------------------------------------------------------------------------------------------------


def queue_page(key: str, cursor: Cursor, limit: int) -> Steps[Page[str]]:
    """The ids of a queue after a cursor, up to `limit` of them (at least one).

    Tasks are claimed from the head of a queue. So if none of the last ids of the page before is in its place any more,
    those before them have been claimed as well, and the page begins at the head. A task that was claimed and is in the
    queue again has another attempt.
    """
    limit = max(1, min(limit, LIMIT))
    start = 0
    if cursor.last:
        # Tasks may have been put back at the head since, but hardly more than a page of them.
        places = yield commands(*(("LPOS", key, one.id, "MAXLEN", cursor.index + LIMIT) for one in cursor.last))
        attempts = yield from _attempts([one.id for one in cursor.last])
        found = zip(cursor.last, places, attempts, strict=True)
        start = next((at + 1 for one, at, attempt in found if at is not None and attempt == one.attempt), 0)
    ids, length = yield commands(("LRANGE", key, start, start + limit - 1), ("LLEN", key))
    page = texts(ids)
    end = start + len(page)
    if not page or end >= length:
        return Page(page)
    last = page[: -_REMEMBERED - 1 : -1]
    read = [Read(*one) for one in zip(last, (yield from _attempts(last)), strict=True)]
    return Page(page, encode_cursor(Cursor(cursor.order, cursor.queue, index=end, last=read)))


def _attempts(ids: list[str]) -> Steps[list[str]]:
    rows = yield commands(*(("HMGET", keys.job(task_id), "attempt") for task_id in ids))
    return [text(attempt) for (attempt,) in rows]


def text(value: bytes | str | None) -> str:
    """A reply of Redis as text; empty for none."""
    return value.decode() if isinstance(value, bytes) else value or ""


def texts(values: Any) -> list[str]:
    """As `text`, for several replies."""
    return [text(value) for value in values]
