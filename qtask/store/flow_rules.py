"""Flow rules in Redis: the gateways write those of their configuration, and all that submit tasks read them.

A task of a flow that a rule matches names the rule, in the field `extra` of its job. The scripts read the limits of
the rule whenever they read the flow. So a changed rule holds for all of its flows at once, and an idle flow that has no
other limits leaves nothing behind.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from qtask.model.flow_rule import FlowRule, FlowRules
from qtask.store import keys
from qtask.store.flows import limit_fields
from qtask.store.scripts import Call, Script

_DECODER = msgspec.json.Decoder(tuple[FlowRule, ...])


class SetRulesKeys(NamedTuple):
    """See set_rules.lua."""

    flow_rules: str


class SetRulesArguments(NamedTuple):
    """See set_rules.lua."""

    all: bytes
    only_if_none: str


class StoredRule(msgspec.Struct, gc=False):
    """One rule as set_rules.lua gets it."""

    pattern: str
    limits: bytes


SET_RULES = Script("set_rules", SetRulesKeys, SetRulesArguments, each=StoredRule)


def set_rules(rules: tuple[FlowRule, ...], only_if_none: bool = False) -> Call:
    """Replaces the rules; replies whether that changed anything.

    Args:
        rules: in the order of the configuration.
        only_if_none: whether rules that are there stay.
    """
    return SET_RULES.call(
        SetRulesKeys(flow_rules=keys.FLOW_RULES),
        SetRulesArguments(all=msgspec.json.encode(rules) if rules else b"", only_if_none="1" if only_if_none else ""),
        records=[StoredRule(rule.pattern, limit_fields(rule.limits)) for rule in rules if rule.limits.any],
    )


def read_rules(text: bytes) -> FlowRules | None:
    """The rules as take_number.lua returns them; None where there are none."""
    return FlowRules(_DECODER.decode(text)) if text else None
