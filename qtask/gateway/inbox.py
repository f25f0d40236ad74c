"""The inbox: a stream in Redis, for clients that speak Redis and nothing else.

XADD qtask:inbox * task '{"title": …}'              reply <key>: optional, the answer is pushed there
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from qtask.config import Config
from qtask.errors import Refused
from qtask.gateway.intake import Answer, Intake, encode_answer
from qtask.store import keys
from qtask.store.scripts import script
from qtask.task import parse

COUNT = 500  # entries a read
BLOCK_MS = 2_000
TAKE_OVER_AFTER_MS = 10_000  # entries that another gateway read and did not finish
TAKE_OVER_EVERY_SECONDS = 5.0
BACKOFF_SECONDS = (0.05, 2.0)

logger = logging.getLogger("qtask.gateway")

_Entry = tuple[bytes, dict[bytes, bytes] | None]


class Inbox:
    """Reads the inbox as one consumer of the group.

    Args:
        redis: a client for short commands.
        waiting: a client of its own for the read that waits.
        intake: where checked tasks go.
    """

    def __init__(self, redis: Redis, waiting: Redis, intake: Intake, config: Config) -> None:
        self._redis = redis
        self._blocking = waiting
        self._intake = intake
        self._max_bytes = config.max_bytes
        self._name = secrets.token_urlsafe(6)
        self._replies: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to read."""
        self._reader = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stops reading; entries that were read and not finished are taken over by another gateway."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        while not self._intake.idle:
            await asyncio.sleep(0.01)
        await asyncio.gather(*self._replies, return_exceptions=True)
        try:
            pending = await self._redis.xpending_range(keys.INBOX, keys.INBOX_GROUP, "-", "+", 1, self._name)
            if not pending:
                await self._redis.xgroup_delconsumer(keys.INBOX, keys.INBOX_GROUP, self._name)
        except (RedisError, OSError) as error:
            logger.warning("inbox_left_open", extra={"error": str(error)})

    async def _run(self) -> None:
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                await self._make_group()
                # What this consumer read before its connection broke, then what others left, then what is new.
                await self._take_own()
                pause = BACKOFF_SECONDS[0]
                await self._read_new()
            except (RedisError, OSError) as error:
                if "NOGROUP" not in str(error):
                    logger.warning("redis_away", extra={"error": str(error), "retry_in_s": pause})
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_SECONDS[1])

    async def _make_group(self) -> None:
        try:
            await self._redis.xgroup_create(keys.INBOX, keys.INBOX_GROUP, "0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _read_new(self) -> None:
        loop = asyncio.get_running_loop()
        next_take_over = 0.0
        while True:
            if loop.time() >= next_take_over:
                await self._take_over()
                next_take_over = loop.time() + TAKE_OVER_EVERY_SECONDS
            while self._intake.full:
                await asyncio.sleep(0.005)
            reply: Any = await self._blocking.xreadgroup(
                keys.INBOX_GROUP, self._name, {keys.INBOX: ">"}, COUNT, BLOCK_MS
            )
            self._take_all(_entries(reply))

    async def _take_own(self) -> None:
        while not self._intake.idle:
            await asyncio.sleep(0.01)
        reply: Any = await self._redis.xreadgroup(keys.INBOX_GROUP, self._name, {keys.INBOX: "0"})
        self._take_all(_entries(reply))

    async def _take_over(self) -> None:
        start: Any = "0-0"
        while True:
            reply: Any = await self._redis.xautoclaim(
                keys.INBOX, keys.INBOX_GROUP, self._name, TAKE_OVER_AFTER_MS, start, COUNT
            )
            start, entries = reply[0], reply[1]
            if entries:
                logger.warning("inbox_taken_over", extra={"entries": len(entries)})
            self._take_all(entries)
            if start in (b"0-0", "0-0"):
                return

    def _take_all(self, entries: list[_Entry]) -> None:
        for entry, fields in entries:
            self._take(entry.decode(), fields or {})

    def _take(self, entry: str, fields: dict[bytes, bytes]) -> None:
        raw = fields.get(b"task")
        reply_key = fields.get(b"reply", b"")
        try:
            if raw is None:
                raise Refused(
                    "missing_field", "task", "an entry of the inbox needs the field task with the JSON of a dict"
                )
            checked = parse(raw, self._max_bytes)
        except Refused as refused:
            self._spawn(self._refuse(entry, raw or b"", reply_key, refused))
            return
        self._intake.add(checked, lambda answer: self._on_answer(reply_key, answer), entry)

    def _on_answer(self, reply_key: bytes, answer: Answer) -> None:
        # An entry that Redis could not take stays pending, and is taken over later; its client is told then.
        if reply_key and answer is not None and not isinstance(answer, Refused):
            self._spawn(self._reply(reply_key, answer))

    def _spawn(self, work: Any) -> None:
        running = asyncio.get_running_loop().create_task(work)
        self._replies.add(running)
        running.add_done_callback(self._replies.discard)

    async def _refuse(self, entry: str, raw: bytes, reply_key: bytes, refused: Refused) -> None:
        try:
            taken = await script("refuse").run_async(
                self._redis,
                [keys.INBOX, keys.REFUSED],
                [keys.INBOX_GROUP, entry, raw, encode_answer(refused), keys.REFUSED_KEEP],
            )
            if taken and reply_key:
                await self._reply(reply_key, refused)
        except (RedisError, OSError) as error:
            logger.warning("refusal_failed", extra={"entry": entry, "error": str(error)})

    async def _reply(self, reply_key: bytes, answer: Answer) -> None:
        try:
            async with self._redis.pipeline() as pipeline:
                pipeline.rpush(reply_key, encode_answer(answer))
                pipeline.expire(reply_key, keys.REPLY_SECONDS)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            logger.warning("reply_failed", extra={"key": reply_key.decode("utf-8", "replace"), "error": str(error)})


def _entries(reply: Any) -> list[_Entry]:
    """The entries of an XREADGROUP reply, which is a list in RESP2 and a dict in RESP3."""
    if not reply:
        return []
    if isinstance(reply, dict):
        found = next(iter(reply.values()))
        return list(found[0] if found and isinstance(found[0], list) else found)
    return list(reply[0][1])
