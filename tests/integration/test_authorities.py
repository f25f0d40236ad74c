"""The setting `ca_file`: which authorities are trusted, and the error about a file that has none."""

from __future__ import annotations

from pathlib import Path

import certifi
import pytest

from qtask.delivery.authorities import ca_bundle, check_ca_file
from qtask.model.errors import ConfigError
from tests.support.certificates import self_signed
from tests.support.command import qtask


def test_setting_overrides_environment_overrides_default() -> None:
    environment = {"CURL_CA_BUNDLE": "/c", "REQUESTS_CA_BUNDLE": "/r", "SSL_CERT_FILE": "/s"}
    assert ca_bundle("/mine", environment) == Path("/mine")
    for name, path in (("REQUESTS_CA_BUNDLE", "/r"), ("CURL_CA_BUNDLE", "/c"), ("SSL_CERT_FILE", "/s")):
        assert ca_bundle("", environment) == Path(path)
        environment[name] = ""
    assert ca_bundle("", environment) == Path(certifi.where())


def test_file_or_folder_with_certificates_is_accepted(tmp_path: Path) -> None:
    self_signed(tmp_path)
    for sound in ("", certifi.where(), str(tmp_path / "certificate.pem"), str(tmp_path)):
        check_ca_file(sound)


def test_unusable_ca_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    empty = tmp_path / "empty"
    empty.mkdir()
    reasons = {tmp_path / "absent.pem": "No such file", text: "certificate", empty: "the folder is empty"}
    for path, reason in reasons.items():
        with pytest.raises(ConfigError, match=reason) as error:
            check_ca_file(str(path))
        assert f"ca_file must be a PEM file, or a folder, of certificates, got '{path}'" in str(error.value)


@pytest.mark.parametrize("command", ["worker", "up"])
def test_process_exits_with_an_error_about_an_unusable_ca_file(command: str, tmp_path: Path) -> None:
    ended = qtask(command, "--ca-file", "absent.pem", environment={"QTASK_LOG_FORMAT": "human"}, cwd=tmp_path)
    assert ended.returncode == 1
    assert "ca_file must be a PEM file" in ended.stderr
    assert "Traceback" not in ended.stderr
