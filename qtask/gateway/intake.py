"""Where all ways in meet: checked tasks gather here and go to Redis by the batch."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from qtask.config import Config
from qtask.errors import Refused
from qtask.ids import IdSource
from qtask.store.submit import Submission, id_source_async, submit_async
from qtask.task import Checked

BATCH = 500  # tasks a commit
BATCH_BYTES = 1_048_576
COMMITS_IN_FLIGHT = 2  # while Redis works on one, the next is on its way
MAX_WAITING = 4_000  # tasks that wait for Redis, and so the longest queue before a task; beyond it nothing more is read
COMMIT_TIMEOUT_SECONDS = 5.0

logger = logging.getLogger("qtask.gateway")


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a task that Redis holds; `due` in Unix seconds."""

    id: str
    due: float
    ok: bool = True


Answer = Accepted | Refused | None  # None: another gateway had taken the inbox entry
OnAnswer = Callable[[Answer], None]


@dataclass(slots=True)
class _Waiting:
    checked: Checked
    on_answer: OnAnswer
    entry: str
    reply_key: bytes


class Intake:
    """Commits tasks: at once when Redis is idle, by the batch when it is busy.

    Args:
        redis: where to.
        config: `queue`.
    """

    def __init__(self, redis: Redis, config: Config) -> None:
        self._redis = redis
        self._queue = config.queue
        self._ids: IdSource | None = None
        self._waiting: deque[_Waiting] = deque()
        self._commits: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._on_room: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        """Whether so much waits for Redis that nothing more should be read."""
        return len(self._waiting) >= MAX_WAITING

    @property
    def unanswered(self) -> int:
        """How many tasks wait for Redis, without those that are on their way."""
        return len(self._waiting)

    def add(self, checked: Checked, on_answer: OnAnswer, entry: str = "", reply_key: bytes = b"") -> None:
        """Takes a task; `on_answer` is called when Redis holds it, or when it does not.

        For one from the inbox also its `entry` there, and the key that its answer is pushed to.
        """
        self._waiting.append(_Waiting(checked, on_answer, entry, reply_key))
        if not self._scheduled and len(self._commits) < COMMITS_IN_FLIGHT:
            # Not at once but after this turn of the loop, so that all that has arrived goes together.
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Calls back, once, when something may be read again."""
        self._on_room.append(callback)

    async def room(self) -> None:
        """Returns when something may be read again; at once when nothing is in the way."""
        while self.full:
            there_is = asyncio.Event()
            self.when_room(there_is.set)
            await there_is.wait()

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._commits) < COMMITS_IN_FLIGHT:
            batch: list[_Waiting] = []
            size = 0
            while self._waiting and len(batch) < BATCH and size < BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += len(batch[-1].checked.body)
            commit = asyncio.get_running_loop().create_task(self._commit(batch))
            self._commits.add(commit)
            commit.add_done_callback(self._done)

    def _done(self, commit: asyncio.Task[None]) -> None:
        self._commits.discard(commit)
        self._start()
        if not self.full:
            callbacks, self._on_room = self._on_room, []
            for callback in callbacks:
                callback()

    async def _commit(self, batch: list[_Waiting]) -> None:
        answers: list[Answer]
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                if self._ids is None:
                    self._ids = await id_source_async(self._redis)
                submissions = [
                    Submission(self._ids.next(), waiting.checked, waiting.entry, waiting.reply_key) for waiting in batch
                ]
                dues = await submit_async(self._redis, self._queue, submissions)
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            reason = str(error) or f"no reply within {COMMIT_TIMEOUT_SECONDS:g} s"
            logger.warning("commit_failed", extra={"tasks": len(batch), "error": reason})
            # A Redis that lost its data would hand out our number again: take another one, which is ours alone.
            self._ids = None
            answers = [unavailable(reason)] * len(batch)
        else:
            answers = [
                None if due is None else Accepted(submission.id, due)
                for submission, due in zip(submissions, dues, strict=True)
            ]
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.on_answer(answer)


def unavailable(reason: str) -> Refused:
    """What a client is told while Redis is away: whether it holds the task is not known."""
    return Refused(
        "unavailable",
        "",
        f"QTask cannot reach its Redis ({reason}); the task may not have been accepted, send it again",
    )


def encode_answer(answer: Answer) -> bytes:
    """An answer as JSON on one line, without the line break."""
    if isinstance(answer, Accepted):
        return b'{"ok":true,"id":"%b","due":%b}' % (answer.id.encode(), repr(answer.due).encode())
    if answer is None:
        return b"null"
    return msgspec.json.encode({"ok": False, "error": answer.as_dict()})
