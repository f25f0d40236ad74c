"""Claims: tasks are claimed by the batch, the queue is watched for more, and what cannot be begun is given back."""

from __future__ import annotations

from collections import deque
from enum import Enum
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from qtask.config import Config
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import Entry
from qtask.store import leases, workers
from qtask.worker.clock import RedisClock
from qtask.worker.deliveries import Deliveries
from qtask.worker.held import HeldTasks
from qtask.worker.link import IDLE_WAIT_SECONDS, Link
from qtask.worker.settling import Settling

CLAIM_BATCH = 250  # tasks a claim
HELD_BYTES = 67_108_864  # of dicts that were claimed and are not settled; beyond it no more are claimed
BACKLOG_SECONDS = 5.0  # for which a claimed task waits for its turn; later its lease might end before its delivery
OUT_OF_MEMORY_PAUSE_SECONDS = 0.05


class Exchange(Enum):
    """What is under way that changes which tasks this worker holds; there is one of these at a time."""

    NOTHING = "a claim may be sent, and so may tasks that go back"
    CLAIM = "tasks may be on their way here"
    NACK = "tasks go back; what was claimed now would go back as well"


class Queue(Enum):
    """What is known of the queue."""

    MAY_HOLD_TASKS = "it is to be looked at by a claim"
    WATCHED = "Redis replies as soon as it holds a task, and now and then when it does not"
    NOT_WATCHED = "Redis has no memory to let anybody wait; it is looked at after a pause"


# Looked up once: in Python 3.11 a member of an enum costs as much as a call.
NOTHING, CLAIM, NACK = Exchange
MAY_HOLD_TASKS, WATCHED, NOT_WATCHED = Queue


class Claims:
    """The claims of one worker.

    Its methods send over `link` while that is connected, and raise its `LINK_ERRORS`.

    Args:
        config: `queue` and `concurrency`.
        token: of the worker, under which it holds leases.
        loop, link, clock: on which it works, over which it sends, and which its replies set.
        held: gets what is claimed.
        deliveries, settling: those of the worker.

    Attributes:
        backlog: tasks that were claimed and whose deliveries were not begun.
    """

    def __init__(
        self,
        config: Config,
        token: str,
        loop: Loop,
        link: Link,
        clock: RedisClock,
        held: HeldTasks,
        deliveries: Deliveries,
        settling: Settling,
    ) -> None:
        self.backlog: deque[Entry] = deque()
        self._config = config
        self._token = token
        self._loop = loop
        self._link = link
        self._clock = clock
        self._held = held
        self._deliveries = deliveries
        self._settling = settling
        self._prefetch = min(CLAIM_BATCH, config.concurrency // 8)
        self._limits_hosts = config.host_connections > 0
        self._exchange = NOTHING
        self._queue = MAY_HOLD_TASKS
        self._claimed_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether no claim is under way, and no task on its way back."""
        return self._exchange is NOTHING

    # --- claiming --------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Claims a batch, when the queue may hold tasks and there is room for them."""
        if self._queue is not MAY_HOLD_TASKS or self._exchange is not NOTHING:
            return
        in_flight = len(self._deliveries.in_flight)
        unbegun = len(self.backlog) + len(self._deliveries.slots)
        room = self._config.concurrency + self._prefetch - in_flight - unbegun
        if self._held.total < HELD_BYTES and (room > self._prefetch or not in_flight):
            self._claim(min(room, CLAIM_BATCH))

    def _claim(self, limit: int) -> None:
        self._exchange = CLAIM
        self._link.claims.run(self._on_claimed, leases.claim(self._config.queue, self._token, limit))
        self._queue = WATCHED  # by the wait for more, which is sent right after the claim
        self._link.claims.send(self._on_watched, *workers.wait_for_tasks(self._config.queue, IDLE_WAIT_SECONDS))

    def _on_claimed(self, reply: Any) -> None:
        self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        now, claimed = leases.read_claimed(reply)
        self._clock.set(now)
        self._claimed_at = monotonic()
        take, backlog = self._held.take, self.backlog
        for raw_id, attempt, due, data in claimed:
            task_id = raw_id.decode()
            if take(task_id, len(data)):
                backlog.append((task_id, attempt, due, data))

    def _on_watched(self, reply: Any) -> None:
        if isinstance(reply, OutOfMemoryError):
            # Redis lets nobody wait who might write, but claiming and settling free its memory: look again and again.
            self._queue = NOT_WATCHED
            self._loop.call_later(OUT_OF_MEMORY_PAUSE_SECONDS, self._look_again)
        elif isinstance(reply, ResponseError):
            raise reply
        else:
            self._queue = MAY_HOLD_TASKS

    def _look_again(self) -> None:
        if self._queue is NOT_WATCHED:
            self._queue = MAY_HOLD_TASKS

    # --- giving back -----------------------------------------------------------------------------------------

    def nack_late(self) -> None:
        """Gives back what has waited here for too long: for a free place, or for a connection to its host."""
        now = monotonic()
        if now - self._claimed_at > BACKLOG_SECONDS:
            self.nack_unbegun()
        elif self._limits_hosts and self._may_nack:
            withdrawn = self._deliveries.slots.withdraw(now - BACKLOG_SECONDS)
            if withdrawn:
                self._held.let_go(withdrawn)
                self._nack()

    def nack_unbegun(self) -> None:
        """Gives back what is not begun: other workers may have room, and a lease does not wait.

        That is so behind receivers that hang, and when this worker is asked to end.
        """
        if (self.backlog or self._deliveries.slots) and self._may_nack:
            self._forget_unbegun()
            self._nack()

    @property
    def _may_nack(self) -> bool:
        """Whether all that is leased is known: what is being claimed or settled is neither held nor to go back."""
        return self._exchange is NOTHING and not self._settling.under_way

    def _nack(self) -> None:
        self._exchange = NACK
        self._link.settles.run(self._on_nack, leases.nack(self._config.queue, self._token, self._held.sizes))

    def _on_nack(self, reply: Any) -> None:
        self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        if self._queue is not WATCHED:  # else the wait ends, because tasks have come into the queue
            self._queue = MAY_HOLD_TASKS

    def _forget_unbegun(self) -> None:
        self._held.let_go(entry[0] for entry in self.backlog)
        self.backlog.clear()
        self._held.let_go(self._deliveries.slots.withdraw())

    # --- when the link comes and goes ------------------------------------------------------------------------

    def on_lost(self) -> None:
        """The replies will not come, whatever was asked."""
        self._exchange = NOTHING
        self._queue = MAY_HOLD_TASKS

    def on_connecting(self, redis: Redis) -> None:
        """Gives back all that is not begun, also what an earlier connection claimed without a reply; waits for it."""
        self._forget_unbegun()
        leases.nack(self._config.queue, self._token, self._held.sizes).run(redis)

    def finish(self, redis: Redis) -> int:
        """Gives back all that is left, and waits for it; returns how many tasks that were."""
        self._held.sizes.clear()
        back: int = leases.nack(self._config.queue, self._token, self._held.sizes).run(redis)
        return back
