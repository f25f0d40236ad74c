"""Flow rules: the default limits that the configuration gives to flows, by patterns of their names. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import translate
from typing import Any

import msgspec
from msgspec import Struct

from qtask.model.errors import ConfigError, Refused
from qtask.model.flow import MAX_NAME_CHARACTERS, Limits, check_key, check_limits
from qtask.model.rejection import refusal_of_limits

MAX_RULES = 1_000
REMEMBERED = 10_000  # names of flows whose rule is not looked for again

_WILDCARD = re.compile(r"[*?[]")


class FlowRule(Struct, frozen=True):
    """One rule.

    Attributes:
        pattern: the name of a flow, or a pattern of names with the wildcards of `fnmatch`.
        limits: the defaults of each flow whose name matches; none of them exempts the flow from other rules.
    """

    pattern: str
    limits: Limits


class FlowRules:
    """Finds the rule of a flow: the one whose pattern is its name, else the one with the longest pattern that matches.

    Of patterns of one length, the first in the configuration counts. The length is that without wildcards.
    """

    def __init__(self, rules: tuple[FlowRule, ...]) -> None:
        self._exact = {rule.pattern: rule for rule in rules}
        patterns = [rule for rule in rules if _WILDCARD.search(rule.pattern)]
        patterns.sort(key=lambda rule: -len(re.sub(r"[*?]|\[[^]]*\]", "", rule.pattern)))  # sorting is stable
        self._patterns = [(re.compile(translate(rule.pattern)), rule) for rule in patterns]
        self._found: dict[str, str] = {}

    def pattern_of(self, name: str) -> str:
        """The pattern of the rule that gives a flow its default limits; empty if none does."""
        found = self._found.get(name)
        if found is None:
            rule = self._exact.get(name) or next((rule for form, rule in self._patterns if form.match(name)), None)
            found = rule.pattern if rule is not None and rule.limits.any else ""
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[name] = found
        return found


def check_rules(given: Any, source: str) -> tuple[FlowRule, ...]:
    """The rules of a configuration, in its order.

    Args:
        given: an object of patterns, each with an object of limits; or its JSON.
        source: where it was given, for messages.

    Raises `ConfigError`, which names the pattern and the field.
    """
    example = '{"https://api.example.org": {"rate": 10}}'
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{source} must be JSON such as {example}: {error}") from None
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{source} must have a table of limits for each pattern, such as {example}, got {given!r:.80}"
        )
    if len(given) > MAX_RULES:
        raise ConfigError(f"{source} must have at most {MAX_RULES} patterns, got {len(given)}; use wildcards")
    return tuple(_rule(pattern, limits, source) for pattern, limits in given.items())


def encode_rules(rules: tuple[FlowRule, ...]) -> str:
    """Rules as JSON, as `check_rules` reads them."""
    return msgspec.json.encode({rule.pattern: rule.limits for rule in rules}).decode()


def _rule(pattern: str, given: Any, source: str) -> FlowRule:
    place = f'"{pattern[:60]}"'
    try:
        check_key(pattern, place, MAX_NAME_CHARACTERS)
        limits = msgspec.convert(given, Limits)
        check_limits(limits, place)
    except msgspec.ValidationError as error:
        raise _wrong(source, refusal_of_limits(error, place)) from None
    except Refused as refused:
        raise _wrong(source, refused) from None
    return FlowRule(pattern, limits)


def _wrong(source: str, refused: Refused) -> ConfigError:
    return ConfigError(f"{source}: {refused.field}: {refused.message}")
