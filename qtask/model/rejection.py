"""Turns msgspec's errors into `Refused`, whose messages name the field and say what is expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec
from msgspec import Struct

from qtask.model.errors import Refused
from qtask.model.flow import Flow, Limits
from qtask.model.retry import CAUSES, Retry
from qtask.model.task import MAX_DEPTH, MAX_TIMEOUT_SECONDS, Settings, Task
from qtask.private import msgspec_messages as says

_BEGINNINGS = (  # a longer one comes before its own prefix
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x16\x03", "TLS"),
)
_ENCODING_BY_NULS = {  # of the first four bytes: 0 where there is a NUL
    b"\0\1\0\1": "UTF-16",
    b"\1\0\1\0": "UTF-16",
    b"\0\0\0\1": "UTF-32",
    b"\1\0\0\0": "UTF-32",
}
_REMEDIES = {
    "UTF-16": "send UTF-8",
    "UTF-32": "send UTF-8",
    "gzip": "send it uncompressed",
    "zstd": "send it uncompressed",
    "TLS": "connect without TLS",
}
_WORDS = {  # in the order in which messages name them
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list […]",
    "object": "an object {…}",
    "null": "null",
}
_KEYS_OF = {
    "": Task.__struct_fields__,
    "address": ("type", "link"),
    "settings": Settings.__struct_fields__,
    "settings.retry": Retry.__struct_fields__,
    "settings.flow": Flow.__struct_fields__,
}
_LIMIT_HINTS = {
    "parallel": "; deliveries in flight at most, such as 50, or auto",
    "rate": "; deliveries that begin in `per` seconds at most, such as 10 or 0.5",
    "per": "; seconds, such as 60",
    "burst": "; deliveries that may begin at once after a pause, such as 5",
    "ordered": "; whether deliveries are made one after another",
}
_HINTS = {  # the destinations have those for addresses and data
    "title": "; the name of the task",
    "address": '; {"type": …, "link": …}',
    "settings": '; {"time": …, "data": …}',
    "settings.time": "; a delay in seconds, such as 90 or 1.5",
    "settings.at": "; Unix seconds, or an instant such as 2026-12-24T18:00:00+01:00",
    "settings.timeout": f"; seconds, up to {MAX_TIMEOUT_SECONDS:.0f}, or auto",
    "settings.retry": '; {"attempts": 5, "backoff": "exponential", …}',
    "settings.retry.backoff": "; exponential, linear, fixed, or a list of seconds",
    "settings.retry.on": f"; a list of statuses and of {', '.join(CAUSES)}",
    "settings.expires": "; seconds after due, or an instant such as 2026-12-24T18:00:00+01:00",
    "settings.id": "; text of your choosing",
    "settings.flow": '; a key such as "partner-api", or {"key": …, "parallel": …, "rate": …}',
    "settings.flow.key": "; the name of the flow, such as partner-api",
    **{f"settings.flow.{name}": hint for name, hint in _LIMIT_HINTS.items()},
}


def refusal_of_text(
    error: Exception,
    raw: bytes,
    wanted: str = "object",
    hints: Mapping[str, str] | None = None,
) -> Refused:
    """The refusal for a text that could not be parsed.

    Args:
        error: the error of msgspec, or one of Python that msgspec passed on.
        raw: the text.
        wanted: what is expected; the message puts it after "one JSON".
        hints: path of a field to the text that is added to the message about it.
    """
    if isinstance(error, msgspec.ValidationError) and refusal_of_form(raw) is None:
        return _invalid(str(error), "", hints or {})
    return _refusal_of_json(error, raw, wanted)


def _refusal_of_json(error: Exception, raw: bytes, wanted: str) -> Refused:
    if (refused := refusal_of_form(raw)) is not None:
        return refused
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return Refused("invalid_json", "", f"JSON must be in UTF-8, where byte {byte:#04x} is not valid here")
    if isinstance(error, RecursionError):
        return too_deep()
    words = _what_is_malformed(raw) or str(error)
    if not raw.strip():
        return Refused("invalid_json", "", f"one JSON {wanted} is needed, got nothing")
    match = says.MALFORMED.fullmatch(words) or says.MALFORMED.fullmatch(_lengthened(raw))
    if match is None:
        return Refused("invalid_json", "", f"one JSON {wanted} is needed; the text ends before it is complete")
    what, position = match["what"], int(match["position"])
    near = raw[max(0, position - 12) : position + 12].decode("utf-8", "replace")
    hint = _hint_at(what, raw, position)
    return Refused("invalid_json", "", f"one JSON {wanted} is needed; {what} at byte {position}, near {near!r}{hint}")


def refusal_of_data(
    error: msgspec.ValidationError, data: bytes, kind: type[Struct], hints: Mapping[str, str]
) -> Refused:
    """The refusal for `settings.data` that does not fit its destination.

    Args:
        error: the error of msgspec.
        data: the JSON of the data.
        kind: the struct that the data must fit.
        hints: path of a field to the text that is added to the message about it.
    """
    words = str(error)
    name = _culprit(msgspec.json.decode(data), kind) if says.SOME_KEY in words else ""
    return _invalid(words, "settings.data", hints, kind.__struct_fields__, name)


def refusal_of_limits(error: Exception, place: str = "", raw: bytes = b"{}", removes: str = "") -> Refused:
    """The refusal for limits of a flow that are no `Limits` or no `Changes`.

    Args:
        error: the error of msgspec, or one of Python that msgspec passed on.
        place: path of the object of limits; empty if the limits are all that was given.
        raw: the text, if they were parsed from one.
        removes: the word that removes a limit, if one does.
    """
    if not isinstance(error, msgspec.ValidationError) or refusal_of_form(raw) is not None:
        return _refusal_of_json(error, raw, "object of limits")
    more = f"; {removes} removes it" if removes else ""
    hints = {f"{place}.{name}" if place else name: hint + more for name, hint in _LIMIT_HINTS.items()}
    return _invalid(str(error).replace(" | null`", "`"), place, hints, Limits.__struct_fields__)


def refusal_of_form(raw: bytes) -> Refused | None:
    """The refusal for bytes whose beginning shows that they are not JSON in UTF-8, else None."""
    form = other_form(raw)
    return Refused("invalid_json", "", f"JSON in UTF-8 is needed, got {form}; {_REMEDIES[form]}") if form else None


def other_form(raw: bytes) -> str:
    """The format that bytes have instead of JSON in UTF-8, judging by their beginning; empty if it is not clear.

    Without a byte order mark, the positions of NUL bytes show the encoding (RFC 4627, section 3).
    """
    found = next((form for beginning, form in _BEGINNINGS if raw.startswith(beginning)), "")
    return found or _ENCODING_BY_NULS.get(bytes(map(bool, raw[:4])), "")


def too_deep() -> Refused:
    """The refusal for a dict with more than `MAX_DEPTH` levels."""
    return Refused("too_deep", "", f"a dict may be nested at most {MAX_DEPTH} levels deep; send deeper values as text")


def _culprit(data: dict[str, Any], kind: type[Struct]) -> str:
    """The first key with an invalid value in a dict such as `headers`, which msgspec does not name."""
    for key, names in data.items():
        for name, value in islice(names.items(), 1_000) if isinstance(names, dict) else ():
            try:
                msgspec.json.decode(msgspec.json.encode({key: {name: value}}), type=kind)
            except msgspec.ValidationError as error:
                if says.SOME_KEY in str(error):
                    return str(name)
    return ""


def _hint_at(what: str, raw: bytes, position: int) -> str:
    """A hint at the usual cause of malformed JSON; msgspec only says what it found."""
    if what == says.TRAILING_CHARACTERS:
        return "; one dict a line, or several in an array"
    if what == says.KEYS_MUST_BE_STRINGS:
        return "; keys must be in double quotes"
    if what == says.INVALID_NUMBER or (what == says.INVALID_CHARACTER and raw[position : position + 1] in (b"+", b".")):
        return "; JSON's numbers have no plus sign, no leading zeros, and digits on both sides of the point"
    if re.match(rb"True|False|None", raw[position:]):
        return "; JSON's literals are true, false and null"
    if re.match(rb"NaN|-?Infinity", raw[position:]) or raw[position - 1 :].startswith(b"-Infinity"):
        return "; JSON has no NaN and no infinity"
    met = raw[position : position + 1]
    if met and met < b" ":
        return "; JSON writes control characters in text as escapes such as \\n"
    return "; JSON is written in UTF-8" if met >= b"\x80" else ""


def _what_is_malformed(raw: bytes) -> str:
    """msgspec's message for a text that it parses completely, which says more than if parts are left unparsed."""
    try:
        msgspec.json.decode(raw)
    except msgspec.ValidationError:
        return ""
    except msgspec.DecodeError as error:
        return str(error)
    except (UnicodeDecodeError, RecursionError):
        return ""
    return ""


