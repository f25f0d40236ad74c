"""Accepting: a batch of checked tasks into Redis, in one atomic round trip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, Struct
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from qtask.model.errors import Unavailable
from qtask.model.ids import stored_id
from qtask.model.validation import Checked
from qtask.store import keys
from qtask.store.nodes import Node, Nodes
from qtask.store.scripts import Value, script

REPLICA_WAIT_SECONDS = 2.0
RQ_TIMEOUT_MARGIN_SECONDS = 10  # a stock worker kills a job at its timeout; ours ends the delivery first
MOST_ROUNDS = 5  # of one call: a number or an id is refused only rarely, unless Redis throws keys away


class Submission(Struct, frozen=True):
    """One task on its way into Redis.

    Attributes:
        checked: the task.
        entry: id of its entry in the inbox, which is acknowledged in the same step; empty for other ways in.
        reply_key: key that the answer to this entry is pushed to, in the same step; empty for none.
    """

    checked: Checked
    entry: str = ""
    reply_key: bytes = b""


class Place(Struct, frozen=True):
    """Where a submission stands.

    Attributes:
        id: of the task, as the client knows it.
        due: Unix seconds.
        duplicate: whether its id, which the client chose, belongs to a task that was accepted before.
    """

    id: str
    due: float
    duplicate: bool


class Batch:
    """Tasks that are submitted together (at most about 1,000), with the ids that they were given.

    When the reply of Redis is lost the same batch may be submitted again: it goes out with the same ids, so that what
    was accepted is not accepted twice.

    Attributes:
        places: of each submission, once the batch was accepted; None where another gateway had taken the inbox entry.
    """

    def __init__(self, queue: str, submissions: Sequence[Submission]) -> None:
        self.places: list[Place | None] = [None] * len(submissions)
        self._queue = queue
        self._submissions = submissions
        self._left: Sequence[int] = range(len(submissions))  # positions of those without a place
        self._ids: list[str] = []  # of these
        self._node: Node | None = None

    @property
    def done(self) -> bool:
        """Whether every submission has its place."""
        return not self._left

    @property
    def node(self) -> Node | None:
        """The node that it must be submitted with, because its last reply was lost; None when any will do."""
        return self._node

    def call(self, node: Node) -> tuple[list[str], list[Value]]:
        """Keys and arguments of the script, for what is left."""
        sent = self._node is not None
        if not sent:
            self._node = node
            self._ids = [_id_of(self._submissions[position].checked, node) for position in self._left]
        script_keys = [keys.SCHEDULE, keys.INBOX, node.key, keys.LEDGER]
        arguments: list[Value] = [
            *(keys.JOB_PREFIX, self._queue, keys.WAKE, keys.INBOX_GROUP, keys.ID_PREFIX, keys.REPLY_SECONDS),
            *(node.nonce, "1" if sent else ""),
        ]
        for task_id, position in zip(self._ids, self._left, strict=True):
            _add_arguments(arguments, task_id, self._submissions[position])
        return script_keys, arguments

    def read(self, reply: list[bytes]) -> bool:
        """Takes the reply of the script. Returns False when another node number is needed for what is left."""
        self._node = None
        if not reply:
            return False
        left = []
        for task_id, position, due in zip(self._ids, self._left, reply, strict=True):
            if due == b"!":
                left.append(position)
            elif due:
                again = due.startswith(b"=")
                self.places[position] = Place(task_id, float(due[1:] if again else due), again)
        self._left = left
        return self.done


def submit(redis: Redis, nodes: Nodes, batch: Batch) -> list[Place | None]:
    """Accepts a batch; returns `batch.places`.

    Raises redis-py's errors; then the same batch may be submitted again, with the same `nodes`. Raises `Unavailable`
    when Redis keeps refusing new ids.
    """
    for _ in range(MOST_ROUNDS):
        if batch.done:
            return batch.places
        node = batch.node or nodes.take(redis)
        if not batch.read(script("submit").run(redis, *batch.call(node))):
            nodes.drop(node)
    return _accepted(batch)


async def submit_async(redis: AsyncRedis, nodes: Nodes, batch: Batch, replicas: int = 0) -> list[Place | None]:
    """As `submit`, for redis.asyncio.

    Args:
        replicas: how many replicas of Redis must hold the batch, too. Raises `Unavailable` when fewer say so in time.
    """
    for _ in range(MOST_ROUNDS):
        if batch.done:
            return batch.places
        node = batch.node or await nodes.take_async(redis)
        script_keys, arguments = batch.call(node)
        if replicas:
            reply = await _run_replicated(redis, script_keys, arguments, replicas)
        else:
            reply = await script("submit").run_async(redis, script_keys, arguments)
        if not batch.read(reply):
            nodes.drop(node)
    return _accepted(batch)


async def _run_replicated(redis: AsyncRedis, script_keys: list[str], arguments: list[Value], replicas: int) -> Any:
    async with redis.pipeline(transaction=False) as pipeline:  # one connection: WAIT speaks of what went over it
        pipeline.eval(script("submit").text, len(script_keys), *script_keys, *arguments)  # type: ignore[arg-type]
        pipeline.execute_command("WAIT", replicas, int(REPLICA_WAIT_SECONDS * 1000))
        reply, confirmed = await pipeline.execute()
    if confirmed < replicas:
        raise Unavailable(
            f"{confirmed} replicas of Redis hold the task after {REPLICA_WAIT_SECONDS:g} s, not {replicas}"
        )
    return reply


def _accepted(batch: Batch) -> list[Place | None]:
    if not batch.done:
        raise Unavailable(
            f"Redis refused the ids of new tasks {MOST_ROUNDS} times; check that it does not evict keys "
            "(maxmemory-policy must be noeviction)"
        )
    return batch.places


def _id_of(checked: Checked, node: Node) -> str:
    """The id of a task: the client's, or a new one."""
    chosen = checked.task.settings.id
    return node.ids.next() if chosen is UNSET else chosen


def _add_arguments(arguments: list[Value], task_id: str, submission: Submission) -> None:
    checked = submission.checked
    timeout = checked.task.settings.timeout
    chosen = checked.task.settings.id is not UNSET
    arguments += (
        stored_id(task_id) if chosen else task_id,
        checked.body,
        _MODES[checked.instant is None, not chosen],
        repr(checked.delay if checked.instant is None else checked.instant),
        "" if timeout is UNSET else math.ceil(timeout) + RQ_TIMEOUT_MARGIN_SECONDS,
        submission.entry.encode() + b" " + submission.reply_key if submission.reply_key else submission.entry,
    )


# By whether there is a delay, and whether the id is QTask's; see submit.lua.
_MODES = {(True, True): "in", (True, False): "IN", (False, True): "at", (False, False): "AT"}
