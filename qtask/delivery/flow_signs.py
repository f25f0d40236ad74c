"""What an outcome means for its flow: a slot is free, the destination is in trouble, or it asks for a pause."""

from __future__ import annotations

from typing import NamedTuple

from qtask.config import Config
from qtask.delivery.claim import Claim
from qtask.destinations.registry import flow_name_of
from qtask.model.outcome import Answer, ErrorKind, Failure
from qtask.model.retry import parse_retry_after
from qtask.store.leases import Health

SUSPECT_SECONDS = 60.0  # after a failure, for which successes of the same flow are counted as well

_TROUBLE: tuple[ErrorKind, ...] = ("connect", "timeout", "unavailable")
_TOO_MANY, _UNAVAILABLE = 429, 503


class FlowSigns(NamedTuple):
    """What is settled for a flow.

    Attributes:
        flow: its name.
        health: what the outcome says of the destination; None where that is not counted.
        rest: seconds for which the destination asked for no deliveries; None where it did not.
    """

    flow: str
    health: Health | None = None
    rest: float | None = None


class Suspects:
    """The flows whose deliveries have failed lately, so that their successes count as well. All others cost nothing.

    Attributes:
        until: when this ends for each of them, in Unix seconds.
    """

    def __init__(self) -> None:
        self.until: dict[str, float] = {}

    def signs_of(
        self, claim: Claim, result: Answer | Failure, flow: str, now: float, config: Config
    ) -> FlowSigns | None:
        """The signs of an outcome, or None where there is nothing to settle for a flow.

        Args:
            claim: what was delivered.
            result: what came of it.
            flow: name of the flow in which the task may hold a slot; empty for none.
            now: Unix seconds.
            config: `circuit_breaker` and `flow_rest_cap`.
        """
        if isinstance(result, Failure):
            return self._signs_of_failure(claim, result, flow, now, config)
        if self.until:
            name = flow or flow_name_of(claim.task)
            if self.until.get(name, 0.0) > now:
                return FlowSigns(name, "good")
            self.until.pop(name, None)
        return FlowSigns(flow) if flow else None

    def _signs_of_failure(
        self, claim: Claim, failure: Failure, flow: str, now: float, config: Config
    ) -> FlowSigns | None:
        code = failure.answer.code
        bad = failure.error in _TROUBLE or code == _TOO_MANY or code >= 500
        rest = parse_retry_after(failure.retry_after, now) if code in (_TOO_MANY, _UNAVAILABLE) else None
        if not bad:
            return FlowSigns(flow) if flow else None
        name = flow or flow_name_of(claim.task)
        health: Health | None = None
        if config.circuit_breaker > 0:
            self.until[name] = now + SUSPECT_SECONDS
            health = "bad"
        elif flow:
            health = "bad"  # for a flow that adapts
        return FlowSigns(name, health, min(rest, config.flow_rest_cap) or None if rest else None)
