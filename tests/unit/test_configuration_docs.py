"""docs/configuration.md compared with `qtask.config.Config` and the flags of the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

from qtask.cli.main import cli
from qtask.config import Config, environment_name, flag_name, is_table, load
from qtask.model.errors import ConfigError
from tests.support.documents import ROOT

IN_TABLE = [setting.name for setting in fields(Config) if not is_table(setting.name)]
DOCUMENT = ROOT / "docs" / "configuration.md"
TEXT = DOCUMENT.read_text()


def commands_of(name: str) -> str:
    """The commands that have the flag of a setting, in the words of the table."""
    flag = flag_name(name)
    taking = {
        command
        for command, found in cli.commands.items()
        if any(flag in option.opts for option in _parameters_of(found))
    }
    if len(taking) > len(cli.commands) / 2:
        return f"all but {_in_order(set(cli.commands) - taking)}"
    return _in_order(taking)


def _parameters_of(command: click.Command) -> list[click.Parameter]:
    """The parameters of a command; of a group, those of its commands."""
    if isinstance(command, click.Group):
        return [parameter for one in command.commands.values() for parameter in one.params]
    return command.params


def _in_order(commands: set[str]) -> str:
    return ", ".join(f"`{command}`" for command in cli.commands if command in commands)


def expected_row(setting: str) -> str:
    """The row that the table must have for a setting."""
    (found,) = (one for one in fields(Config) if one.name == setting)
    low, high = found.metadata["low"], found.metadata["high"]
    bounds = f"; {low:,} to {high:,}".replace(",", " ") if low is not None else ""
    default = f"`{found.default}`" if found.default != "" else "empty"
    cells = (
        f"`{flag_name(setting)}`",
        f"`{environment_name(setting)}`",
        f"`{setting}`",
        default,
        found.metadata["about"] + bounds,
        commands_of(setting),
    )
    return f"| {' | '.join(cells)} |"


def table_rows() -> list[str]:
    section = TEXT[TEXT.index("## The settings") : TEXT.index("## Three more")]
    return [line for line in section.splitlines() if line.startswith("| `--")]


@pytest.mark.parametrize("name", IN_TABLE)
def test_row_of_each_setting_is_correct(name: str) -> None:
    assert expected_row(name) in table_rows()


def test_table_has_no_extra_rows() -> None:
    assert len(table_rows()) == len(IN_TABLE)


def test_every_flag_of_a_setting_is_in_the_table() -> None:
    told = {flag_name(name) for name in IN_TABLE} | {"--config"}
    for name, command in cli.commands.items():
        for parameter in _parameters_of(command):
            for flag in parameter.opts:
                if flag in told:
                    assert f"`{flag}`" in TEXT, (name, flag)


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_example_file_is_loaded_as_documented(tmp_path: Path) -> None:
    example = examples("toml")[-1]
    file = tmp_path / "qtask.toml"
    file.write_text(example)
    config = load(environment={}, file=file)
    given = re.findall(r"^(\w+) =", example, re.MULTILINE)
    assert len(given) >= 5
    assert all(getattr(config, name) != getattr(Config(), name) for name in given), "the example repeats a default"


def test_flags_override_environment_overrides_file_overrides_default(tmp_path: Path) -> None:
    file = tmp_path / "qtask.toml"
    file.write_text("port = 1\nhttp_port = 2\nworkers = 3\n")
    environment = {"QTASK_PORT": "4", "QTASK_HTTP_PORT": "5", "QTASK_CONFIG": str(file)}
    config = load({"port": 6, "http_port": None}, environment)
    assert (config.port, config.http_port, config.workers, config.queue) == (6, 5, 3, "qtask")


def test_documented_error_messages_are_correct(tmp_path: Path) -> None:
    file = tmp_path / "qtask.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(ConfigError, match=r"'prot' in .* is not a setting; the settings are: .*port"):
        load(environment={}, file=file)
    with pytest.raises(ConfigError, match="QTASK_PORT must be from 0 to 65535, got '70000'"):
        load(environment={"QTASK_PORT": "70000"})


def test_tables_are_documented(tmp_path: Path) -> None:
    section = TEXT[TEXT.index("## Limits of flows") : TEXT.index("## Three more")]
    for name in (setting.name for setting in fields(Config) if is_table(setting.name)):
        assert f"`[{name}]`" in section and f"`{environment_name(name)}`" in section
    (example,) = re.findall(r"^```toml\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (in_environment,) = re.findall(r"^```json\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    file = tmp_path / "qtask.toml"
    file.write_text(example)
    rules = load(environment={}, file=file).flow_rules
    assert len(rules) == 4
    assert load(environment={"QTASK_FLOW": in_environment}).flow_rules == rules
