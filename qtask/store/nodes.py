"""Node numbers: Redis leases one to each process that makes ids, so that no two processes make the same id."""

from __future__ import annotations

import secrets
from time import monotonic, monotonic_ns
from typing import Any, NamedTuple

from qtask import forks
from qtask.model.flow_rule import FlowRule, FlowRules
from qtask.model.ids import NODE_LIMIT, IdSource
from qtask.store import keys
from qtask.store.flow_rules import read_rules, set_rules
from qtask.store.queries import Steps
from qtask.store.scripts import Call, Script

# A submission may be sent again for as long as `accept_retry_seconds` allows, an hour at most, and its ids must still
# be recognised as ours then. So a number is used for a shorter time than it is leased.
LEASE_SECONDS = 10_800
USE_SECONDS = 3_600.0


class NumberKeys(NamedTuple):
    """See take_number.lua."""

    nodes: str
    flow_rules: str


class NumberArguments(NamedTuple):
    """See take_number.lua."""

    numbers: int
    nonce: str
    lease_seconds: int


class Leased(NamedTuple):
    """The reply of take_number.lua: the number, Redis's time in seconds and microseconds, and the flow rules."""

    number: int
    time: tuple[int, int]
    rules: bytes = b""


TAKE_NUMBER = Script("take_number", NumberKeys, NumberArguments, replies=(Leased,))


class Node:
    """A node number that is leased to this process.

    Args:
        nonce: the nonce with which it was leased.
        leased: the reply of Redis.

    Attributes:
        key: the key in Redis that names its holder.
        nonce: the value of that key as long as the number is ours.
        ids: makes ids with it, by Redis's clock.
        rules: the flow rules; None where there are none.
    """

    def __init__(self, nonce: str, leased: Leased) -> None:
        seconds, microseconds = leased.time
        offset = (int(seconds) * 1_000_000 + int(microseconds)) * 1_000 - monotonic_ns()
        self.key = keys.node(leased.number)
        self.nonce = nonce
        self.ids = IdSource(leased.number, lambda: monotonic_ns() + offset)
        self.rules: FlowRules | None = read_rules(leased.rules)
        self.ends = monotonic() + USE_SECONDS


class Nodes:
    """Holds the node number of this process for one client of Redis, and takes a new one when it is needed.

    A forked child begins without a number.

    Args:
        rules: the flow rules of this process's configuration, which it writes to Redis before it takes its first
            number, and again if Redis has lost them; None for a process that only reads them.
    """

    def __init__(self, rules: tuple[FlowRule, ...] | None = None) -> None:
        self._node: Node | None = None
        self._rules = rules
        self._has_written = False
        forks.register(self)

    def after_fork(self) -> None:
        self._node = None

    def take(self) -> Steps[Node]:
        """The number that is held, or a new one."""
        node = self._held()
        if node is None:
            if self._rules is not None and (self._rules or not self._has_written):
                yield set_rules(self._rules, only_if_none=self._has_written)
                self._has_written = True
            nonce = secrets.token_urlsafe(9)
            reply: list[Any] = yield take_number(nonce)
            node = self._node = Node(nonce, Leased._make(reply))
        return node

    def drop(self, node: Node) -> None:
        """Gives up a number that is not ours any more, or that another process uses as well."""
        if self._node is node:
            self._node = None

    def _held(self) -> Node | None:
        node = self._node
        return node if node is not None and monotonic() < node.ends else None


def take_number(nonce: str, numbers: int = NODE_LIMIT) -> Call:
    """Leases a number below `numbers`; the reply is `Leased`."""
    return TAKE_NUMBER.call(
        NumberKeys(nodes=keys.NODES, flow_rules=keys.FLOW_RULES),
        NumberArguments(numbers=numbers, nonce=nonce, lease_seconds=LEASE_SECONDS),
    )
