"""JSON for tests: any value, in any layout that JSON allows."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from hypothesis import strategies as st

# Includes integers beyond 64 bits and floats of any size: they must reach the receiver unchanged.
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


_space = st.sampled_from(["", "", " ", "\t", "\n", "\r\n  "])
_number_texts = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,4})?", fullmatch=True).map(str)
_string_texts = st.lists(
    st.sampled_from(
        ["\\/", "/", "\\u00e9", "\\u00E9", "é", "\\ud83d\\ude00", "😀", "\\n", '\\"', "\\\\", "\\u0000", " ", "a"]
    ),
    max_size=5,
).map(lambda letters: '"' + "".join(letters) + '"')
# Any JSON in any spelling: unusual numbers, every escape, duplicate keys, white space everywhere.
json_texts: st.SearchStrategy[str] = st.recursive(
    st.builds(
        "{}{}{}".format, _space, st.sampled_from(["null", "true", "false"]) | _number_texts | _string_texts, _space
    ),
    lambda inner: (
        st.builds("{}[{}]{}".format, _space, st.lists(inner, max_size=4).map(",".join), _space)
        | st.builds(
            "{}{{{}}}{}".format,
            _space,
            st.lists(st.builds("{}{}:{}".format, _string_texts, _space, inner), max_size=4).map(",".join),
            _space,
        )
    ),
    max_leaves=12,
)


def written(value: Any, random: Random, line_breaks: bool = True) -> str:
    """The JSON of a value in a random layout: white space, order of keys and escapes vary as JSON allows."""
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
