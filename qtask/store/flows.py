"""Flows in Redis: what a task says of its flow, and limits, pauses and states of flows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from qtask.destinations.registry import flow_name_of
from qtask.model.flow import Changes, Limits
from qtask.model.flow_rule import FlowRules
from qtask.model.task import Task
from qtask.store import keys
from qtask.store.scripts import Call, Script

_LIMITS = ("parallel", "rate", "per", "burst", "ordered")
_REST = ("rest", "since", "why", "trips", "probe")
_COUNTS = ("share", "adapting", "tat", "window", "begun", "begun_before")


class Extra(msgspec.Struct, omit_defaults=True):
    """The field `extra` of a job: what only some tasks have.

    Attributes:
        flow: name of its flow.
        rank: an id of QTask's form, which orders a task whose id the client chose among the others of its flow.
        timed: its timeout adapts; such a task always names its flow.
        rule: pattern of the flow rule that gives its flow default limits.
    """

    flow: str = ""
    rank: str = ""
    timed: bool = False
    rule: str = ""

    def encode(self) -> bytes:
        """As the field holds it."""
        return msgspec.json.encode(self)


def fields_of(task: Task, rank: str | None, rules: FlowRules | None) -> tuple[bytes, bytes]:
    """What is stored of the flow of a task: the field `extra`, and the fields of its flow, both as JSON.

    They are empty for a task that names no flow and has no timeout that adapts, if no rule matches the flow of its
    destination.

    Args:
        task: any.
        rank: see `Extra`; None for a task whose id QTask made.
        rules: the flow rules, if there are any.
    """
    flow = task.settings.flow
    limits = b""
    if isinstance(flow, str):
        name, limits = flow, b""
    else:
        name = flow_name_of(task) if flow is UNSET or flow.key is UNSET else flow.key
        limits = b"" if flow is UNSET else limit_fields(flow)
    rule = rules.pattern_of(name) if rules is not None else ""
    adapts = task.settings.timeout == "auto"
    if flow is UNSET and not rule and not adapts:
        return b"", b""
    return Extra(name, rank or "", adapts, rule).encode(), limits


def limit_fields(limits: Limits | Changes) -> bytes:
    """The fields of a flow that limits set, as JSON, where "" removes a field; empty where they set none."""
    fields: dict[str, Any] = {}
    for name in _LIMITS:
        value = getattr(limits, name)
        if value is not UNSET:
            fields[name] = "" if value is None or value is False else "1" if value is True else value
    if limits.rate is not UNSET:  # a new rate does not keep the span and the burst of the old one
        fields = {"per": "", "burst": "", **fields}
    return msgspec.json.encode(fields) if fields else b""


class SetFlowKeys(NamedTuple):
    """See set_flow.lua."""

    flows: str


class SetFlowArguments(NamedTuple):
    """See set_flow.lua."""

    flow_name: str
    limits: bytes
    forget_outcomes: str


SET_FLOW = Script("set_flow", SetFlowKeys, SetFlowArguments)


def set_limits(name: str, limits: Limits | Changes) -> Call:
    """Sets limits of a flow; those that are left out stay as they are."""
    return _set(name, limit_fields(limits) or b"{}")


def replace_limits(name: str, limits: Limits) -> Call:
    """Sets the limits of a flow, and removes those that are left out."""
    fields = msgspec.json.decode(limit_fields(limits) or b"{}")
    return _set(name, msgspec.json.encode({**dict.fromkeys(_LIMITS, ""), **fields}))


def pause(name: str, paused: bool) -> Call:
    """Pauses or resumes a flow."""
    return _set(name, msgspec.json.encode({"paused": "1" if paused else ""}))


def reset(name: str) -> Call:
    """Ends the rest of a flow and closes its circuit breaker, which begins to count anew."""
    return _set(name, _without(*_REST), forget_outcomes=True)


def remove(name: str) -> Call:
    """Removes the limits, the pause and the rest of a flow."""
    return _set(name, _without(*_LIMITS, *_REST, *_COUNTS, "paused"), forget_outcomes=True)


def _without(*fields: str) -> bytes:
    return msgspec.json.encode(dict.fromkeys(fields, ""))


def _set(name: str, fields: bytes, forget_outcomes: bool = False) -> Call:
    arguments = SetFlowArguments(name, fields, "1" if forget_outcomes else "")
    return SET_FLOW.call(SetFlowKeys(flows=keys.FLOWS), arguments)


class ParkKeys(NamedTuple):
    """See park.lua."""

    started: str
    queues: str
    flows: str
    ledger: str


class ParkArguments(NamedTuple):
    """See park.lua."""

    token: str
    queue_name: str
    flow_name: str
    extra: bytes
    in_flight: int


PARK = Script("park", ParkKeys, ParkArguments)


def park(queue: str, token: str, name: str, in_flight: Iterable[str], unbegun: Iterable[str]) -> Call:
    """Has tasks that a worker has claimed wait in a flow; replies how many.

    Args:
        queue: that they were claimed from.
        token: of the worker.
        name: of the flow.
        in_flight: stored ids of tasks of the flow whose deliveries are under way; they hold slots from now on.
        unbegun: stored ids of the tasks that are to wait.
    """
    begun = list(in_flight)
    return PARK.call(
        ParkKeys(started=keys.started(queue), queues=keys.QUEUES, flows=keys.FLOWS, ledger=keys.LEDGER),
        ParkArguments(
            token=token,
            queue_name=queue,
            flow_name=name,
            extra=Extra(name).encode(),
            in_flight=len(begun),
        ),
        rest=[*begun, *unbegun],
    )
