"""docs/retries.md compared with the code."""

from __future__ import annotations

import json
import re

from msgspec import UNSET

from qtask.config import Config
from qtask.destinations.parsing import parse
from qtask.model.outcome import OUTCOMES_KEEP
from qtask.model.retry import CAUSES, DEFAULT_CAUSES, DEFAULT_RETRY, Retry
from tests.support.documents import ROOT

TEXT = (ROOT / "docs" / "retries.md").read_text()


def test_example_dict_is_accepted() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    retry = parse(block.encode()).task.settings.retry
    assert retry is not UNSET
    assert set(json.loads(block)["settings"]["retry"]) == set(Retry.__struct_fields__), "every key is shown"


def test_table_names_every_key_and_every_cause() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.MULTILINE))
    assert set(Retry.__struct_fields__) <= set(rows)
    for cause in CAUSES:
        assert f"`{cause}`" in rows["on"]


def test_documented_defaults_are_correct() -> None:
    assert (DEFAULT_RETRY.max_attempts, DEFAULT_RETRY.backoff) == (5, "exponential")
    assert (DEFAULT_RETRY.base, DEFAULT_RETRY.cap) == (5, 3600)
    assert [cause for cause in DEFAULT_CAUSES if isinstance(cause, int)] == [408, 425, 429]
    words = " ".join(TEXT.split())
    assert f"the newest {OUTCOMES_KEEP})" in words
    assert "for a day after its delivery (`idempotency_seconds`)" in words
    assert Config().idempotency_seconds == 86_400
