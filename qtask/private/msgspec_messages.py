"""msgspec: the English texts of its errors, which tell where in a dict the error is."""

from __future__ import annotations

import re

_PATH = r"(?: - at `(?P<path>\$[^`]*)`)?"

# Of `DecodeError`: the text is no JSON.
MALFORMED = re.compile(r"JSON is malformed: (?P<what>.*) \(byte (?P<position>\d+)\)")
TRAILING_CHARACTERS = "trailing characters"  # these four are what MALFORMED finds as `what`
KEYS_MUST_BE_STRINGS = "object keys must be strings"
INVALID_NUMBER = "invalid number"
INVALID_CHARACTER = "invalid character"

# Of `ValidationError`: the JSON has another form than it has to have.
MISSING = re.compile(r"Object missing required field `(?P<key>[^`]*)`" + _PATH)
UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>.*?)`" + _PATH, re.DOTALL)
EXPECTED = re.compile(r"Expected `(?P<wanted>[^`]*)`(?:, got `(?P<got>[^`]*)`)?" + _PATH)
BAD_VALUE = re.compile(r"Invalid (?:enum )?value (?P<value>.*?)" + _PATH, re.DOTALL)
OUT_OF_RANGE = re.compile(r"(?:Number|Integer value) out of range" + _PATH)
SOME_KEY = "[...]"  # stands in a path for a key of a dict, or an index of a list, that msgspec does not tell
