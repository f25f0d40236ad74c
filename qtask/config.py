"""Every setting of QTask in one table, read from flags, the environment and `qtask.toml`, in that order.

Each setting has the same name in all three: the field `http_port` below is `--http-port`, `QTASK_HTTP_PORT` and
`http_port = …`. The only short form is `--redis` for `redis_url`. A table of the file, such as `[flow]`, has no flag,
and is JSON in the environment. Nothing is read at import time.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtask.model.errors import ConfigError
from qtask.model.timing import DURATION_FORMS, parse_duration

if TYPE_CHECKING:
    from qtask.model.flow_rule import FlowRule

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
FILE_NAME = "qtask.toml"
FILE_VARIABLE = "QTASK_CONFIG"  # names another file


def _setting(
    default: Any,
    about: str,
    low: float | None = None,
    high: float | None = None,
    *,
    secret: bool = False,
    table: bool = False,
) -> Any:
    return field(default=default, repr=not secret, metadata={"about": about, "low": low, "high": high, "table": table})


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process; the `about` of each field describes it, with its unit."""

    redis_url: str = _setting(
        "", f"address of Redis; empty: `up` starts its own, others use {DEFAULT_REDIS_URL}", secret=True
    )
    host: str = _setting("127.0.0.1", "address on which the gateway listens")
    port: int = _setting(5123, "port of the gateway's socket; 0 lets the system choose", 0, 65535)
    http_port: int = _setting(5124, "port of the gateway's HTTP; 0 lets the system choose", 0, 65535)
    allowed_hosts: str = _setting(
        "",
        "names that the gateway's HTTP serves in addition to loopback names, separated by commas; `*.NAME` and `*` too",
    )
    workers: int = _setting(1, "worker processes that `up` starts", 1, 256)
    concurrency: int = _setting(1000, "deliveries in flight in one worker process", 1, 50_000)
    host_connections: int = _setting(
        0, "connections that one worker process has to one HTTP host at once; 0: as many as `concurrency`", 0, 50_000
    )
    processes: int = _setting(1, "processes of `qtask worker`, one per core", 1, 256)
    data_dir: str = _setting("qtask-data", "folder of the embedded Redis")
    redis_memory_mib: int = _setting(
        0, "memory that the embedded Redis may use, in MiB; 0: half of this machine's", 0, 16_777_216
    )
    pipe_dir: str = _setting("", "folder of the pipes; empty: `pipes` in data_dir")
    ca_file: str = _setting(
        "",
        "PEM file of trusted certificate authorities for TLS, or a folder made by `c_rehash`; empty: "
        "`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` or `SSL_CERT_FILE`, else the authorities that browsers trust",
    )
    queue: str = _setting(
        "qtask", "name of the queue of tasks that name none; for `worker` also several, as in `queues`"
    )
    queues: str = _setting(
        "", "queues that workers serve, such as `critical,default:3,bulk:1`; empty: the one of `queue`"
    )
    max_bytes: int = _setting(1_048_576, "largest dict that is accepted, in bytes", 256, 67_108_864)
    max_held_bytes: int = _setting(
        268_435_456,
        "unfinished texts and unread answers that the gateway holds for all clients together, in bytes; it is never "
        "less than twice the largest array",
        1_048_576,
        1_099_511_627_776,
    )
    max_connections: int = _setting(4_096, "connections that the gateway serves at once", 1, 1_000_000)
    idle_seconds: float = _setting(
        300.0, "seconds without a byte after which the gateway closes a connection", 0.1, 86_400
    )
    accept_retry_seconds: float = _setting(
        1.0,
        "seconds for which the gateway retries when Redis does not accept a task, before it answers `unavailable`",
        0,
        3_600,
    )
    wait_replicas: int = _setting(0, "replicas of Redis that must hold a task before it counts as accepted", 0, 100)
    retention_count: int = _setting(10_000, "delivered tasks that are kept, 0 to keep none", 0, 10_000_000)
    retention_seconds: int = _setting(86_400, "seconds for which delivered tasks are kept", 1, 31_536_000)
    dead_retention_count: int = _setting(0, "dead letters that are kept, the newest ones; 0 keeps all", 0, 10_000_000)
    idempotency_seconds: int = _setting(
        86_400,
        "seconds after its delivery during which a second task with the same id, chosen by a client, is a duplicate",
        1,
        31_536_000,
    )
    flow: str = _setting("", "default limits of flows, by patterns of their names", table=True)
    flow_rest_cap: float = _setting(
        3_600.0, "longest rest of a flow that a receiver asks for by `Retry-After`, in seconds; 0 for none", 0, 86_400
    )
    circuit_breaker: int = _setting(
        20,
        "outcomes of a flow in the last minute from which its circuit breaker opens if 80 % of them failed; 0 turns it "
        "off",
        0,
        1_000_000,
    )
    flow_parallel_limit: int = _setting(
        1_000, "most deliveries in flight of a flow with `parallel: auto`, over all workers", 5, 100_000
    )
    stats_retention_count: int = _setting(
        50_000, "outcomes per type of destination that statistics use", 100, 10_000_000
    )
    stats_retention_seconds: int = _setting(604_800, "seconds for which statistics use an outcome", 1, 31_536_000)
    mask_headers: str = _setting(
        "", "names of further headers and query parameters whose values are never shown, such as `X-Session, *-Pin`"
    )
    log_level: str = _setting("info", "debug, info, warning or error")
    log_format: str = _setting("auto", "human, json, or auto: human on a terminal, else json")

    @property
    def redis(self) -> str:
        """The address of Redis, with the default filled in."""
        return self.redis_url or DEFAULT_REDIS_URL

    @property
    def local_host(self) -> str:
        """The address at which processes of this machine reach the gateway: `host`, or loopback for all addresses."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def pipes(self) -> Path:
        """The folder of the pipes, with the default filled in."""
        return Path(self.pipe_dir) if self.pipe_dir else Path(self.data_dir) / "pipes"

    @property
    def flow_rules(self) -> tuple[FlowRule, ...]:
        """The default limits of flows."""
        if not self.flow:
            return ()
        from qtask.model.flow_rule import check_rules  # imported here, because few processes need it

        return check_rules(self.flow, "flow")

    def as_environment(self) -> dict[str, str]:
        """All settings as environment variables, for a process with the same settings that reads no file."""
        settings = {environment_name(setting.name): str(getattr(self, setting.name)) for setting in fields(self)}
        return settings | {FILE_VARIABLE: os.devnull}


def in_url(host: str) -> str:
    """A host as written before `:PORT`: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host