def _lengthened(raw: bytes) -> str:
    """msgspec's message for the text with blanks appended; half a surrogate pair near the end looks cut off without."""
    try:
        msgspec.json.decode(raw + b" " * 12)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    return ""


def _invalid(
    words: str, base: str, more_hints: Mapping[str, str], keys: tuple[str, ...] = (), name: str = ""
) -> Refused:
    if match := says.MISSING.fullmatch(words):
        field = _path(base, match["path"], name, match["key"])
        return Refused("missing_field", field, f"{match['key']} is needed{_hint(field, more_hints)}")
    if match := says.UNKNOWN.fullmatch(words):
        place = _path(base, match["path"], name)
        known = ", ".join(keys or _KEYS_OF.get(place, ()))
        shown = f"{place or 'a task'}; its keys are" if place or not keys else "the limits; their keys are"
        return Refused(
            "unknown_field",
            _path(base, match["path"], name, match["key"][:60]),
            f"{match['key'][:60]!r} is not a key of {shown}: {known}",
        )
    if match := says.EXPECTED.fullmatch(words):
        field = _path(base, match["path"], name)
        got = f", got {_WORDS.get(match['got'], match['got'])}" if match["got"] else ""
        hint = f"; its keys are: {', '.join(keys)}" if keys and field == base else _hint(field, more_hints)
        return Refused("wrong_type", field, f"{_wanted(match['wanted'])} is needed{got}{hint}")
    if match := says.OUT_OF_RANGE.fullmatch(words):
        limits = "numbers go up to 1.7e308, whole numbers up to 4,300 digits; write larger ones as text"
        return Refused("invalid_value", _path(base, match["path"], name), limits)
    if match := says.BAD_VALUE.fullmatch(words):
        field = _path(base, match["path"], name)
        return Refused(
            "invalid_value",
            field,
            f"{match['value'][:60]} is not allowed here{_hint(field, more_hints)}",
        )
    return Refused("invalid_value", base, words)


def _hint(field: str, more_hints: Mapping[str, str]) -> str:
    """The hint for a field. It is a look-up, so that many refusals stay cheap."""
    return more_hints.get(field) or _HINTS.get(field, "")


def _wanted(types: str) -> str:
    """`float | str | int` → `text or a number`."""
    wanted = set(types.split(" | "))
    if "float" in wanted:
        wanted.discard("int")
    return " or ".join(told for word, told in _WORDS.items() if word in wanted)


def _path(base: str, path: str | None, name: str, key: str = "") -> str:
    """`$.params[...][2]` below `settings.data`, where the name `page` was at fault → `settings.data.params.page[2]`."""
    inner = re.sub(r"^\$\.?", "", path or "").replace(says.SOME_KEY, f".{name[:60]}" if name else "")
    return ".".join(part for part in (base, inner, key) if part)
