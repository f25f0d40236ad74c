"""Checks of keyword arguments: an unknown one is refused, and the error names the nearest known one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def known_words() -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Makes a method raise `TypeError` for an unknown keyword argument, and name the nearest known one."""

    def decorate(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        known = frozenset(named_parameters(method))
        shown = method.__qualname__.removesuffix(".__init__")

        @wraps(method)
        def checked(*arguments: _Arguments.args, **words: _Arguments.kwargs) -> _Result:
            check_words(shown, words, known)
            return method(*arguments, **words)

        return checked

    return decorate


def named_parameters(function: Callable[..., Any]) -> list[str]:
    """The names by which a function or method takes keyword arguments."""
    return [name for name, one in signature(function).parameters.items() if one.kind in _NAMED and name != "self"]


def check_words(method: str, words: Mapping[str, object], known: frozenset[str]) -> None:
    """Raises `TypeError` for the first keyword argument that a method does not know.

    Args:
        method: its name, for the message.
        words: the arguments.
        known: the names that it knows.
    """
    if words and not known.issuperset(words):
        raise TypeError(_message(method, next(word for word in words if word not in known), known))


def _message(method: str, word: str, known: Iterable[str]) -> str:
    import difflib  # only here: it is slow to import

    names = sorted(known)
    nearest = difflib.get_close_matches(word, names, 1) or [name for name in names if word in name or name in word]
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(names)}"
    return f"{method}() got an unexpected keyword argument {word!r}; {advice}"