def environment_name(name: str) -> str:
    """`http_port` → `QTASK_HTTP_PORT`."""
    return f"QTASK_{name.upper()}"


def flag_name(name: str) -> str:
    """`http_port` → `--http-port`; `redis_url` → `--redis`. A table has none."""
    return "--redis" if name == "redis_url" else "--" + name.replace("_", "-")


def is_table(name: str) -> bool:
    """Whether a setting is a table of the file. Its value in a `Config` is JSON."""
    return next(bool(setting.metadata["table"]) for setting in fields(Config) if setting.name == name)


def is_duration(name: str) -> bool:
    """Whether a setting is a duration, which may also be given as `10m`."""
    return name.endswith("_seconds") or name == "flow_rest_cap"


def load(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> Config:
    """Reads the settings: from flags first, then the environment, then the file, then the defaults.

    Args:
        flags: settings by field name; a value of None means that the flag was not given.
        environment: by default `os.environ`. An empty variable counts as not given, because compose files and scripts
            pass on unset variables as empty ones.
        file: path of a TOML file; by default `QTASK_CONFIG`, else `qtask.toml` if it exists.

    Raises `ConfigError`, which names the setting, its source and the valid values.
    """
    environment = os.environ if environment is None else environment
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    path = _file(file, environment)
    stored = _read_file(path) if path else {}
    values: dict[str, Any] = {}
    for setting in fields(Config):
        name = setting.name
        if name in given:
            values[name] = _convert(name, given[name], flag_name(name))
        elif environment.get(environment_name(name)) and not _is_service_link(name, environment):
            values[name] = _convert(name, environment[environment_name(name)], environment_name(name))
        elif name in stored:
            values[name] = _convert(name, stored[name], f"{name} in {path}")
    return Config(**values)


def concerns(environment: Mapping[str, str] | None = None, file: str | Path | None = None) -> list[str]:
    """Warnings about questionable settings that do not keep a process from running, one sentence each.

    Args:
        environment, file: as for `load`.
    """
    environment = os.environ if environment is None else environment
    found = [
        f"{environment_name(setting.name)}={environment[environment_name(setting.name)]} is ignored: it is an address "
        "that Kubernetes sets for a service of this name, not a port; set enableServiceLinks to false, or rename the "
        "service"
        for setting in fields(Config)
        if _is_service_link(setting.name, environment)
    ]
    path = _file(file, environment)
    with suppress(OSError, ConfigError):
        if path and path.stat().st_mode & 0o044 and "@" in str(_read_file(path).get("redis_url", "")):
            found.append(f"{path} holds a password and other users can read it: run `chmod 600 {path}`")
    return found


def _is_service_link(name: str, environment: Mapping[str, str]) -> bool:
    """Whether Kubernetes, or a link of Docker, set the variable of a port: `QTASK_PORT=tcp://10.0.0.7:5123`."""
    is_port = name == "port" or name.endswith("_port")
    return is_port and "://" in environment.get(environment_name(name), "")


def _file(file: str | Path | None, environment: Mapping[str, str]) -> Path | None:
    """The file to read settings from."""
    path = file or environment.get(FILE_VARIABLE) or (FILE_NAME if Path(FILE_NAME).is_file() else None)
    return Path(path) if path else None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte order mark
    except OSError as error:
        raise ConfigError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {path} is not TOML: {error}") from None
    known = {setting.name for setting in fields(Config)}
    for name in stored:
        if name not in known:
            raise ConfigError(f"{name!r} in {path} is not a setting; the settings are: {', '.join(sorted(known))}")
    return stored


def _convert(name: str, value: Any, source: str) -> Any:
    setting = next(setting for setting in fields(Config) if setting.name == name)
    wanted: Any = type(setting.default)
    if setting.metadata["table"]:
        from qtask.model.flow_rule import check_rules, encode_rules

        rules = check_rules(value, source)
        return encode_rules(rules) if rules else ""
    if wanted is str:
        if not isinstance(value, str):
            got = repr(value) if setting.repr else type(value).__name__
            raise ConfigError(f"{source} must be text, got {got}")
        if setting.default and not value.strip():
            # With an empty host the gateway would listen on all addresses. An empty folder is the working directory.
            raise ConfigError(f"{source} must not be empty; leave it out for {setting.default!r}")
        return value
    given, needed = value, DURATION_FORMS if is_duration(name) else "number"
    needed = f"whole {needed}" if wanted is int else needed
    try:
        if isinstance(value, bool):
            raise ValueError
        if is_duration(name) and isinstance(value, str):
            value = parse_duration(value)
        converted = wanted(value)
        if wanted is int and isinstance(value, float) and value != converted:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{source} must be {'' if is_duration(name) else 'a '}{needed}, got {given!r}") from None
    low, high = setting.metadata["low"], setting.metadata["high"]
    if not low <= converted <= high:
        raise ConfigError(f"{source} must be from {low} to {high}, got {given!r}")
    return converted
