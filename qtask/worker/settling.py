"""Settling: collects settlements into batches, sends them to Redis, and sends them again if the reply was lost."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from qtask.config import Config
from qtask.delivery.ending import sent_again, with_history
from qtask.delivery.loop import Loop
from qtask.model.ids import client_id
from qtask.store import leases
from qtask.store.channel import Channel
from qtask.store.leases import Settlement
from qtask.worker.held import HeldTasks

SETTLE_BATCH = 100  # outcomes that are settled without waiting for more
SETTLE_LIMIT = 400  # outcomes in a batch, at most
SETTLE_WAIT_SECONDS = 0.002  # how long the first outcome of a batch smaller than SETTLE_BATCH waits for more

logger = logging.getLogger("qtask.worker")


class Settling:
    """The outcomes of one worker.

    Args:
        config: how long ended tasks are kept.
        queues: names of the queues of the worker.
        token: of the worker.
        loop: runs the timer of a small batch.
        held: the tasks of the worker; a task is removed when its outcome is sent.

    Attributes:
        under_way: outcomes that were sent and whose reply has not come, by queue.
    """

    def __init__(self, config: Config, queues: Sequence[str], token: str, loop: Loop, held: HeldTasks) -> None:
        self._config = config
        self._configs = {name: replace(config, queue=name) for name in queues}
        self._only_queue = queues[0] if len(queues) == 1 else ""
        self._token = token
        self._loop = loop
        self._held = held
        self._outcomes: deque[Settlement] = deque()
        self.under_way: dict[str, list[Settlement]] = {}
        self._due = 0.0  # instant of `monotonic` at which even a small batch is sent
        self._renewed: set[str] = set()  # ids under way whose leases a later claim had renewed
        self._doubtful = 0  # how many outcomes, from the first, are older than the connection

    @property
    def done(self) -> bool:
        """Whether Redis has confirmed all outcomes."""
        return not (self._outcomes or self.under_way)

    @property
    def catching_up(self) -> bool:
        """Whether outcomes that are older than the connection must be settled before anything may be claimed.

        Redis may have settled them already, and their tasks may be queued again. Such an outcome would end the new
        claim of its task.
        """
        return self._doubtful > 0

    def add(self, outcome: Settlement) -> None:
        """Adds the outcome of a delivery."""
        if not self._outcomes:
            self._due = monotonic() + SETTLE_WAIT_SECONDS
            self._loop.call_at(self._due, _nothing)
        self._outcomes.append(outcome)

    def send(self, channel: Channel, at_once: bool) -> None:
        """Sends a batch if there is one and none is under way. Raises redis-py's errors.

        Args:
            channel: sends it.
            at_once: whether to send without waiting for more outcomes.
        """
        if self._outcomes and not self.under_way:
            now = monotonic()
            if len(self._outcomes) >= SETTLE_BATCH or now >= self._due or at_once:
                self.under_way = self._next_batch()
                for queue, outcomes in self.under_way.items():
                    call = leases.settle(self._configs[queue], self._token, outcomes)
                    channel.run(partial(self._on_settled, queue), call)

    def _next_batch(self) -> dict[str, list[Settlement]]:
        """Removes and returns the next batch, by queue. Its tasks may be claimed for a retry before the replies."""
        outcomes = [self._outcomes.popleft() for _ in range(min(len(self._outcomes), SETTLE_LIMIT))]
        claimed_again = self._held.claimed_again
        self._renewed = {one.id for one in outcomes if one.id in claimed_again} if claimed_again else set()
        if claimed_again:
            outcomes = [with_history(one) if one.id in claimed_again else one for one in outcomes]
        by_queue = {self._only_queue: outcomes} if self._only_queue else self._by_queue(outcomes)
        self._held.let_go(one.id for one in outcomes)
        return by_queue

    def _by_queue(self, outcomes: list[Settlement]) -> dict[str, list[Settlement]]:
        found: dict[str, list[Settlement]] = {}
        for one in outcomes:
            found.setdefault(self._held.queues[one.id], []).append(one)
        return found

    def _on_settled(self, queue: str, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply
        sent = len(self.under_way.pop(queue))
        self._report(reply, sent)
        self._doubtful = max(0, self._doubtful - sent)

    def _report(self, reply: Any, sent: int) -> None:
        result = leases.read_settled(reply)
        if result.settled < sent:
            logger.warning("leases_lost", extra={"tasks": sent - result.settled})
        for task_id in result.dropped:
            about = {"task": client_id(task_id.decode()), "dead_retention_count": self._config.dead_retention_count}
            logger.error("dead_dropped", extra=about)

    def on_lost(self) -> None:
        """Queues the batch under way again, because its reply is lost; except tasks that were claimed again since.

        The old outcome of such a task would end its new claim. A lease that was renewed before the outcome was sent is
        the one that the outcome has to end, so such an outcome is sent unchanged.
        """
        for queue, outcomes in self.under_way.items():
            kept = [
                outcome if outcome.id in self._renewed else sent_again(outcome)
                for outcome in outcomes
                if outcome.id not in self._held.sizes
            ]
            self._held.sizes.update((outcome.id, 0) for outcome in kept)
            if not self._only_queue:
                self._held.queues.update((outcome.id, queue) for outcome in kept)
            self._outcomes.extendleft(reversed(kept))
        self.under_way = {}

    def on_connecting(self) -> None:
        """Notes that a connection was made: Redis may have settled the outcomes that are here."""
        self._doubtful = len(self._outcomes)

    def finish(self, redis: Redis) -> None:
        """Settles all outcomes. Blocks. Raises redis-py's errors."""
        self.on_lost()
        while self._outcomes:
            for queue, outcomes in self._next_batch().items():
                reply = leases.settle(self._configs[queue], self._token, outcomes).run(redis)
                self._report(reply, len(outcomes))


def _nothing() -> None:
    """Does nothing: its timer only ends a turn of the loop."""
