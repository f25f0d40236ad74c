"""The inbox: a stream in Redis, for clients that only speak Redis.

A client submits by `XADD qtask:inbox * task '{"title": …}'`. With another field `reply`, the name of a key, the answer
is pushed to that key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from redis.asyncio import Redis
from redis.exceptions import RedisError

from qtask.config import Config
from qtask.destinations.parsing import parse
from qtask.intake.intake import Answer, Intake, encode_answer
from qtask.intake.refused import refused_log
from qtask.model.errors import Refused
from qtask.store import inbox
from qtask.store.connect import BACKOFF_SECONDS
from qtask.store.inbox import Entry, Refusal

COUNT = 500  # entries of one read, if they are small
READ_BYTES = 4_194_304  # of one read, if its entries are as large as those before
BLOCK_MS = 2_000
RETRY_SECONDS = 0.2
TAKE_OVER_AFTER_MS = 10_000  # without progress, after which the entries of another gateway are taken over
TAKE_OVER_EVERY_SECONDS = 5.0
CONSUMER_IDLE_MS = 60_000  # a gateway reads every few seconds; after this time without a read it is dead
CANCEL_AGAIN_SECONDS = 0.1
TURN_BYTES = 65_536  # of tasks that are checked in one turn of the loop

logger = logging.getLogger("qtask.gateway")


class Inbox:
    """Reads the inbox as one consumer of the group.

    Args:
        redis: a client for short commands.
        waiting: a separate client for the read that waits.
        intake: where checked tasks go.
        config: `max_bytes`.
    """

    def __init__(self, redis: Redis, waiting: Redis, intake: Intake, config: Config) -> None:
        self._redis = redis
        self._blocking = waiting
        self._intake = intake
        self._max_bytes = config.max_bytes
        self._name = secrets.token_urlsafe(6)
        self._in_hand: set[str] = set()  # entries that are with the intake
        self._failed = False  # an entry could not be committed
        self._count = 20  # entries of the next read
        self._reader: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Starts reading; the returned task ends only when it fails or is cancelled."""
        self._reader = asyncio.get_running_loop().create_task(self._run())
        return self._reader

    async def stop(self) -> None:
        """Stops reading and finishes the entries that were read; another gateway takes over those that are left."""
        while self._reader is not None and not self._reader.done():
            self._reader.cancel()  # redis-py loses a cancellation while it connects, and would go on reading
            await asyncio.wait({self._reader}, timeout=CANCEL_AGAIN_SECONDS)
        try:
            await self._take_own()  # Redis may have delivered more while the read was cancelled
            await self._finish()
            await inbox.leave(self._redis, self._name)
        except (RedisError, OSError) as error:
            logger.warning("inbox_left_open", extra={"error": str(error)})

    async def _run(self) -> None:
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                await inbox.make_group(self._redis)
                # First entries that were read before the connection broke, then those of others, then new ones.
                await self._take_own()
                pause = BACKOFF_SECONDS[0]
                await self._read_new()
            except (RedisError, OSError) as error:
                if inbox.was_deleted(error):
                    logger.warning("inbox_made_anew", extra={"error": str(error)})
                else:
                    logger.warning("redis_away", extra={"error": str(error), "retry_in_s": pause})
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS[1])

    async def _read_new(self) -> None:
        loop = asyncio.get_running_loop()
        next_take_over = 0.0
        while True:
            if loop.time() >= next_take_over:
                await self._take_over()
                await self._remove_dead()
                next_take_over = loop.time() + TAKE_OVER_EVERY_SECONDS
            while self._failed:
                await self._try_again()
            await self._intake.room()
            await self._take_all(await inbox.read_new(self._blocking, self._name, self._count, BLOCK_MS))

    async def _try_again(self) -> None:
        """Retries the entries that could not be committed, and waits for the result. Nothing new is read until then."""
        self._failed = False
        await asyncio.sleep(RETRY_SECONDS)
        await self._take_own()
        await self._finish()

    async def _finish(self) -> None:
        """Returns when the intake has finished the entries of this consumer."""
        while self._in_hand:
            await asyncio.sleep(0.01)

    async def _take_own(self) -> None:
        """Takes the entries that this consumer has read and not finished."""
        after: bytes | str = "0"
        while True:
            await self._intake.room()
            entries = await inbox.read_pending(self._redis, self._name, after, self._count)
            if not entries:
                return
            after = entries[-1].id
            await self._take_all(entries)

    async def _take_over(self) -> None:
        """Takes entries that any consumer read long ago and did not finish."""
        start: bytes | str = inbox.FROM_START
        deleted = False
        while True:
            await self._intake.room()
            found = await inbox.take_over(self._redis, self._name, TAKE_OVER_AFTER_MS, start, self._count)
            deleted = deleted or found.deleted > 0
            if found.entries:
                logger.warning("inbox_taken_over", extra={"entries": len(found.entries)})
            await self._take_all(found.entries)
            if found.is_last:
                break
            start = found.next
        if deleted:
            await self._take_own()

    async def _remove_dead(self) -> None:
        """Removes the consumers of gateways that died."""
        for one in await inbox.consumers(self._redis):
            if one.name != self._name and not one.pending and one.idle > CONSUMER_IDLE_MS:
                await inbox.leave(self._redis, one.name)

    async def _take_all(self, entries: list[Entry]) -> None:
        self._set_count(entries)
        deleted: list[bytes] = []
        refusals: list[Refusal] = []
        size = 0
        for name, fields in entries:
            if not fields:  # deleted by a program that trims the stream: an entry has at least one field
                deleted.append(name)
                continue
            refused = self._take(name.decode(), fields)
            if refused is not None:
                raw, reply_key = fields.get(b"task", b""), fields.get(b"reply", b"")
                refusals.append(Refusal(name, raw, reply_key, encode_answer(refused)))
            size += len(fields.get(b"task", b""))
            if size > TURN_BYTES:  # other clients get a turn
                await asyncio.sleep(0)
                size = 0
        if deleted:
            await inbox.acknowledge(self._redis, deleted)
            logger.warning("inbox_entries_deleted", extra={"entries": len(deleted)})
        if refusals:
            await inbox.refuse(self._redis, refusals)

    def _set_count(self, entries: list[Entry]) -> None:
        """Sets the size of the next read: few entries while they are large, gradually more while they are small."""
        size = sum(len(value) for _, fields in entries for value in (fields or {}).values())
        if entries:
            fitting = READ_BYTES * len(entries) // max(1, size)
            self._count = max(1, min(COUNT, self._count * 2, fitting))

    def _take(self, entry: str, fields: dict[bytes, bytes]) -> Refused | None:
        """Hands an entry to the intake, or returns why it is refused."""
        if entry in self._in_hand:
            return None
        raw = fields.get(b"task")
        try:
            if raw is None:
                raise Refused(
                    "missing_field", "task", "an entry of the inbox needs the field task with the JSON of a dict"
                )
            checked = parse(raw, self._max_bytes)
        except Refused as refused:
            refused_log.write("inbox", raw or b"", refused)
            return refused
        self._in_hand.add(entry)
        self._intake.add(checked, lambda answer: self._on_answer(entry, answer), entry, fields.get(b"reply", b""))
        return None

    def _on_answer(self, entry: str, answer: Answer) -> None:
        # The script has pushed the answer to the client. An entry that failed stays pending and is tried again.
        self._in_hand.discard(entry)
        self._failed = self._failed or isinstance(answer, Refused)
