"""The order in which a worker claims from its queues: strict, by weights, and never without a share for the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from qtask.model.queues import Served

BEHIND_EVERY = 20  # claims of a level, one of which goes to the levels behind it


class ClaimOrder:
    """Picks the queue of each claim.

    Queues with weights that follow one another form a level, and share its claims in proportion to their weights, by
    smooth weighted round robin (as in nginx): the claims of a queue are spread evenly among those of the others. A
    queue without a weight is a level. A level comes before those behind it, except in one of `BEHIND_EVERY` claims.

    Args:
        served: the queues, in order.
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._levels: list[_Level] = []
        weighted = False
        for one in served:
            if one.weight is None or not weighted:
                self._levels.append(_Level())
            self._levels[-1].weights[one.name] = one.weight or 1
            weighted = one.weight is not None

    def next(self, ready: Collection[str]) -> str:
        """The queue to claim from.

        Args:
            ready: names of the queues that may hold tasks; at least one.
        """
        levels = [level for level in self._levels if not level.weights.keys().isdisjoint(ready)]
        for level in levels[:-1]:
            level.claims += 1
            if level.claims < BEHIND_EVERY:
                return level.next(ready)
            level.claims = 0
        return levels[-1].next(ready)


class _Level:
    """Queues that share claims.

    Attributes:
        weights: of each queue.
        claims: how many have gone to this level since one went behind it, while tasks waited there.
    """

    def __init__(self) -> None:
        self.weights: dict[str, int] = {}
        self.claims = 0
        self._credits: dict[str, int] = {}

    def next(self, ready: Iterable[str]) -> str:
        found = [name for name in self.weights if name in ready]
        if len(found) == 1:
            return found[0]
        credits = self._credits
        for name in found:
            credits[name] = credits.get(name, 0) + self.weights[name]
        chosen = max(found, key=credits.__getitem__)
        credits[chosen] -= sum(self.weights[name] for name in found)
        return chosen
