"""The inbox: a stream with one consumer group, of which each gateway is a consumer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from qtask.store import keys
from qtask.store.faults import reach
from qtask.store.scripts import Script

FROM_START = "0-0"  # where `take_over` begins, and what it returns at the end
_GONE = ("NOGROUP", "UNBLOCKED")  # how Redis says that the stream or its group was deleted


class Entry(NamedTuple):
    """An entry of the inbox: its id, and its fields (None if another program has deleted it)."""

    id: bytes
    fields: dict[bytes, bytes] | None


class Consumer(NamedTuple):
    """A consumer of the group.

    Attributes:
        name: of the consumer.
        pending: entries that it read and did not finish.
        idle: milliseconds since it last asked for entries.
    """

    name: str
    pending: int
    idle: int


class TakenOver(NamedTuple):
    """The result of `take_over`: where to continue, the entries, and how many others were deleted."""

    next: bytes | str
    entries: list[Entry]
    deleted: int

    @property
    def is_last(self) -> bool:
        """Whether all entries have been checked."""
        return self.next in (FROM_START, FROM_START.encode())


async def make_group(redis: Redis) -> None:
    """Creates the stream and its group, unless both exist."""
    try:
        await redis.xgroup_create(keys.INBOX, keys.INBOX_GROUP, "0", mkstream=True)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise


def was_deleted(error: RedisError | OSError) -> bool:
    """Whether an error says that the stream or its group was deleted."""
    return any(word in str(error) for word in _GONE)


async def read_new(redis: Redis, consumer: str, count: int, block_ms: int) -> list[Entry]:
    """Reads up to `count` entries that no consumer has read; waits for the first of them for up to `block_ms`."""
    reply: Any = await redis.xreadgroup(keys.INBOX_GROUP, consumer, {keys.INBOX: ">"}, count, block_ms)
    return _entries(reply)


async def read_pending(redis: Redis, consumer: str, after: bytes | str, count: int) -> list[Entry]:
    """Reads up to `count` entries that this consumer has read and not finished, and that come after an id."""
    reply: Any = await redis.xreadgroup(keys.INBOX_GROUP, consumer, {keys.INBOX: after}, count)
    return _entries(reply)


async def take_over(redis: Redis, consumer: str, idle_ms: int, start: bytes | str, count: int) -> TakenOver:
    """Takes over up to `count` entries that any consumer read a while ago and did not finish.

    Args:
        redis: a client.
        consumer: the consumer that takes them over.
        idle_ms: milliseconds for which an entry must have been read already.
        start: `FROM_START`, then `next` of the last result.
        count: entries to check.
    """
    reply: Any = await redis.xautoclaim(keys.INBOX, keys.INBOX_GROUP, consumer, idle_ms, start, count)
    # Redis 6.2 returns deleted entries as well, and does not say which they are.
    found = [Entry(*entry) for entry in reply[1] if entry[0] is not None]
    return TakenOver(next=reply[0], entries=found, deleted=len(reply[1]) - len(found))


async def acknowledge(redis: Redis, entries: Sequence[bytes]) -> None:
    """Acknowledges entries that need no further work."""
    await redis.xack(keys.INBOX, keys.INBOX_GROUP, *entries)


async def consumers(redis: Redis) -> list[Consumer]:
    """All consumers of the group."""
    found: Any = await redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)
    return [Consumer(one["name"].decode(), one["pending"], one["idle"]) for one in found]


# --- leaving -------------------------------------------------------------------------------------------------------


class LeaveKeys(NamedTuple):
    """See leave_inbox.lua."""

    inbox: str


class LeaveArguments(NamedTuple):
    """See leave_inbox.lua."""

    consumer: str


LEAVE_INBOX = Script("leave_inbox", LeaveKeys, LeaveArguments)


async def leave(redis: Redis, consumer: str) -> bool:
    """Removes a consumer, unless it has entries that it did not finish; returns whether it was removed."""
    call = LEAVE_INBOX.call(LeaveKeys(inbox=keys.INBOX), LeaveArguments(consumer=consumer))
    return bool(await call.run_async(redis))


# --- refusing ------------------------------------------------------------------------------------------------------


class RefuseKeys(NamedTuple):
    """See refuse.lua."""

    inbox: str
    refused: str


class RefuseArguments(NamedTuple):
    """See refuse.lua."""

    entry: bytes
    dict: bytes
    reason: bytes
    reply_key: bytes


REFUSE = Script("refuse", RefuseKeys, RefuseArguments)


class Refusal(NamedTuple):
    """An entry that is refused.

    Attributes:
        entry: its id.
        raw: the dict as it came.
        reply_key: key that the reason is pushed to, empty for none.
        reason: JSON.
    """

    entry: bytes
    raw: bytes
    reply_key: bytes
    reason: bytes


async def refuse(redis: Redis, refusals: Sequence[Refusal]) -> None:
    """Moves refused entries to the stream of refused dicts, in one round trip."""
    script_keys = RefuseKeys(inbox=keys.INBOX, refused=keys.REFUSED)
    reach(REFUSE.before)
    async with redis.pipeline(transaction=False) as pipeline:
        pipeline.script_load(REFUSE.text.decode())
        for one in refusals:
            arguments = RefuseArguments(
                entry=one.entry, dict=one.raw[: keys.REFUSED_BYTES], reason=one.reason, reply_key=one.reply_key
            )
            call = REFUSE.call(script_keys, arguments)
            pipeline.evalsha(REFUSE.sha, len(call.keys), *call.keys, *call.arguments)
        await pipeline.execute()
    reach(REFUSE.after)


def _entries(reply: Any) -> list[Entry]:
    """The entries of an XREADGROUP reply, which is a list in RESP2 and a dict in RESP3."""
    if not reply:
        return []
    if isinstance(reply, dict):
        found = next(iter(reply.values()))
        rows = found[0] if found and isinstance(found[0], list) else found
    else:
        rows = reply[0][1]
    return [Entry(*row) for row in rows]
