"""Claims: claims tasks in batches, watches the queue for more, and gives back tasks that cannot be begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import Enum
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from qtask.config import Config
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import Entry
from qtask.store import flows, leases, workers
from qtask.worker.clock import RedisClock
from qtask.worker.deliveries import Deliveries
from qtask.worker.held import HeldTasks
from qtask.worker.link import IDLE_WAIT_SECONDS, Link
from qtask.worker.settling import Settling

CLAIM_BATCH = 250  # tasks in a claim
HELD_BYTES = 67_108_864  # of claimed tasks that are not settled; above this, nothing is claimed
BACKLOG_SECONDS = 5.0  # how long a claimed task may wait to begin; after that its lease might end before its delivery
OUT_OF_MEMORY_PAUSE_SECONDS = 0.05


class Exchange(Enum):
    """The request under way that changes which tasks this worker holds; there is one at a time."""

    NOTHING = "a claim or a nack may be sent"
    CLAIM = "Redis may have claimed tasks whose ids are not here yet"
    NACK = "tasks are given back; a claim now would be given back as well"


class Queue(Enum):
    """What this worker knows about the queue."""

    MAY_HOLD_TASKS = "a claim will show whether it holds tasks"
    WATCHED = "Redis replies as soon as it holds a task, and at intervals while it does not"
    NOT_WATCHED = "Redis is out of memory and rejects the wait; the next claim follows after a pause"


# Looked up once: in Python 3.11 access to a member of an enum costs as much as a call.
NOTHING, CLAIM, NACK = Exchange
MAY_HOLD_TASKS, WATCHED, NOT_WATCHED = Queue


class Claims:
    """The claims of one worker.

    Its methods send over `link` while it is connected, and raise its `LINK_ERRORS`.

    Args:
        config: `queue` and `concurrency`.
        token: of the worker, which its leases name.
        loop: runs its timers.
        link: sends its requests.
        clock: is set by the replies.
        held: gets the claimed tasks.
        deliveries, settling: those of the worker.

    Attributes:
        backlog: claimed tasks whose deliveries were not begun.
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
        self._flow_version = 0

    @property
    def idle(self) -> bool:
        """Whether no claim and no nack is under way."""
        return self._exchange is NOTHING

    # --- claiming --------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Claims a batch if the queue may hold tasks and there is room for them."""
        if self._queue is not MAY_HOLD_TASKS or self._exchange is not NOTHING:
            return
        in_flight = len(self._deliveries.in_flight)
        unbegun = len(self.backlog) + len(self._deliveries.slots) + len(self._deliveries.shares)
        room = self._config.concurrency + self._prefetch - in_flight - unbegun
        if self._held.total < HELD_BYTES and (room > self._prefetch or not in_flight):
            self._claim(min(room, CLAIM_BATCH))

    def _claim(self, limit: int) -> None:
        self._exchange = CLAIM
        self._link.claims.run(
            self._on_claimed, leases.claim(self._config.queue, self._token, limit, known_version=self._flow_version)
        )
        self._queue = WATCHED  # by the wait for more tasks, which is sent right after the claim
        self._link.claims.send(self._on_watched, *workers.wait_for_tasks(self._config.queue, IDLE_WAIT_SECONDS))

    def _on_claimed(self, reply: Any) -> None:
        self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        now, claimed = leases.read_claimed(reply)
        self._clock.set(now)
        self._claimed_at = monotonic()
        flow_news = leases.read_flows(reply, self._flow_version)
        self._flow_version = flow_news.version
        if flow_news.destinations is not None:
            self._deliveries.limited = flow_news.destinations
        if flow_news.names:
            self._deliveries.flows.update((raw_id.decode(), name) for raw_id, name in flow_news.names.items())
        if flow_news.timeouts:
            self._deliveries.timeouts.update((raw.decode(), seconds) for raw, seconds in flow_news.timeouts.items())
        take, backlog = self._held.take, self.backlog
        for raw_id, attempt, due, data in claimed:
            task_id = raw_id.decode()
            if take(task_id, len(data)):
                backlog.append((task_id, attempt, due, data))

    def _on_watched(self, reply: Any) -> None:
        if isinstance(reply, OutOfMemoryError):
            # Redis rejects a wait that might write. Claiming and settling free its memory, so they go on, with pauses.
            self._queue = NOT_WATCHED
            self._loop.call_later(OUT_OF_MEMORY_PAUSE_SECONDS, self._look_again)
        elif isinstance(reply, ResponseError):
            raise reply
        else:
            self._queue = MAY_HOLD_TASKS

    def _look_again(self) -> None:
        if self._queue is NOT_WATCHED:
            self._queue = MAY_HOLD_TASKS

    def park(self) -> None:
        """Has tasks of slow flows wait in Redis, where they take no place here."""
        for one in self._deliveries.shares.parkings(monotonic()):
            self._deliveries.flows.update(dict.fromkeys(one.in_flight, one.flow))
            self._let_go(one.waiting)
            call = flows.park(self._config.queue, self._token, one.flow, one.in_flight, one.waiting)
            self._link.settles.run(_raise_error, call)

    # --- giving back -----------------------------------------------------------------------------------------

    def nack_late(self) -> None:
        """Gives back tasks that have waited too long for a free place, or for a connection to their host."""
        now = monotonic()
        if now - self._claimed_at > BACKLOG_SECONDS:
            self.nack_unbegun()
        elif self._limits_hosts and self._may_nack:
            withdrawn = self._deliveries.slots.withdraw(now - BACKLOG_SECONDS)
            if withdrawn:
                self._let_go(withdrawn)
                self._nack()

    def nack_unbegun(self) -> None:
        """Gives back tasks that are not begun: other workers may have room, and the leases go on.

        This happens when receivers hang, and when this worker is asked to stop.
        """
        if (self.backlog or self._deliveries.slots or self._deliveries.shares) and self._may_nack:
            self._forget_unbegun()
            self._nack()

    @property
    def _may_nack(self) -> bool:
        """Whether all leases of this worker are known: tasks in a claim or settle under way are not held here."""
        return self._exchange is NOTHING and not self._settling.under_way

    def _nack(self) -> None:
        self._exchange = NACK
        self._link.settles.run(self._on_nack, leases.nack(self._config.queue, self._token, self._held.sizes))

    def _on_nack(self, reply: Any) -> None:
        self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        if self._queue is not WATCHED:  # else the wait ends, because there are tasks in the queue
            self._queue = MAY_HOLD_TASKS

    def _forget_unbegun(self) -> None:
        self._let_go(entry[0] for entry in self.backlog)
        self.backlog.clear()
        self._let_go(self._deliveries.slots.withdraw())
        self._let_go(self._deliveries.shares.withdraw())

    def _let_go(self, ids: Iterable[str]) -> None:
        gone = list(ids)
        self._held.let_go(gone)
        for task_id in gone:
            self._deliveries.flows.pop(task_id, None)
            self._deliveries.timeouts.pop(task_id, None)

    # --- when the link is lost or made -----------------------------------------------------------------------

    def on_lost(self) -> None:
        """Forgets the requests under way, whose replies are lost."""
        self._exchange = NOTHING
        self._queue = MAY_HOLD_TASKS

    def on_connecting(self, redis: Redis) -> None:
        """Gives back all tasks that are not begun, also those of a claim whose reply was lost. Blocks."""
        self._forget_unbegun()
        leases.nack(self._config.queue, self._token, self._held.sizes).run(redis)

    def finish(self, redis: Redis) -> int:
        """Gives back all remaining tasks, and returns how many there were. Blocks."""
        self._held.sizes.clear()
        back: int = leases.nack(self._config.queue, self._token, self._held.sizes).run(redis)
        return back


def _raise_error(reply: Any) -> None:
    if isinstance(reply, ResponseError):
        raise reply
