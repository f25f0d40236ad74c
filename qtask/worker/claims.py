"""Claims: claims tasks in batches, watches the queues for more, and gives back tasks that cannot be begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from qtask.config import Config
from qtask.delivery.loop import Loop
from qtask.destinations.http.host_slots import Entry
from qtask.model.queues import Served
from qtask.store import flows, leases, workers
from qtask.store.channel import Channel
from qtask.worker.claim_order import ClaimOrder
from qtask.worker.clock import RedisClock
from qtask.worker.deliveries import Deliveries
from qtask.worker.held import HeldTasks
from qtask.worker.link import IDLE_WAIT_SECONDS, Link
from qtask.worker.settling import Settling

CLAIM_BATCH = 250  # tasks in a claim
HELD_BYTES = 67_108_864  # of claimed tasks that are not settled; above this, nothing is claimed
BACKLOG_SECONDS = 5.0  # how long a claimed task may wait to begin; after that its lease might end before its delivery
OUT_OF_MEMORY_PAUSE_SECONDS = 0.05
PAUSED_LOOK_SECONDS = 0.5  # between two looks whether a queue with tasks is still paused


class Exchange(Enum):
    """The request under way that changes which tasks this worker holds; there is one at a time."""

    NOTHING = "a claim or a nack may be sent"
    CLAIM = "Redis may have claimed tasks whose ids are not here yet"
    NACK = "tasks are given back; a claim now would be given back as well"


class QueueState(Enum):
    """What this worker knows about a queue."""

    MAY_HOLD_TASKS = "a claim will show whether it holds tasks"
    CLAIMED_FROM = "the reply to a claim will show whether it may hold more"
    WATCHED = "Redis replies as soon as it holds a task, and at intervals while it does not"
    NOT_WATCHED = "Redis is out of memory and rejects the wait; the next claim follows after a pause"
    PAUSED = "it was paused at the last claim; the next one follows after a while"


# Looked up once: in Python 3.11 access to a member of an enum costs as much as a call.
NOTHING, CLAIM, NACK = Exchange
MAY_HOLD_TASKS, CLAIMED_FROM, WATCHED, NOT_WATCHED, PAUSED = QueueState


class _Queue:
    """One queue of the worker.

    Attributes:
        name: of the queue.
        channel: for its claims and waits.
        state: what is known about it.
        waits: whether a wait for tasks is under way.
    """

    def __init__(self, name: str, channel: Channel) -> None:
        self.name = name
        self.channel = channel
        self.state = MAY_HOLD_TASKS
        self.waits = False


class Claims:
    """The claims of one worker.

    Its methods send over `link` while it is connected, and raise its `LINK_ERRORS`.

    Args:
        config: `concurrency` and `host_connections`.
        served: the queues.
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
        served: Sequence[Served],
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
        self._nacks_owed = 0  # replies to nacks under way: one for each queue
        pairs = zip(served, link.claims, strict=True)
        self._queues = {one.name: _Queue(one.name, channel) for one, channel in pairs}
        self._ready = dict(self._queues)  # those that may hold tasks
        self._order = ClaimOrder(served) if len(served) > 1 else None
        self._claimed_at = 0.0
        self._flow_version = 0

    @property
    def idle(self) -> bool:
        """Whether no claim and no nack is under way."""
        return self._exchange is NOTHING

    # --- claiming --------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Claims a batch if a queue may hold tasks and there is room for them."""
        if not self._ready or self._exchange is not NOTHING:
            return
        in_flight = len(self._deliveries.in_flight)
        unbegun = len(self.backlog) + len(self._deliveries.slots) + len(self._deliveries.shares)
        room = self._config.concurrency + self._prefetch - in_flight - unbegun
        if self._held.total < HELD_BYTES and (room > self._prefetch or not in_flight):
            name = self._order.next(self._ready) if self._order else next(iter(self._ready))
            self._claim(self._ready[name], min(room, CLAIM_BATCH))

    def _claim(self, queue: _Queue, limit: int) -> None:
        self._exchange = CLAIM
        call = leases.claim(queue.name, self._token, limit, known_version=self._flow_version)
        queue.channel.run(partial(self._on_claimed, queue, limit), call)
        if self._order:
            self._set(queue, CLAIMED_FROM)
        else:
            self._watch(queue)  # right behind the claim, which saves a round trip

    def _watch(self, queue: _Queue) -> None:
        self._set(queue, WATCHED)
        queue.waits = True
        queue.channel.send(partial(self._on_watched, queue), *workers.wait_for_tasks(queue.name, IDLE_WAIT_SECONDS))

    def _set(self, queue: _Queue, state: QueueState) -> None:
        queue.state = state
        if state is MAY_HOLD_TASKS:
            self._ready[queue.name] = queue
        else:
            self._ready.pop(queue.name, None)

    def _on_claimed(self, queue: _Queue, limit: int, reply: Any) -> None:
        self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        if leases.ClaimReply._make(reply).paused:
            self._set(queue, PAUSED)
            self._loop.call_later(PAUSED_LOOK_SECONDS, partial(self._look_again, queue))
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
        if self._order:
            ids = leases.ClaimReply._make(reply).ids
            self._held.queues.update((raw_id.decode(), queue.name) for raw_id in ids)
            if len(ids) == limit:
                self._set(queue, MAY_HOLD_TASKS)  # at once: until a wait ends, a queue behind it would come first
            elif queue.state is CLAIMED_FROM:
                self._watch(queue)

    def _on_watched(self, queue: _Queue, reply: Any) -> None:
        queue.waits = False
        if isinstance(reply, OutOfMemoryError):
            # Redis rejects a wait that might write. Claiming and settling free its memory, so they go on, with pauses.
            self._set(queue, NOT_WATCHED)
            self._loop.call_later(OUT_OF_MEMORY_PAUSE_SECONDS, partial(self._look_again, queue))
        elif isinstance(reply, ResponseError):
            raise reply
        elif queue.state is WATCHED:
            self._set(queue, MAY_HOLD_TASKS)

    def _look_again(self, queue: _Queue) -> None:
        if queue.state in (NOT_WATCHED, PAUSED):
            self._set(queue, WATCHED if queue.waits else MAY_HOLD_TASKS)

    def park(self) -> None:
        """Has tasks of slow flows wait in Redis, where they take no place here."""
        for one in self._deliveries.shares.parkings(monotonic()):
            self._deliveries.flows.update(dict.fromkeys(one.in_flight, one.flow))
            in_flight, waiting = self._by_queue(one.in_flight), self._by_queue(one.waiting)
            self._let_go(one.waiting)
            for queue in in_flight.keys() | waiting.keys():
                call = flows.park(queue, self._token, one.flow, in_flight.get(queue, ()), waiting.get(queue, ()))
                self._link.settles.run(_raise_error, call)

    def _by_queue(self, ids: Collection[str]) -> Mapping[str, Collection[str]]:
        return self._held.by_queue(ids) if self._order else dict.fromkeys(self._queues, ids)

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
        self._nacks_owed = len(self._queues)
        for queue in self._queues.values():
            call = leases.nack(queue.name, self._token, self._held.sizes)
            self._link.settles.run(partial(self._on_nack, queue), call)

    def _on_nack(self, queue: _Queue, reply: Any) -> None:
        self._nacks_owed -= 1
        if not self._nacks_owed:
            self._exchange = NOTHING
        if isinstance(reply, ResponseError):
            raise reply
        if queue.state is NOT_WATCHED:  # a wait would end, because there are tasks in the queue
            self._set(queue, MAY_HOLD_TASKS)

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
            self._deliveries.shares.end(task_id, monotonic())
            self._deliveries.timeouts.pop(task_id, None)

    # --- when the link is lost or made -----------------------------------------------------------------------

    def on_lost(self) -> None:
        """Forgets the requests under way, whose replies are lost."""
        self._exchange = NOTHING
        for queue in self._queues.values():
            queue.waits = False
            self._set(queue, MAY_HOLD_TASKS)

    def on_connecting(self, redis: Redis) -> None:
        """Gives back all tasks that are not begun, also those of a claim whose reply was lost. Blocks."""
        self._forget_unbegun()
        self._nack_all(redis)

    def finish(self, redis: Redis) -> int:
        """Gives back all remaining tasks, and returns how many there were. Blocks."""
        self._held.sizes.clear()
        return self._nack_all(redis)

    def _nack_all(self, redis: Redis) -> int:
        return sum(leases.nack(name, self._token, self._held.sizes).run(redis) for name in self._queues)


def _raise_error(reply: Any) -> None:
    if isinstance(reply, ResponseError):
        raise reply
