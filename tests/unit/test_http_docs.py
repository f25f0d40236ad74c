"""docs/http.md against the code: what it says of tasks that wait, and of flows."""

from __future__ import annotations

import json
import re
from typing import get_args

from qtask.model.flow_record import FlowRecord, FlowState, Reason, Wait
from tests.support.documents import ROOT, blocks

DOCUMENT = ROOT / "docs" / "http.md"


def names(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def test_example_of_what_a_task_waits_for_has_its_fields() -> None:
    (block,) = blocks(DOCUMENT)
    shown = json.loads(block.text)
    assert tuple(shown) == Wait.__struct_fields__
    assert shown["words"].startswith(f"{shown['position']}nd in flow {shown['flow']}, which rests until ")


def test_all_reasons_are_named() -> None:
    (sentence,) = re.findall(r"`reason` is (.*?\n.*?)\n\n", DOCUMENT.read_text())
    assert tuple(names(sentence)) == get_args(Reason)


def test_table_has_all_fields_and_states_of_a_flow() -> None:
    section = DOCUMENT.read_text().partition("The fields of a flow:")[2].partition("\n## ")[0]
    rows = {cells[1]: cells[2] for line in section.splitlines() if len(cells := line.split("|")) > 2}
    assert sorted(name for cell in rows for name in names(cell)) == sorted(FlowRecord.__struct_fields__)
    assert tuple(names(rows[" `state` "])) == get_args(FlowState)
