"""Settings: from flags, the environment and a file, in that order, and errors about wrong ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qtask.cli.main import cli
from qtask.config import DEFAULT_REDIS_URL, Config, concerns, environment_name, flag_name, is_duration, is_table, load
from qtask.model.errors import ConfigError
from qtask.model.flow import Limits
from qtask.model.timing import DURATION_FORMS
from tests.support.command import qtask
from tests.support.processes import Process
from tests.support.redis_server import free_port
from tests.support.waiting import until

DEFAULTS = Config()
SETTINGS = {setting.name: setting for setting in fields(Config) if not is_table(setting.name)}
NUMBERS = {name: setting for name, setting in SETTINGS.items() if not isinstance(setting.default, str)}
TEXTS = [name for name in SETTINGS if name not in NUMBERS]


def other(name: str, step: int = 1) -> Any:
    """A valid value that is not the default."""
    default: Any = SETTINGS[name].default
    return f"{default}-{step}" if isinstance(default, str) else default + step


def in_toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in SETTINGS:
        monkeypatch.delenv(environment_name(name), raising=False)
    monkeypatch.delenv("QTASK_CONFIG", raising=False)


def complaint(flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as error:
        load(flags, environment or {})
    return str(error.value)


def test_defaults_apply_when_nothing_is_given() -> None:
    assert load({}, {}) == DEFAULTS
    assert (DEFAULTS.host, DEFAULTS.port, DEFAULTS.http_port, DEFAULTS.queue) == ("127.0.0.1", 5123, 5124, "qtask")


def test_default_host_is_loopback() -> None:
    assert DEFAULTS.host == "127.0.0.1"


def test_empty_addresses_are_filled_in() -> None:
    assert DEFAULTS.redis == DEFAULT_REDIS_URL
    assert Config(redis_url="redis://r:1/2").redis == "redis://r:1/2"
    assert DEFAULTS.pipes == Path("qtask-data/pipes")
    assert Config(data_dir="/d").pipes == Path("/d/pipes")
    assert Config(pipe_dir="/p").pipes == Path("/p")


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_has_one_name_in_flags_environment_and_file(name: str, tmp_path: Path) -> None:
    assert environment_name(name) == "QTASK_" + name.upper()
    assert flag_name(name) == ("--redis" if name == "redis_url" else "--" + name.replace("_", "-"))
    assert getattr(load({name: other(name)}, {}), name) == other(name)
    assert getattr(load({}, {environment_name(name): str(other(name))}), name) == other(name)
    (tmp_path / "qtask.toml").write_text(f"{name} = {in_toml(other(name))}\n")
    assert getattr(load({}, {}), name) == other(name)


@pytest.mark.parametrize("name", SETTINGS)
def test_flags_override_environment_overrides_file_overrides_default(name: str, tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_text(f"{name} = {in_toml(other(name, 1))}\n")
    environment = {environment_name(name): str(other(name, 2))}
    assert getattr(load({name: other(name, 3)}, environment), name) == other(name, 3)
    assert getattr(load({name: None}, environment), name) == other(name, 2)
    assert getattr(load({name: None}, {}), name) == other(name, 1)
    (tmp_path / "qtask.toml").unlink()
    assert getattr(load({name: None}, {}), name) == SETTINGS[name].default


def test_each_setting_is_a_flag_of_some_command() -> None:
    offered = {flag for command in cli.commands.values() for parameter in command.params for flag in parameter.opts}
    assert {flag_name(name) for name in SETTINGS} <= offered


def test_each_setting_has_a_description() -> None:
    assert all(setting.metadata["about"] for setting in SETTINGS.values())


def test_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QTASK_PORT", "7001")
    assert load().port == 7001


def test_file_is_found_by_argument_then_environment_then_working_directory(tmp_path: Path) -> None:
    for name, port in [("qtask.toml", 1001), ("environment.toml", 1002), ("argument.toml", 1003)]:
        (tmp_path / name).write_text(f"port = {port}\n")
    environment = {"QTASK_CONFIG": str(tmp_path / "environment.toml")}
    assert load({}, environment, tmp_path / "argument.toml").port == 1003
    assert load({}, environment).port == 1002
    assert load({}, {"QTASK_CONFIG": ""}).port == 1001


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_has_bounds(name: str) -> None:
    low, high = NUMBERS[name].metadata["low"], NUMBERS[name].metadata["high"]
    assert low <= NUMBERS[name].default <= high
    assert getattr(load({name: low}, {}), name) == low
    assert getattr(load({}, {environment_name(name): str(high)}), name) == high
    for beyond in (low - 1, high + 1):
        assert complaint({name: beyond}) == f"{flag_name(name)} must be from {low} to {high}, got {beyond!r}"
        assert complaint({}, {environment_name(name): str(beyond)}).startswith(environment_name(name))


@pytest.mark.parametrize("name", [name for name, setting in NUMBERS.items() if isinstance(setting.default, int)])
@pytest.mark.parametrize("value", ["", "five", "5.5", 5.5, "0x5", True, float("nan"), float("inf"), [5], "9" * 5000])
def test_value_that_is_not_a_whole_number_is_refused(name: str, value: Any) -> None:
    needed = f"whole {DURATION_FORMS}" if is_duration(name) else "a whole number"
    assert complaint({name: value}).startswith(f"{flag_name(name)} must be {needed}, got ")


@pytest.mark.parametrize("value", ["", "soon", True, [1], "1,5"])
def test_value_that_is_not_a_number_is_refused(value: Any) -> None:
    assert complaint({"idle_seconds": value}) == f"--idle-seconds must be {DURATION_FORMS}, got {value!r}"
    assert complaint({"idle_seconds": "nan"}) == "--idle-seconds must be from 0.1 to 86400, got 'nan'"


def test_number_may_be_text_and_whole_number_may_be_a_float() -> None:
    config = load({"port": 6000.0}, {"QTASK_IDLE_SECONDS": "1.5", "QTASK_WORKERS": " 3 "})
    assert (config.port, config.idle_seconds, config.workers) == (6000, 1.5, 3)
    assert isinstance(config.port, int)


def test_seconds_may_be_written_as_a_duration(tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_bytes(b'\xef\xbb\xbfretention_seconds = "7d"\nidle_seconds = 5\n')
    config = load({"accept_retry_seconds": "500ms"}, {"QTASK_IDEMPOTENCY_SECONDS": "1h30m"})
    assert (config.retention_seconds, config.idle_seconds) == (604_800, 5.0)
    assert (config.accept_retry_seconds, config.idempotency_seconds) == (0.5, 5_400)
    assert isinstance(config.retention_seconds, int)
    assert complaint({"idempotency_seconds": "0.5s"}).startswith(
        "--idempotency-seconds must be whole seconds, or a duration such as"
    )
    assert (
        complaint({"idempotency_seconds": "3000d"}) == "--idempotency-seconds must be from 1 to 31536000, got '3000d'"
    )
    assert complaint({"port": "10m"}) == "--port must be a whole number, got '10m'"


@pytest.mark.parametrize("name", [name for name in TEXTS if SETTINGS[name].default])
def test_text_with_a_default_must_not_be_empty(name: str) -> None:
    default = SETTINGS[name].default
    words = f"{flag_name(name)} must not be empty; leave it out for {default!r}"
    assert complaint({name: ""}) == words
    assert complaint({name: "  "}) == words
    assert complaint({}, {environment_name(name): "  "}).startswith(f"{environment_name(name)} must not be empty")


@pytest.mark.parametrize("name", SETTINGS)
def test_empty_environment_variable_counts_as_unset(name: str, tmp_path: Path) -> None:
    """Compose files pass unset variables as empty: `QTASK_PORT: ${PORT:-}`."""
    assert load({}, {environment_name(name): ""}) == DEFAULTS
    (tmp_path / "qtask.toml").write_text(f"{name} = {in_toml(other(name))}\n")
    assert getattr(load({}, {environment_name(name): ""}), name) == other(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("port = 70000", r"^port in .*qtask\.toml must be from 0 to 65535, got 70000$"),
        ('port = "x"', r"^port in .*qtask\.toml must be a whole number, got 'x'$"),
        ("port = inf", r"^port in .*qtask\.toml must be a whole number, got inf$"),
        ("port = 2026-01-01", r"^port in .*qtask\.toml must be a whole number"),
        ("queue = 5", r"^queue in .*qtask\.toml must be text, got 5$"),
        ("queue = ['a']", r"^queue in .*qtask\.toml must be text, got \['a'\]$"),
        ("host = ''", r"^host in .*qtask\.toml must not be empty; leave it out for '127\.0\.0\.1'$"),
        (
            "prot = 5",
            r"^'prot' in .*qtask\.toml is not a setting; the settings are: accept_retry_seconds, .*, workers$",
        ),
        ("[gateway]\nport = 5", r"^'gateway' in .*qtask\.toml is not a setting"),
        ("http-port = 5", r"^'http-port' in .*qtask\.toml is not a setting"),
        ("port = ", r"^the configuration file .*qtask\.toml is not TOML: "),
        ("port = 1\nport = 2", r"^the configuration file .*qtask\.toml is not TOML: "),
        ("host = '\udcff'", r"^the configuration file .*qtask\.toml is not TOML: .*utf-8"),
    ],
)
def test_error_in_a_file_names_its_place(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert re.search(words, complaint())


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    assert complaint({}, {"QTASK_CONFIG": absent}) == (
        f"the configuration file {absent} cannot be read: No such file or directory"
    )
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load({}, {}, tmp_path)


def test_command_reports_a_wrong_setting_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "qtask", "gateway"],
        env={**os.environ, "QTASK_PORT": "many"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "QTASK_PORT must be a whole number, got 'many'" in ended.stderr


# --- tables ---------------------------------------------------------------------------------------------------------

FLOW = """
[flow."https://api.example.org"]
rate = 10
[flow."https://*.example.org"]
parallel = 50
ordered = false
[flow."tenant-*"]
parallel = "auto"
"""
FLOW_JSON = (
    '{"https://api.example.org":{"rate":10.0},"https://*.example.org":{"parallel":50,"ordered":false},'
    '"tenant-*":{"parallel":"auto"}}'
)


def test_table_is_read_from_the_file_and_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_text(f"port = 7001\n{FLOW}")
    config = load({}, {})
    assert config.flow == FLOW_JSON
    assert config.port == 7001
    assert load({}, {"QTASK_FLOW": FLOW_JSON.replace("10.0", "20")}).flow == FLOW_JSON.replace("10.0", "20.0")
    assert load({}, {"QTASK_FLOW": ""}).flow == FLOW_JSON
    assert load({}, {"QTASK_FLOW": "{}"}).flow == "", "the environment removes the rules of the file"
    assert [rule.pattern for rule in config.flow_rules] == [
        "https://api.example.org",
        "https://*.example.org",
        "tenant-*",
    ]
    assert config.flow_rules[0].limits == Limits(rate=10)
    assert DEFAULTS.flow_rules == ()


def test_started_process_gets_the_tables(tmp_path: Path) -> None:
    (tmp_path / "qtask.toml").write_text(FLOW)
    config = load({}, {})
    (tmp_path / "qtask.toml").unlink()
    assert load({}, config.as_environment()) == config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("flow = 5", "flow in FILE must have a table of limits for each pattern, such as "),
        ("flow = 'https://a'", "flow in FILE must be JSON such as "),
        (
            "[flow]\nrate = 5",
            'flow in FILE: "rate": an object {…} is needed, got a whole number; its keys are: parallel',
        ),
        ('[flow.""]\nrate = 5', 'flow in FILE: "": a key is 1 to 400 printable ASCII characters, got 0 characters'),
        ('[flow."ä*"]\nrate = 5', 'flow in FILE: "ä*": a key is 1 to 400 printable ASCII characters'),
        (
            '[flow."a"]\nrates = 5',
            'flow in FILE: "a".rates: \'rates\' is not a key of "a"; its keys are: parallel, rate',
        ),
        ('[flow."a"]\nkey = "b"', "flow in FILE: \"a\".key: 'key' is not a key of"),
        ('[flow."a"]\nrate = 0', 'flow in FILE: "a".rate: a number above 0 and up to 1000000 is needed, got 0'),
        ('[flow."a"]\nrate = nan', 'flow in FILE: "a".rate: a number above 0 and up to 1000000 is needed, got nan'),
        ('[flow."a"]\nrate = true', 'flow in FILE: "a".rate: a number is needed, got true or false; deliveries that'),
        ('[flow."a"]\nrate = 2026-01-01', 'flow in FILE: "a".rate: a number is needed, got date'),
        (
            '[flow."a"]\nparallel = "some"',
            "flow in FILE: \"a\".parallel: 'some' is not allowed here; deliveries in flight",
        ),
        ('[flow."a"]\nburst = 5', 'flow in FILE: "a".burst: burst belongs to a rate; give a rate, or leave it out'),
        ('[flow."a"]\nordered = true\nparallel = 5', 'flow in FILE: "a".parallel: an ordered flow delivers one task'),
    ],
)
def test_error_in_a_table_names_pattern_and_field(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "qtask.toml"
    file.write_text(content)
    assert complaint().replace("qtask.toml", "FILE").startswith(words)
    rules = tomllib.loads(content)["flow"]
    if "2026" not in content and "nan" not in content:
        environment = {"QTASK_FLOW": rules if isinstance(rules, str) else json.dumps(rules)}
        assert complaint({}, environment).startswith(words.replace("flow in FILE", "QTASK_FLOW"))


def test_too_many_rules_are_rejected() -> None:
    many = {f"tenant-{number}": {"rate": 1} for number in range(1_001)}
    assert complaint({}, {"QTASK_FLOW": json.dumps(many)}) == (
        "QTASK_FLOW must have at most 1000 patterns, got 1001; use wildcards"
    )


# --- warnings ----------------------------------------------------------------------------------------------------

# What Kubernetes sets in every container next to a service with this name and these ports.
SERVICE_LINKS = {
    "QTASK_SERVICE_HOST": "10.0.0.7",
    "QTASK_SERVICE_PORT": "5123",
    "QTASK_SERVICE_PORT_SOCKET": "5123",
    "QTASK_PORT": "tcp://10.0.0.7:5123",
    "QTASK_PORT_5123_TCP": "tcp://10.0.0.7:5123",
    "QTASK_PORT_5123_TCP_PROTO": "tcp",
    "QTASK_PORT_5123_TCP_PORT": "5123",
    "QTASK_PORT_5123_TCP_ADDR": "10.0.0.7",
}
# The same for a service with the name `qtask-http`.
HTTP_SERVICE_LINKS = {name.replace("QTASK_", "QTASK_HTTP_", 1): value for name, value in SERVICE_LINKS.items()}


def test_variables_of_a_kubernetes_service_are_ignored(tmp_path: Path) -> None:
    environment = {**SERVICE_LINKS, **HTTP_SERVICE_LINKS}
    assert load({}, environment) == DEFAULTS
    (tmp_path / "qtask.toml").write_text("port = 7001\n")
    assert load({}, environment).port == 7001
    assert load({"http_port": 7002}, environment).http_port == 7002
    socket, http = concerns(environment)
    assert socket.startswith("QTASK_PORT=tcp://10.0.0.7:5123 is ignored: it is an address that Kubernetes sets")
    assert http.startswith("QTASK_HTTP_PORT=tcp://10.0.0.7:5123 is ignored: ")
    assert concerns({}) == concerns({"QTASK_PORT": "7000"}) == []


def test_only_ports_may_be_kubernetes_addresses() -> None:
    assert complaint({}, {"QTASK_WORKERS": "tcp://10.0.0.7:5123"}).startswith("QTASK_WORKERS must be a whole number")
    assert complaint({"port": "tcp://10.0.0.7:5123"}).startswith("--port must be a whole number")
    assert load({}, {"QTASK_REDIS_URL": "redis://r:1/2"}).redis_url == "redis://r:1/2"


@pytest.mark.parametrize(("mode", "url", "told"), [
    (0o644, "redis://:secret@r/0", True),
    (0o640, "redis://:secret@r/0", True),
    (0o600, "redis://:secret@r/0", False),
    (0o644, "redis://r/0", False),
])  # fmt: skip
def test_readable_file_with_a_password_causes_a_warning(tmp_path: Path, mode: int, url: str, told: bool) -> None:
    file = tmp_path / "qtask.toml"
    file.write_text(f'redis_url = "{url}"\n')
    file.chmod(mode)
    words = [f"{file} holds a password and other users can read it: run `chmod 600 {file}`"] if told else []
    assert concerns({}, file) == concerns({"QTASK_CONFIG": str(file)}) == words
    assert [sentence.replace("qtask.toml", str(file)) for sentence in concerns({})] == words


def test_processes_log_setting_warnings_once_and_commands_print_them(tmp_path: Path) -> None:
    environment = {**SERVICE_LINKS, "QTASK_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    for name in ("worker", "scheduler"):
        process = Process(name, environment, tmp_path / f"{name}.log")
        until(lambda log=process.log: "redis_away" in log.read_text(), 30, "its attempt to connect")  # type: ignore[misc]
        assert process.stop() == 0
        (event,) = [json.loads(line) for line in process.log.read_text().splitlines() if "QTASK_PORT" in line]
        assert (event["level"], event["event"]) == ("warning", "setting")
    result = qtask("health", "worker", environment=environment)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(
        "qtask: QTASK_PORT=tcp://10.0.0.7:5123 is ignored"
    )
