"""Accepts a batch of checked tasks, in one atomic round trip to Redis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from msgspec import UNSET, Struct

from qtask.model.errors import Unavailable
from qtask.model.ids import stored_id
from qtask.model.validation import Checked
from qtask.store import flows, keys
from qtask.store.nodes import Node, Nodes
from qtask.store.queries import Steps, commands, query
from qtask.store.scripts import Call, Script

REPLICA_WAIT_SECONDS = 2.0
RQ_TIMEOUT_MARGIN_SECONDS = 10  # a stock worker kills a job at its timeout; ours ends the delivery first
ROUNDS_LIMIT = 5  # of one call; a node number or an id is rarely refused, unless Redis evicts keys


class SubmitKeys(NamedTuple):
    """See submit.lua."""

    schedule: str
    inbox: str
    node: str
    ledger: str
    flows: str


class SubmitArguments(NamedTuple):
    """See submit.lua."""

    queue_name: str
    nonce: str
    sent_before: Literal["", "1"]


Mode = Literal["in", "at", "IN", "AT"]


class Submitted(Struct, gc=False):
    """One task as submit.lua gets it.

    Attributes:
        id: the stored id.
        body: the dict as JSON.
        mode: whether `instant` is in seconds from now or in Unix seconds, and who chose the id.
        instant: due.
        options: what only some tasks have; see submit.lua.
        entry: id of its entry in the inbox, and after a space the key for its answer.
    """

    id: str
    body: bytes
    mode: Mode
    instant: str
    options: str | int | bytes
    entry: str | bytes


SUBMIT = Script("submit", SubmitKeys, SubmitArguments, each=Submitted)


class Submission(Struct, frozen=True):
    """One task to be submitted.

    Attributes:
        checked: the task.
        entry: id of its entry in the inbox, which is acknowledged in the same step; empty if it came another way.
        reply_key: key that the answer to this entry is pushed to, in the same step; empty for none.
    """

    checked: Checked
    entry: str = ""
    reply_key: bytes = b""


class Place(Struct, frozen=True):
    """The answer to a submission.

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

    If the reply of Redis is lost, the same batch may be submitted again: it is sent with the same ids, so that nothing
    is accepted twice.

    Attributes:
        places: answer to each submission, once the batch is accepted; None if another gateway took the inbox entry.
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
        """The node that it must be submitted with, because its last reply was lost; None if any node will do."""
        return self._node

    def call(self, node: Node) -> Call:
        """The script call for the remaining tasks; `read` parses its reply."""
        sent = self._node is not None
        if not sent:
            self._node = node
            self._ids = [_id_of(self._submissions[position].checked, node) for position in self._left]
        tasks = [
            _submitted(task_id, self._submissions[position], node)
            for task_id, position in zip(self._ids, self._left, strict=True)
        ]
        return SUBMIT.call(
            SubmitKeys(schedule=keys.SCHEDULE, inbox=keys.INBOX, node=node.key, ledger=keys.LEDGER, flows=keys.FLOWS),
            SubmitArguments(queue_name=self._queue, nonce=node.nonce, sent_before="1" if sent else ""),
            records=tasks,
        )

    def read(self, reply: list[bytes]) -> bool:
        """Takes the reply of the script. Returns False if the remaining tasks need another node number."""
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


@query
def submit(nodes: Nodes, batch: Batch, replicas: int = 0) -> Steps[list[Place | None]]:
    """Accepts a batch; returns `batch.places`.

    Args:
        nodes: holds the node number of this process.
        batch: the tasks.
        replicas: how many replicas of Redis must hold the batch. Raises `Unavailable` if fewer confirm it in time.

    Raises redis-py's errors; then the same batch may be submitted again, with the same `nodes`. Raises `Unavailable`
    when Redis keeps refusing new ids.
    """
    for _ in range(ROUNDS_LIMIT):
        if batch.done:
            return batch.places
        node = batch.node or (yield from nodes.take())
        call = batch.call(node)
        reply: list[bytes] = (yield from _run_replicated(call, replicas)) if replicas else (yield call)
        if not batch.read(reply):
            nodes.drop(node)
    return _accepted(batch)


def _run_replicated(call: Call, replicas: int) -> Steps[list[bytes]]:
    wait = ("WAIT", replicas, int(REPLICA_WAIT_SECONDS * 1000))
    reply, confirmed = yield commands(call.as_eval, wait)  # over one connection: WAIT is about the writes on it
    if confirmed < replicas:
        raise Unavailable(
            f"{confirmed} replicas of Redis hold the task after {REPLICA_WAIT_SECONDS:g} s, not {replicas}"
        )
    found: list[bytes] = reply
    return found


def _accepted(batch: Batch) -> list[Place | None]:
    if not batch.done:
        raise Unavailable(
            f"Redis refused the ids of new tasks {ROUNDS_LIMIT} times; check that it does not evict keys "
            "(maxmemory-policy must be noeviction)"
        )
    return batch.places


def _id_of(checked: Checked, node: Node) -> str:
    """The id of a task: the client's, or a new one."""
    chosen = checked.task.settings.id
    return node.ids.next() if chosen is UNSET else chosen


def _submitted(task_id: str, submission: Submission, node: Node) -> Submitted:
    checked, entry = submission.checked, submission.entry
    settings = checked.task.settings
    timeout, is_delay = settings.timeout, checked.instant is None
    mode: Mode = "in" if is_delay else "at"
    if settings.id is not UNSET:
        task_id = stored_id(task_id)
        mode = "IN" if is_delay else "AT"
    options: str | int | bytes = ""
    adapts = False
    if timeout is not UNSET:
        if isinstance(timeout, str):
            adapts = True
        else:
            options = math.ceil(timeout) + RQ_TIMEOUT_MARGIN_SECONDS
    if adapts or settings.flow is not UNSET or node.rules is not None:
        rank = node.ids.next() if settings.id is not UNSET else None
        extra, limits = flows.fields_of(checked.task, rank, node.rules)
        if extra:
            options = b"%b\n%b\n%b" % (str(options).encode(), extra, limits)
    if settings.queue is not UNSET:
        given = options if isinstance(options, bytes) else b"%b\n\n" % str(options).encode()
        options = b"%b\n%b" % (given, settings.queue.encode())
    return Submitted(
        id=task_id,
        body=checked.body,
        mode=mode,
        instant=repr(checked.delay if is_delay else checked.instant),
        options=options,
        entry=entry.encode() + b" " + submission.reply_key if submission.reply_key else entry,
    )
