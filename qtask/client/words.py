"""Words that a client does not know are refused with the nearest one that it knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def known_words(
    *more: str,
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Has a method raise `TypeError` for keyword arguments that it does not know, and name the nearest that it knows.

    Args:
        more: words that it takes beside its parameters, in its `**options`.
    """

    def decorate(method: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        named = [name for name, one in signature(method).parameters.items() if one.kind in _NAMED and name != "self"]
        known = frozenset((*named, *more))
        shown = method.__qualname__.removesuffix(".__init__")

        @wraps(method)
        def checked(*arguments: _Arguments.args, **words: _Arguments.kwargs) -> _Result:
            if words and not known.issuperset(words):
                raise TypeError(_message(shown, next(word for word in words if word not in known), known))
            return method(*arguments, **words)

        return checked

    return decorate


def _message(method: str, word: str, known: Iterable[str]) -> str:
    import difflib  # only here: it is slow to import

    names = sorted(known)
    nearest = difflib.get_close_matches(word, names, 1) or [name for name in names if word in name or name in word]
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(names)}"
    return f"{method}() got an unexpected keyword argument {word!r}; {advice}"
