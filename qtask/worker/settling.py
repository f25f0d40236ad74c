"""Settling: outcomes wait for a batch, are on their way to Redis, and go there again when their reply was lost."""

from __future__ import annotations

import logging
from collections import deque
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
SETTLE_LIMIT = 400  # outcomes that are settled at once
SETTLE_WAIT_SECONDS = 0.002  # how long the first outcome of a smaller batch waits for more

logger = logging.getLogger("qtask.worker")


class Settling:
    """The outcomes of one worker.

    Args:
        config: `queue`, and how much of the past is kept.
        token: of the worker.
        loop: on which it works.
        held: the tasks of the worker; those whose outcomes are sent are held no longer.

    Attributes:
        under_way: outcomes that were sent and whose reply is owed.
    """

    def __init__(self, config: Config, token: str, loop: Loop, held: HeldTasks) -> None:
        self._config = config
        self._token = token
        self._loop = loop
        self._held = held
        self._outcomes: deque[Settlement] = deque()
        self.under_way: list[Settlement] = []
        self._due = 0.0  # when the outcomes that wait are settled though they are few, by monotonic
        self._renewed: set[str] = set()  # of those under way: ids whose leases a later claim had renewed
        self._doubtful = 0  # so many outcomes, the first ones, are from before the connection was made

    @property
    def done(self) -> bool:
        """Whether Redis has all outcomes."""
        return not (self._outcomes or self.under_way)

    @property
    def catching_up(self) -> bool:
        """Whether outcomes from before the connection was made are to be settled, so that nothing may be claimed.

        Redis may have them already, and their tasks be queued again: one of them would end the new claim of its task.
        """
        return self._doubtful > 0

    def add(self, outcome: Settlement) -> None:
        """Takes the outcome of a delivery."""
        if not self._outcomes:
            self._due = monotonic() + SETTLE_WAIT_SECONDS
            self._loop.call_at(self._due, _nothing)
        self._outcomes.append(outcome)

    def send(self, channel: Channel, at_once: bool) -> None:
        """Sends a batch, when there is one and none is under way. Raises redis-py's errors.

        Args:
            channel: over which it goes.
            at_once: without waiting for more outcomes.
        """
        if self._outcomes and not self.under_way:
            now = monotonic()
            if len(self._outcomes) >= SETTLE_BATCH or now >= self._due or at_once:
                self.under_way = self._next_batch()
                channel.run(self._on_settled, leases.settle(self._config, self._token, self.under_way))

    def _next_batch(self) -> list[Settlement]:
        """Takes the next batch to be settled. Its tasks may be claimed anew before the reply is here: to be retried."""
        outcomes = [self._outcomes.popleft() for _ in range(min(len(self._outcomes), SETTLE_LIMIT))]
        claimed_again = self._held.claimed_again
        self._renewed = {one.id for one in outcomes if one.id in claimed_again} if claimed_again else set()
        if claimed_again:
            outcomes = [with_history(one) if one.id in claimed_again else one for one in outcomes]
        self._held.let_go(one.id for one in outcomes)
        return outcomes

    def _on_settled(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply
        self._report(reply, len(self.under_way))
        self._doubtful = max(0, self._doubtful - len(self.under_way))
        self.under_way = []

    def _report(self, reply: Any, sent: int) -> None:
        result = leases.read_settled(reply)
        if result.settled < sent:
            logger.warning("leases_lost", extra={"tasks": sent - result.settled})
        for task_id in result.dropped:
            about = {"task": client_id(task_id.decode()), "dead_retention_count": self._config.dead_retention_count}
            logger.error("dead_dropped", extra=about)

    def on_lost(self) -> None:
        """The reply will not come, so what is under way waits again; but not what was claimed anew since.

        Its former outcome would end the new claim. A lease that was renewed for a later attempt is the one to be ended.
        """
        kept = [
            outcome if outcome.id in self._renewed else sent_again(outcome)
            for outcome in self.under_way
            if outcome.id not in self._held.sizes
        ]
        self._held.sizes.update((outcome.id, 0) for outcome in kept)
        self._outcomes.extendleft(reversed(kept))
        self.under_way = []

    def on_connecting(self) -> None:
        """A connection was made: what is here by now may be in Redis already."""
        self._doubtful = len(self._outcomes)

    def finish(self, redis: Redis) -> None:
        """Settles all outcomes, and waits for it. Raises redis-py's errors."""
        self.on_lost()
        while self._outcomes:
            outcomes = self._next_batch()
            reply = leases.settle(self._config, self._token, outcomes).run(redis)
            self._report(reply, len(outcomes))


def _nothing() -> None:
    """A timer that only ends a turn of the loop."""
