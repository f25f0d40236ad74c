"""docs/flows.md: its tasks are accepted, its commands and requests work, and its tables are those of the code."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec import structs
from redis import Redis

from qtask.config import Config, load
from qtask.destinations.parsing import parse
from qtask.model import flow, flow_rule
from qtask.model.flow import Flow
from qtask.model.flow_record import FlowRecord, FlowState, Source, wait_in
from qtask.observe import tables
from qtask.store import schedule
from qtask.store.flow_records import list_flows, show_flow
from tests.support.documents import ROOT, Block, blocks, broken_links, run
from tests.support.gateway_process import Gateway, scheduled
from tests.support.redis_server import RedisServer
from tests.unit.test_flow_names import SPELLINGS

DOCUMENT = ROOT / "docs" / "flows.md"
BLOCKS = blocks(DOCUMENT)
TEXT = DOCUMENT.read_text()
(TASK,) = (block for block in BLOCKS if block.language == "json" and '"settings"' in block.text)
(ANSWER,) = (block for block in BLOCKS if block.language == "json" and block is not TASK)
(COMMANDS, REQUESTS) = (block for block in BLOCKS if block.language == "sh")
(PYTHON,) = (block for block in BLOCKS if block.language == "python")
(TOML,) = (block for block in BLOCKS if block.language == "toml")
(ADAPTED, TIMED) = (block for block in BLOCKS if not block.language)


@pytest.fixture
def environment(gateway: Gateway, redis_server: RedisServer) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "QTASK_URL": gateway.url, "QTASK_REDIS_URL": redis_server.url}


def test_every_block_is_tested() -> None:
    assert (
        sorted([TASK, ANSWER, COMMANDS, REQUESTS, PYTHON, TOML, ADAPTED, TIMED], key=lambda block: block.line) == BLOCKS
    )


def test_commands_work(environment: dict[str, str], redis: Redis, tmp_path: Path) -> None:
    output = run(COMMANDS, {}, tmp_path, environment)
    assert "partner-api" in output and "parallel auto (set), now 5" in output
    schedule.release(redis, 500)
    (left,) = list_flows(redis).items
    assert (left.key, left.ordered) == ("https://api.example.org", True)


def test_requests_work(gateway: Gateway, environment: dict[str, str], redis: Redis, tmp_path: Path) -> None:
    output = run(REQUESTS, {"5124": gateway.http_port}, tmp_path, environment)
    answers, decoder = [], json.JSONDecoder()
    while output.strip():
        answer, end = decoder.raw_decode(output.lstrip())
        answers.append(answer)
        output = output.lstrip()[end:]
    assert len(answers) == REQUESTS.text.count("curl ")
    assert not any("error" in answer for answer in answers)
    assert answers[1] == json.loads(ANSWER.text)
    assert [answer["state"] for answer in answers[3:6]] == ["paused", "idle", "idle"]
    assert (answers[6]["parallel"], answers[6]["rate"], answers[6]["burst"]) == (None, 100, 10)
    assert show_flow(redis, "https://api.example.org").ordered


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        (
            ADAPTED,
            {
                "parallel": "auto",
                "adapted": 12,
                "adapted_why": "durations rose from 52 ms to 71 ms",
                "limits_from": {"parallel": "set"},
            },
        ),
        (TIMED, {"timeout": 1.24, "duration_mean": 0.31, "duration_deviation": 0.0775}),
    ],
)
def test_limits_that_adapt_are_shown_as_written(
    block: Block, fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_flow(FlowRecord("k", **fields))
    assert block.text.split() == next(line for line in capsys.readouterr().out.splitlines() if "limits" in line).split()


def test_examples_of_what_a_task_waits_for_are_those_of_the_code() -> None:
    until = 1_795_867_902.97
    for position, record in (
        (2, FlowRecord("partner-api", "waiting", parallel=5, in_flight=5)),
        (1, FlowRecord("partner-api", "waiting", rate=1.0, next_token=until)),
        (1, FlowRecord("partner-api", "resting", until=until, why="its destination asked for a pause")),
    ):
        assert f"\n- `{wait_in(record, position).words}`\n" in TEXT


def test_python_code_works(environment: dict[str, str], redis: Redis, tmp_path: Path) -> None:
    run(PYTHON, {}, tmp_path, environment)
    assert len(scheduled(redis)) == 1
    record = show_flow(redis, "partner-api")
    assert (record.parallel, record.limits_from) == (5, {"parallel": "task"})


def test_task_is_accepted() -> None:
    assert parse(TASK.text.encode()).task.settings.flow == Flow(
        key="partner-api", parallel=5, rate=100, per=60, burst=10
    )


def test_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_text(TOML.text)
    rules = load({}, {}, tmp_path / "qtask.toml").flow_rules
    assert [rule.pattern for rule in rules] == list(tomllib.loads(TOML.text)["flow"])


def test_tables_have_what_the_code_has() -> None:
    for name in Flow.__struct_fields__:
        assert f"\n| `{name}` |" in TEXT
    for state in get_args(FlowState):
        assert f"\n| `{state}` |" in TEXT
    for source in get_args(Source):
        assert f"`{source}`" in TEXT
    assert set(json.loads(ANSWER.text)) == {field.encode_name for field in structs.fields(FlowRecord)}


def test_numbers_are_those_of_the_code() -> None:
    spaced = "{:,}".format
    assert f"1 to {flow.MAX_KEY_CHARACTERS} printable" in TEXT
    assert f"1 to {spaced(flow.MAX_PARALLEL).replace(',', ' ')};" in TEXT
    assert f"up to {spaced(int(flow.MAX_RATE)).replace(',', ' ')};" in TEXT
    assert f"{flow.MIN_PER_SECONDS:g} to {spaced(int(flow.MAX_PER_SECONDS)).replace(',', ' ')} |" in TEXT
    assert f"at most {spaced(flow_rule.MAX_RULES)} entries" in TEXT
    assert Config().flow_rest_cap == 3_600 and "an hour by default" in TEXT
    assert f"at least {Config().circuit_breaker} deliveries" in TEXT


def test_names_of_destinations_are_those_of_the_code() -> None:
    names = {name for names in SPELLINGS.values() for name in names}
    for name in ("http://unix:/run/app.sock", "unix:/run/app.sock", "redis://example.org:6379", "__graph__"):
        assert name in names and f"`{name}`" in TEXT


def test_links_are_valid() -> None:
    assert broken_links(DOCUMENT) == []
