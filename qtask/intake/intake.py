"""Where all ways in meet: checked tasks gather here and go to Redis by the batch."""

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
from qtask.model.errors import Refused, Unavailable
from qtask.model.validation import Checked
from qtask.store.nodes import Nodes
from qtask.store.submit import Batch, Submission, submit

BATCH = 500  # tasks a commit
BATCH_BYTES = 1_048_576
COMMITS_IN_FLIGHT = 2  # while Redis works on one, the next is on its way
MAX_WAITING = 4_000  # tasks that wait for Redis, and so the longest queue before a task; beyond it nothing more is read
MAX_WAITING_BYTES = 67_108_864  # of these
COMMIT_TIMEOUT_SECONDS = 5.0
QUEUED_SECONDS = 1.0  # beyond the hold; who has waited longer for a turn is refused when those before are
HOLD_PAUSE_SECONDS = (0.02, 0.5)  # before the second try of a commit, doubled for each further one up to the last

logger = logging.getLogger("qtask.gateway")


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a task that Redis holds.

    Attributes:
        id: of the task.
        due: Unix seconds.
        duplicate: whether a task with this id, which the client chose, was accepted before; then this is that one.
    """

    id: str
    due: float
    duplicate: bool = False


Answer = Accepted | Refused | None  # None: another gateway had taken the inbox entry
OnAnswer = Callable[[Answer], None]


class _Waiting(msgspec.Struct, frozen=True):
    checked: Checked
    on_answer: OnAnswer
    since: float  # by monotonic
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
        self._accept_retry_seconds = config.accept_retry_seconds
        self._replicas = config.wait_replicas
        self._nodes = Nodes()
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._commits: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._on_room: dict[Callable[[], None], None] = {}  # a set in the order of coming

    @property
    def full(self) -> bool:
        """Whether so much waits for Redis that nothing more should be read."""
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def unanswered(self) -> int:
        """How many tasks wait for Redis, without those that are on their way."""
        return len(self._waiting)

    def add(self, checked: Checked, on_answer: OnAnswer, entry: str = "", reply_key: bytes = b"") -> None:
        """Takes a task; `on_answer` is called when Redis holds it, or when it does not.

        For one from the inbox also its `entry` there, and the key that its answer is pushed to.
        """
        self._waiting.append(_Waiting(checked, on_answer, monotonic(), entry, reply_key))
        self._waiting_bytes += len(checked.body)
        if not self._scheduled and len(self._commits) < COMMITS_IN_FLIGHT:
            # Not at once but after this turn of the loop, so that all that has arrived goes together.
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def when_room(self, callback: Callable[[], None]) -> None:
        """Calls back, once, when something may be read again, however often it was asked to."""
        self._on_room[callback] = None

    def stop_holding(self) -> None:
        """Has every commit that fails end with an answer at once, from now on."""
        self._accept_retry_seconds = 0.0

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
        tasks = Batch(self._queue, submissions)  # keeps its ids: what had come through is not accepted twice
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
        """Refuses those behind a failed commit who have waited for long: each batch in its turn would wait anew."""
        since = monotonic() - self._accept_retry_seconds - QUEUED_SECONDS
        while self._waiting and self._waiting[0].since < since:
            self._next().on_answer(unavailable(reason))

    def _next(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_bytes -= len(waiting.checked.body)
        return waiting


def unavailable(reason: str) -> Refused:
    """What a client is told while Redis takes no tasks: whether it holds this one is not known."""
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
    if '"' in task_id or "\\" in task_id:  # of a client's choosing
        return msgspec.json.encode(task_id).decode()
    return f'"{task_id}"'
