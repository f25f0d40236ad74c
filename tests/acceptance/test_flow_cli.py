"""`qtask flow …`, and how other commands show tasks that wait in flows: on a whole QTask with real receivers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import on_terminal, qtask, refused
from tests.support.installation import Installation
from tests.support.receiver import Exchange, Gate, Receiver
from tests.support.waiting import until

QTASK = (sys.executable, "-m", "qtask")
KEYS = ["partner-api", "http://127.0.0.1:8000", "a/b:c", "100%", "with spaces", "[bold]x[/bold]"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("flows")) as running:
        yield running


def ran(installation: Installation, *arguments: str) -> str:
    """Standard output of a command that exits with 0 and writes no errors."""
    result = qtask(*arguments, environment=installation.environment)
    assert (result.returncode, result.stderr) == (0, ""), (result.stdout, result.stderr)
    return result.stdout


def document(installation: Installation, *arguments: str) -> Any:
    """The only line of JSON that a command prints."""
    return json.loads(ran(installation, *arguments, "--json"))


def failed(installation: Installation, *arguments: str) -> str:
    return refused(qtask(*arguments, environment=installation.environment))


def rows(table: str) -> dict[str, str]:
    """The lines of a table of two columns."""
    pairs = (re.split(r"  +", line.strip(), maxsplit=1) for line in table.splitlines() if line.strip())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def sent(installation: Installation, link: str, flow: str, *more: str) -> str:
    return ran(installation, "send", "--http", link, "--flow", flow, *more).split()[0]


def state_of(installation: Installation, task_id: str) -> str:
    return str(document(installation, "show", task_id)["state"])


@pytest.mark.parametrize("key", [KEYS[0], *(pytest.param(key, marks=pytest.mark.slow) for key in KEYS[1:])])
def test_every_command_takes_any_key(installation: Installation, key: str) -> None:
    made = rows(
        ran(installation, "flow", "set", key, "--parallel", "5", "--rate", "2.5", "--per", "10", "--burst", "3")
    )
    assert (made["flow"], made["state"]) == (key, "idle")
    assert made["limits"] == "parallel 5 (set), rate 2.5 in 10 s, burst 3 (set)"
    assert made["rate used"] == "0 of 2.5 in 10 s"
    assert rows(ran(installation, "flow", "show", key)) == made
    shown = document(installation, "flow", "show", key)
    assert (shown["key"], shown["parallel"], shown["rate"], shown["per"], shown["burst"]) == (key, 5, 2.5, 10, 3)
    (line,) = [one for one in ran(installation, "flow", "list").splitlines() if one.startswith(key)]
    assert line.removeprefix(key).split()[:2] == ["idle", "0"]
    assert document(installation, "flow", "list") == shown
    assert rows(ran(installation, "flow", "pause", key))["state"] == "paused"
    assert document(installation, "flow", "resume", key)["state"] == "idle"
    assert document(installation, "flow", "reset", key) == shown
    changed = document(installation, "flow", "set", key, "--parallel", "none", "--burst", "4")
    assert (changed["parallel"], changed["rate"], changed["burst"]) == (None, 2.5, 4)
    assert document(installation, "flow", "set", key, "--rate", "none", "--ordered")["ordered"] is True
    assert ran(installation, "flow", "remove", key) == f"{key} has no limits any more\n"
    assert ran(installation, "flow", "list") == "no flow has limits, a pause, a rest or waiting tasks\n"
    keys = {raw.decode() for raw in installation.redis.scan_iter("qtask:*")}
    assert [one for one in keys if key in one] == []


def test_removal_may_be_printed_as_json(installation: Installation) -> None:
    ran(installation, "flow", "pause", "k")
    assert document(installation, "flow", "remove", "k") == {"key": "k", "removed": True}


@pytest.mark.parametrize("command", ["show", "resume", "reset", "remove"])
def test_unknown_flow_is_reported(installation: Installation, command: str) -> None:
    message = "qtask: no flow 'nobody' has limits, a pause, a rest or waiting tasks"
    assert failed(installation, "flow", command, "nobody") == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "at least one limit is needed: parallel, rate, per, burst or ordered"),
        (
            ("--parallel", "many"),
            "parallel: 'many' is not allowed here; deliveries in flight at most, such as 50, or auto; none removes it",
        ),
        (("--parallel", "0"), "parallel: a whole number from 1 to 100000 is needed, got 0"),
        (
            ("--rate", "fast"),
            "rate: a number is needed, got text; deliveries that begin in `per` seconds at most, such as 10 or 0.5; "
            "none removes it",
        ),
        (("--rate", "nan"), "rate: a number above 0 and up to 1000000 is needed, got nan"),
        (("--rate", "-1"), "rate: a number above 0 and up to 1000000 is needed, got -1"),
        (("--per", "5"), "per: per is the span of a rate; give a rate, or leave it out"),
        (("--ordered", "--parallel", "2"), "parallel: an ordered flow delivers one task at a time"),
    ],
)
def test_wrong_limits_are_refused(installation: Installation, flags: tuple[str, ...], message: str) -> None:
    assert failed(installation, "flow", "set", "k", *flags).startswith(f"qtask: {message}")
    assert failed(installation, "flow", "show", "k").startswith("qtask: no flow 'k'")


def test_waiting_tasks_are_listed_counted_and_explained(installation: Installation) -> None:
    gate = Gate()
    flow = '{"key": "partner-api", "parallel": 1}'
    with Receiver(gate) as receiver:
        first = sent(installation, receiver.url, flow)
        receiver.wait_for(1)
        waiting = [sent(installation, receiver.url, "partner-api", "--title", f"number {n}") for n in range(3)]
        until(lambda: state_of(installation, waiting[2]) == "waiting")

        table = ran(installation, "list", "--state", "waiting").splitlines()
        assert [line.split()[:2] for line in table[1:-1]] == [[one, "waiting"] for one in waiting]
        assert table[-1].startswith("0 scheduled, 3 waiting, 0 queued, 1 started")
        assert ran(installation, "stats").splitlines()[-1].startswith("0 scheduled, 3 waiting, 0 queued, 1 started")
        assert document(installation, "stats")["tasks"]["waiting"] == 3
        assert re.search(r"^\+ waiting in flows +3 *$", ran(installation, "audit"), re.MULTILINE)

        shown = rows(ran(installation, "show", waiting[2]))
        assert shown["waits for"] == "3rd in flow partner-api, which has 1 of 1 deliveries in flight"
        assert document(installation, "show", waiting[1])["waits_for"] == {
            "flow": "partner-api",
            "position": 2,
            "reason": "parallel",
            "until": None,
            "words": "2nd in flow partner-api, which has 1 of 1 deliveries in flight",
        }
        assert "waits for" not in rows(ran(installation, "show", first))

        flow_shown = rows(ran(installation, "flow", "show", "partner-api"))
        assert (flow_shown["state"], flow_shown["waiting"], flow_shown["in flight"]) == ("waiting", "3", "1")
        assert ", due 20" in flow_shown["oldest"]

        assert ran(installation, "cancel", waiting[0]) == f"{waiting[0]} cancelled; it was waiting\n"
        assert document(installation, "show", waiting[2])["waits_for"]["position"] == 2
        gate.open()
        until(lambda: state_of(installation, waiting[2]) == "delivered")
    assert receiver.ids == [first, *waiting[1:]]
    ran(installation, "flow", "remove", "partner-api")


def test_paused_flow_is_named_by_the_doctor_and_delivers_when_it_is_resumed(installation: Installation) -> None:
    with Receiver() as receiver:
        ran(installation, "flow", "pause", "k")
        task_id = sent(installation, receiver.url, "k")
        until(lambda: state_of(installation, task_id) == "waiting")
        assert rows(ran(installation, "show", task_id))["waits for"] == "1st in flow k, which is paused"
        doctor = qtask("doctor", environment=installation.environment).stdout
        assert "note  flow k is paused; 1 task waits\n      `qtask flow resume k` delivers them\n" in doctor
        ran(installation, "flow", "resume", "k")
        until(lambda: state_of(installation, task_id) == "delivered")
    assert failed(installation, "flow", "show", "k").startswith("qtask: no flow 'k'"), "nothing is left of it"


def test_resting_flow_says_until_when_and_delivers_after_a_reset(installation: Installation) -> None:
    def ask_for_a_pause(exchange: Exchange) -> None:
        headers = {"Retry-After": "600"} if exchange.number == 1 else {}
        exchange.answer(429 if exchange.number == 1 else 200, b"", headers)

    with Receiver(ask_for_a_pause) as receiver:
        first = sent(installation, receiver.url, "busy", "--attempts", "1")
        until(lambda: state_of(installation, first) == "dead")
        second = sent(installation, receiver.url, "busy")
        until(lambda: state_of(installation, second) == "waiting")
        instant = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\dZ"
        words = rows(ran(installation, "show", second))["waits for"]
        assert re.fullmatch(
            rf"1st in flow busy, which rests until {instant} \(its destination asked for a pause\)", words
        )
        shown = rows(ran(installation, "flow", "show", "busy"))
        assert (shown["state"], shown["why"]) == ("resting", "its destination asked for a pause")
        assert {"since", "rests until"} <= set(shown)
        (line,) = [one for one in ran(installation, "flow", "list").splitlines() if one.startswith("busy")]
        assert re.search(rf"resting +1 +.* {instant}", line)
        ran(installation, "flow", "reset", "busy")
        until(lambda: state_of(installation, second) == "delivered")


def test_open_circuit_breaker_is_shown_with_its_next_probe(installation: Installation) -> None:
    def fail(exchange: Exchange) -> None:
        exchange.answer(500, b"")

    with Receiver(fail) as receiver:
        tasks = "".join(
            json.dumps(
                {
                    "title": "t",
                    "address": {"type": "http", "link": receiver.url},
                    "settings": {"time": 0, "flow": "bad", "retry": {"attempts": 1}},
                }
            )
            + "\n"
            for _ in range(25)
        )
        assert qtask("send", "-", environment=installation.environment, input=tasks).returncode == 0
        until(lambda: qtask("flow", "show", "bad", environment=installation.environment).returncode == 0)
        waiting = sent(installation, receiver.url, "bad", "--attempts", "1")
        until(lambda: state_of(installation, waiting) == "waiting")
        shown = rows(ran(installation, "flow", "show", "bad"))
        assert shown["state"] in ("breaker open", "breaker half-open")
        assert shown["why"] == "its deliveries keep failing"
        words = rows(ran(installation, "show", waiting))["waits for"]
        assert "in flow bad, whose circuit breaker is " in words
        ran(installation, "flow", "remove", "bad")
        until(lambda: state_of(installation, waiting) == "dead")


def test_flows_fit_a_terminal(installation: Installation) -> None:
    ran(installation, "flow", "set", "https://partner.example.org", "--rate", "5")
    for command in (("flow", "list"), ("flow", "show", "https://partner.example.org")):
        code, shown = on_terminal(*QTASK, *command, environment=installation.environment, columns=80)
        assert code == 0
        plain = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in shown.splitlines()]
        assert max(map(len, plain)) <= 80
    ran(installation, "flow", "remove", "https://partner.example.org")


def test_more_flows_than_the_limit_are_counted(installation: Installation) -> None:
    for name in ("a", "b", "c"):
        ran(installation, "flow", "pause", name)
    assert ran(installation, "flow", "list", "--limit", "2").splitlines()[-1] == (
        "2 of 3 flows, those with the most waiting tasks"
    )
    for name in ("a", "b", "c"):
        ran(installation, "flow", "remove", name)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ("", "settings.flow: a key is 1 to 200 printable ASCII characters, got 0 characters: ''"),
        ("ü", "settings.flow: a key is 1 to 200 printable ASCII characters, got 1 characters: 'ü'"),
        ('{"paralel": 1}', "settings.flow.paralel: 'paralel' is not a key of settings.flow; its keys are: "),
        (
            '{"parallel": "x"}',
            "settings.flow.parallel: 'x' is not allowed here; deliveries in flight at most, such as 50, or auto",
        ),
        ('{"burst": 2}', "settings.flow.burst: burst belongs to a rate"),
    ],
)
def test_wrong_flow_of_a_task_is_refused(installation: Installation, flow: str, message: str) -> None:
    result = qtask("send", "--http", "http://127.0.0.1:9/", "--flow", flow, environment=installation.environment)
    assert result.returncode == 1 and message in result.stderr, result.stderr


def test_flow_that_is_not_json_is_refused(installation: Installation) -> None:
    message = failed(installation, "send", "--http", "http://127.0.0.1:9/", "--flow", "{x")
    assert message.startswith('qtask: --flow must be a key, or JSON such as {"key": "api", "rate": 5}: ')


def test_data_folder_names_the_redis(installation: Installation, tmp_path: Path) -> None:
    result = qtask("flow", "list", "--data-dir", str(installation.data_dir), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
