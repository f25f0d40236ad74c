"""The authorities whose certificates are trusted over TLS, chosen in one place for all destinations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import certifi

from qtask.model.errors import ConfigError

# The last is OpenSSL's. Some systems set it for all programs, so the variables of HTTP clients have precedence.
_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def ca_bundle(ca_file: str, environment: Mapping[str, str] | None = None) -> Path:
    """The PEM file, or the folder of certificates, with the authorities to trust.

    Args:
        ca_file: the setting. If it is empty, the first variable of the environment that is set, else certifi's file.
        environment: as `os.environ`, which is the default.
    """
    environment = os.environ if environment is None else environment
    named = ca_file or next((path for name in _VARIABLES if (path := environment.get(name))), "")
    return Path(named or certifi.where())


def check_ca_file(ca_file: str) -> None:
    """Raises `ConfigError` if the setting `ca_file` is not a file or folder with certificates; empty is allowed."""
    if not ca_file:
        return
    import ssl  # a worker that delivers only over plain HTTP does not need it

    path = Path(ca_file)
    try:
        if path.is_dir():
            if not os.listdir(path):
                raise OSError("the folder is empty")
        else:
            ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"ca_file must be a PEM file, or a folder, of certificates, got {ca_file!r}: {reason}"
        ) from None
