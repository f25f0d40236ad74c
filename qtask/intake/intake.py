"""The intake: checked tasks from the socket, HTTP and the inbox are committed to Redis in batches."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from qtask.config import Config
from qtask.model.accepted import Accepted
from qtask.model.errors import Refused, Unavailable
from qtask.model.validation import Checked
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

BATCH = 500  # tasks a commit
BATCH_BYTES = 1_048_576
COMMITS_IN_FLIGHT = 2  # while Redis works on one, the next is on its way
MAX_WAITING = 4_000  # that wait for Redis, so the longest queue before a task; from here on nothing more is read
MAX_WAITING_BYTES = 67_108_864  # of these
COMMIT_TIMEOUT_SECONDS = 5.0
QUEUED_SECONDS = 1.0  # beyond `accept_retry_seconds`; tasks that waited longer are refused after a failed batch
HOLD_PAUSE_SECONDS = (0.02, 0.5)  # before a commit is tried again: first and longest pause, doubled each time

logger = logging.getLogger("qtask.gateway")


Answer = Accepted | Refused | None  # None: another gateway committed the inbox entry
OnAnswer = Callable[[Answer], None]


class _Waiting(msgspec.Struct, frozen=True):
    checked: Checked
    on_answer: OnAnswer
    since: float  # by monotonic
    entry: str
    reply_key: bytes


class Intake:
    """Commits tasks: at once while Redis is idle, in batches while it is busy.

    Args:
        redis: a client of Redis.
        config: `queue`, `accept_retry_seconds`, `wait_replicas` and `flow`.
    """

    def __init__(self, redis: Redis, config: Config) -> None:
        self._redis = redis
        self._queue = config.queue
        self._accept_retry_seconds = config.accept_retry_seconds
        self._replicas = config.wait_replicas
        self._nodes = Nodes(config.flow_rules)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._commits: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._on_room: dict[Callable[[], None], None] = {}  # an ordered set

    @property
    def full(self) -> bool:
        """Whether nothing more should be read, because too many tasks wait for Redis."""
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def unanswered(self) -> int:
        """How many tasks wait to be sent to Redis."""
        return len(self._waiting)

    def add(self, checked: Checked, on_answer: OnAnswer, entry: str = "", reply_key: bytes = b"") -> None:
        """Adds a task; `on_answer` is called when Redis has accepted it, or when that failed.

        Args:
            checked: the task.
            on_answer: gets the answer.
            entry: id of the task's entry in the inbox; empty for tasks from elsewhere.
            reply_key: key in Redis that the answer to this entry is pushed to; empty for none.
        """
        self._waiting.append(_Waiting(checked, on_answer, monotonic(), entry, reply_key))
        self._waiting_bytes += len(checked.body)
        if not self._scheduled and len(self._commits) < COMMITS_IN_FLIGHT:
            # At the end of this turn of the loop, so that everything that has arrived is committed together.
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once when more may be read, even if it was passed several times."""
        self._on_room[callback] = None

    def stop_holding(self) -> None:
        """From now on, a commit that fails is answered at once and not tried again."""
        self._accept_retry_seconds = 0.0

    async def room(self) -> None:
        """Returns when more may be read; at once when the intake is not full."""
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
                batch.append(self._next())
                size += len(batch[-1].checked.body)
            commit = asyncio.get_running_loop().create_task(self._commit(batch))
            self._commits.add(commit)
            commit.add_done_callback(self._done)

    def _done(self, commit: asyncio.Task[None]) -> None:
        self._commits.discard(commit)
        self._start()
        if not self.full:
            callbacks, self._on_room = self._on_room, {}
            for callback in callbacks:
                callback()

    async def _commit(self, batch: list[_Waiting]) -> None:
        answers: list[Answer] = []
        submissions = [Submission(waiting.checked, waiting.entry, waiting.reply_key) for waiting in batch]
        tasks = Batch(self._queue, submissions)  # keeps its ids when it is sent again, so no task is accepted twice
        pause, longest = HOLD_PAUSE_SECONDS
        while not answers:
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    places = await submit.run_async(self._redis, self._nodes, tasks, self._replicas)
            except (RedisError, OSError, TimeoutError, Unavailable) as error:
                reason = str(error) or f"no reply within {COMMIT_TIMEOUT_SECONDS:g} s"
                if (left := batch[0].since + self._accept_retry_seconds - monotonic()) > 0:
                    await asyncio.sleep(min(pause, left))
                    pause = min(pause * 2, longest)
                    continue
                logger.warning("commit_failed", extra={"tasks": len(batch), "error": reason})
                answers = [unavailable(reason)] * len(batch)
                self._give_up(reason)
            except Exception as error:
                # A defect of QTask. Without an answer the clients would wait for ever, and entries of the inbox would
                # stay pending: they count as in hand until they are answered.
                logger.exception("commit_failed", extra={"tasks": len(batch), "error": repr(error)})
                answers = [unavailable(f"internal error: {type(error).__name__}")] * len(batch)
            else:
                answers = [
                    None if place is None else Accepted(place.id, place.due, place.duplicate) for place in places
                ]
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.on_answer(answer)

    def _give_up(self, reason: str) -> None:
        """After a failed commit, refuses the tasks behind it that have waited for long, and would wait again."""
        since = monotonic() - self._accept_retry_seconds - QUEUED_SECONDS
        while self._waiting and self._waiting[0].since < since:
            self._next().on_answer(unavailable(reason))

    def _next(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_bytes -= len(waiting.checked.body)
        return waiting


def unavailable(reason: str) -> Refused:
    """The refusal while Redis does not answer. It is not known whether Redis holds the task."""
    return Refused(
        "unavailable",
        "",
        f"QTask's Redis did not take the task ({reason}); send it again, with an id of yours in settings.id if it must "
        "not be accepted twice",
    )


def encode_answer(answer: Answer) -> bytes:
    """An answer as JSON on one line, without the line break."""
    if isinstance(answer, Accepted):
        duplicate = ',"duplicate":true' if answer.duplicate else ""
        return f'{{"ok":true,"id":{_id_as_json(answer.id)},"due":{answer.due!r}{duplicate}}}'.encode()
    if answer is None:
        return b"null"
    return msgspec.json.encode({"ok": False, "error": answer.as_dict()})


def _id_as_json(task_id: str) -> str:
    if '"' in task_id or "\\" in task_id:  # only in ids that clients chose
        return msgspec.json.encode(task_id).decode()
    return f'"{task_id}"'
