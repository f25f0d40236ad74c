"""msgspec: the texts of its error messages, which contain the path of the invalid field."""

from __future__ import annotations

import re

_PATH = r"(?: - at `(?P<path>\$[^`]*)`)?"

# Of `DecodeError`: the text is not JSON.
MALFORMED = re.compile(r"JSON is malformed: (?P<what>.*) \(byte (?P<position>\d+)\)")
TRAILING_CHARACTERS = "trailing characters"  # this and the next three are values of `what` in MALFORMED
KEYS_MUST_BE_STRINGS = "object keys must be strings"
INVALID_NUMBER = "invalid number"
INVALID_CHARACTER = "invalid character"

# Of `ValidationError`: the JSON does not have the expected form.
MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`" + _PATH)
UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`" + _PATH, re.DOTALL)
EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]*)`(?:, got `(?P<got>[^`]*)`)?" + _PATH)
BAD_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*?)" + _PATH, re.DOTALL)
OUT_OF_RANGE = re.compile(r"(?:Number|Integer value) out of range" + _PATH)
SOME_KEY = "[...]"  # in a path: a key of a dict, or an index of a list, that msgspec does not name
