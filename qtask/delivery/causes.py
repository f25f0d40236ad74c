"""The causes of an error that a library has wrapped in other errors."""

from __future__ import annotations


def causes_of(error: BaseException) -> list[BaseException]:
    """The error and its causes, outermost first.

    A cause is the `reason` or an argument of an error, as urllib3 and requests pass it on, or else its `__cause__` or
    `__context__`.
    """
    found: list[BaseException] = []
    below: BaseException | None = error
    while below is not None and below not in found:
        found.append(below)
        inner = [part for part in (getattr(below, "reason", None), *below.args) if isinstance(part, BaseException)]
        below = inner[0] if inner else below.__cause__ or below.__context__
    return found
