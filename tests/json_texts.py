"""JSON for tests: any value, and any layout of it that JSON allows."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import strategies as st

# Integers beyond 64 bits and floats of any size on purpose: what a client sends must reach the receiver unchanged.
scalars: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def written(value: Any, random: Random, line_breaks: bool = True) -> str:
    """The JSON of a value in a random layout: white space, order of keys and escapes as JSON leaves them free."""
    spaces = ["", "", " ", "\t", "   "] + (["\n", "\r\n  ", "\n\n\t"] if line_breaks else [])

    def write(part: Any) -> str:
        before, after = random.choice(spaces), random.choice(spaces)
        return before + write_bare(part) + after

    def write_bare(part: Any) -> str:
        if isinstance(part, str):
            return _string(part, random)
        if isinstance(part, list):
            return "[" + (",".join(map(write, part)) or random.choice(spaces)) + "]"
        if isinstance(part, dict):
            members = [f"{write(name)}:{write(member)}" for name, member in part.items()]
            random.shuffle(members)
            return "{" + (",".join(members) or random.choice(spaces)) + "}"
        return json.dumps(part)

    return write_bare(value)


def _string(text: str, random: Random) -> str:
    if random.random() < 0.5:
        return json.dumps(text, ensure_ascii=random.random() < 0.5)
    letters = []
    for letter in text:
        if random.random() < 0.3:
            units = letter.encode("utf-16-be")
            letters += [f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)]
        else:
            letters.append(json.dumps(letter, ensure_ascii=False)[1:-1].replace("/", random.choice(["/", "\\/"])))
    return '"' + "".join(letters) + '"'
