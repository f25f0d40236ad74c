"""The submitters: over the socket, through the inbox, with the client directly to Redis, and after a fork.

Each notes its answers. It sends an unanswered task again only if the task has a chosen id; otherwise it is unknown
whether the task was accepted, and the ledger allows both.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.exceptions import RedisError

from qtask import Client
from qtask.client.protocol import Accepted, Answer, read_answer
from qtask.model.errors import Refused, Unavailable
from qtask.store import keys
from qtask.store.connect import connect
from tests.chaos.plan import PlannedTask, Way, dict_of
from tests.chaos.sharing import Batch

TIMEOUT_SECONDS = 3.0
BATCH = 25  # tasks sent together; all of them may stay unanswered when a process is killed
PAUSE_SECONDS = 0.05  # between two checks for tasks to submit
AGAIN_SECONDS = 0.3  # before unanswered tasks are sent again
COLLECT_SECONDS = 0.3  # between two checks for answers of the inbox
REPLY_PREFIX = "chaos:reply:"
SHARING_PARTS = 3


@dataclass(slots=True)
class Note:
    """The submissions of one task.

    Attributes:
        sent_at: Unix seconds of the first try.
        accepted: every `ok` received.
        refused: every refusal received, except those because Redis was away; must stay empty.
        added: Redis confirmed that the inbox contains it.
    """

    sent_at: float = float("inf")
    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    added: bool = False

    @property
    def promised(self) -> bool:
        """Whether a submitter was told that it will be delivered."""
        return bool(self.accepted) or self.added


class Notes:
    """The notes of all submitters, by the number of the task."""

    def __init__(self, count: int) -> None:
        self._notes = [Note() for _ in range(count)]
        self._lock = threading.Lock()  # two submitters may submit the same task

    def __getitem__(self, number: int) -> Note:
        return self._notes[number]

    def sent(self, task: PlannedTask) -> None:
        with self._lock:
            note = self._notes[task.number]
            note.sent_at = min(note.sent_at, time.time())

    def added(self, task: PlannedTask) -> None:
        self._notes[task.number].added = True

    def answered(self, task: PlannedTask, answer: Answer) -> bool:
        """Returns whether this is final; "unavailable" does not say whether the task was accepted."""
        with self._lock:
            note = self._notes[task.number]
            if isinstance(answer, Accepted):
                note.accepted.append(answer)
            elif answer.code != "unavailable":
                note.refused.append(answer)
            else:
                return False
            return True


class Submitter(ABC):
    """One submitter, in its own thread.

    Args:
        way: its name.
        tasks: of the whole plan, ordered by time; it takes those of its way.
        places: of the receivers.
        notes: gets its answers.
    """

    def __init__(self, way: Way, tasks: Sequence[PlannedTask], places: dict[str, str], notes: Notes) -> None:
        self._tasks = [task for task in tasks if way in task.ways]
        self._places = places
        self.notes = notes
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"submitter {way}", daemon=True)

    def start(self) -> None:
        """Starts; the times of the plan count from now."""
        self._began = time.monotonic()
        self._thread.start()

    def end(self, seconds: float) -> None:
        """Tells it that no process is killed any more, and waits until it has all answers that it can get."""
        self._ended.set()
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the {self._thread.name} did not end within {seconds:g} s"
        if self._error is not None:
            raise self._error

    @abstractmethod
    def submit(self, tasks: Sequence[PlannedTask]) -> list[PlannedTask]:
        """Submits tasks together; returns those without an answer."""

    def finish(self) -> None:  # noqa: B027  # most have nothing left to do
        """Called when everything is submitted."""

    def dict_of(self, task: PlannedTask) -> dict[str, Any]:
        """The dict of a task, noted as sent."""
        self.notes.sent(task)
        return dict_of(task, self._places)

    def _run(self) -> None:
        try:
            self._submit_all()
        except Exception as error:
            self._error = error

    def _submit_all(self) -> None:
        coming = deque(self._tasks)
        again: deque[PlannedTask] = deque()
        most = BATCH
        while coming or again:
            batch: list[PlannedTask] = []
            while again and len(batch) < most:
                batch.append(again.popleft())
            while coming and coming[0].at <= time.monotonic() - self._began and len(batch) < most:
                batch.append(coming.popleft())
            unanswered = self.submit(batch) if batch else []
            again += [task for task in unanswered if task.chosen_id]
            # Unanswered tasks are sent again one by one: of a whole batch the state would be unknown.
            most = 1 if unanswered else BATCH
            if unanswered or len(batch) < most:
                time.sleep(AGAIN_SECONDS if unanswered else PAUSE_SECONDS)
        self.finish()


class ClientSubmitter(Submitter):
    """`qtask.Client`: over the socket of one gateway and then the other, pipelined; or directly to Redis."""

    def __init__(self, way: Way, urls: Sequence[str], *rest: Any) -> None:
        super().__init__(way, *rest)
        self._clients = [Client(url, timeout=TIMEOUT_SECONDS) for url in urls]
        self._turn = 0

    def submit(self, tasks: Sequence[PlannedTask]) -> list[PlannedTask]:
        client = self._clients[self._turn % len(self._clients)]
        self._turn += 1
        unanswered = list(tasks)
        known = 0
        try:
            for answer in client.send_iter([self.dict_of(task) for task in tasks]):
                if self.notes.answered(tasks[known], answer):
                    unanswered.remove(tasks[known])
                known += 1
        except Unavailable:
            pass  # unanswered tasks are returned
        return unanswered

    def finish(self) -> None:
        for client in self._clients:
            client.close()


class ForkSubmitter(Submitter):
    """A program (`sharing`) that forks with a client in use, and whose clients make ids with one node number."""

    def __init__(self, way: Way, urls: Sequence[str], *rest: Any) -> None:
        super().__init__(way, *rest)
        self._urls = urls
        self._turn = 0
        command = [sys.executable, "-m", "tests.chaos.sharing", *urls]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def submit(self, tasks: Sequence[PlannedTask]) -> list[PlannedTask]:
        url = self._urls[self._turn % len(self._urls)]
        self._turn += 1
        parts = [tasks[number::SHARING_PARTS] for number in range(SHARING_PARTS)]
        batch = Batch(url, [[self.dict_of(task) for task in part] for part in parts])
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(batch) + b"\n")
        self._process.stdin.flush()
        answers = msgspec.json.decode(self._process.stdout.readline(), type=list[list[msgspec.Raw]])
        unanswered = list(tasks)
        for part, said in zip(parts, answers, strict=True):
            for task, answer in zip(part, said, strict=False):  # lost answers are missing at the end
                if self.notes.answered(task, read_answer(bytes(answer))):
                    unanswered.remove(task)
        return unanswered

    def finish(self) -> None:
        self._process.communicate()


class InboxSubmitter(Submitter):
    """`XADD qtask:inbox`, each entry with its own key for the answer."""

    def __init__(self, redis_url: str, *rest: Any) -> None:
        super().__init__("inbox", *rest)
        self._redis = connect(redis_url, TIMEOUT_SECONDS)
        self._owed: dict[str, tuple[PlannedTask, float]] = {}  # key of the answer to the task and its time of sending
        self._keys = 0
        self._collect_at = 0.0

    def submit(self, tasks: Sequence[PlannedTask]) -> list[PlannedTask]:
        self._collect()
        pipeline = self._redis.pipeline(transaction=False)
        for task in tasks:
            reply_key = f"{REPLY_PREFIX}{self._keys}"
            self._keys += 1
            self._owed[reply_key] = (task, time.monotonic())  # also if the connection breaks before Redis confirms
            pipeline.xadd(keys.INBOX, {"task": msgspec.json.encode(self.dict_of(task)), "reply": reply_key})
        try:
            pipeline.execute()
        except (RedisError, OSError):
            return list(tasks)
        for task in tasks:
            self.notes.added(task)
        return []

    def finish(self) -> None:
        while not self._ended.is_set() or (self._owed and self._inbox_holds_any()):
            self._collect()
            time.sleep(PAUSE_SECONDS)
        time.sleep(COLLECT_SECONDS)  # the last answers follow their commits
        self._collect()
        self._redis.close()

    def _inbox_holds_any(self) -> bool:
        try:
            return bool(self._redis.xlen(keys.INBOX))
        except (RedisError, OSError):
            return True

    def _collect(self) -> None:
        now = time.monotonic()
        if now < self._collect_at:
            return
        self._collect_at = now + COLLECT_SECONDS
        for reply_key, (_, since) in list(self._owed.items()):
            if now - since > keys.INBOX_REPLY_SECONDS:
                del self._owed[reply_key]  # it was never added, or its answer was lost with a connection
        reply_keys = list(self._owed)
        pipeline = self._redis.pipeline(transaction=False)
        for reply_key in reply_keys:
            pipeline.lpop(reply_key)
        try:
            answers = pipeline.execute() if reply_keys else []
        except (RedisError, OSError):
            return
        for reply_key, answer in zip(reply_keys, answers, strict=True):
            if answer is not None:
                self.notes.answered(self._owed.pop(reply_key)[0], read_answer(answer))
