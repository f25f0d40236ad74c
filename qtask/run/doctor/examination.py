"""`qtask doctor`: the list of checks, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from redis import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from qtask.config import Config
from qtask.model.errors import QTaskError
from qtask.run.doctor import backlog, data_folder, environment, flows, gateway, processes, redis_server
from qtask.run.doctor.finding import Examined, Finding
from qtask.run.embedded import reachable_url
from qtask.store.connect import connect, is_misconf, reason_of, trouble

REDIS_SECONDS = 5.0
_SILENT = "Redis has stopped answering, so the rest was not checked"

_Found = Finding | Iterable[Finding]

# Checks that need no Redis, in the order in which they are printed.
LOCAL_CHECKS: tuple[Callable[[Config], _Found], ...] = (
    environment.python_version,
    environment.packages,
    environment.pipe_folder,
    gateway.socket_answers,
    gateway.http_answers,
    data_folder.data_folder,
)

# Checks of a Redis that answers, and of its content.
REDIS_CHECKS: tuple[Callable[[Examined], _Found], ...] = (
    redis_server.version,
    redis_server.mode,
    redis_server.eviction,
    redis_server.memory,
    redis_server.durability,
    data_folder.redis_disk,
    redis_server.clock,
    processes.workers,
    processes.silent_workers,
    processes.schedulers,
    backlog.overdue,
    backlog.waiting_queues,
    flows.flows,
    backlog.dead_letters,
    backlog.refused_entries,
    redis_server.user_rights,
    gateway.same_redis,
)


def examine(config: Config) -> list[Finding]:
    """Runs all checks that are possible from this host."""
    local = {check: _as_list(check(config)) for check in LOCAL_CHECKS}
    findings = [finding for found in local.values() for finding in found]
    redis = _reach(config)
    if isinstance(redis, Finding):
        return [*findings, redis]
    here = Examined(config, redis, gateway_answers=local[gateway.socket_answers][0].level == "fine")
    for check in REDIS_CHECKS:
        found = _guarded(check, here)
        findings += found
        if any(finding.what == _SILENT for finding in found):
            break
    return findings


def _reach(config: Config) -> Redis | Finding:
    """A client of the Redis in the settings, or the reason why there is none."""
    try:
        url = reachable_url(config)
        redis = connect(url, timeout=REDIS_SECONDS)
    except QTaskError as error:
        return Finding("wrong", str(error), "qtask up starts its own Redis")
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        if is_misconf(error):
            return redis  # it still answers the checks
        what, advice = trouble(error, url)
        return Finding("wrong", what, "qtask up starts its own Redis" if what.startswith("no Redis") else advice)
    return redis


def _guarded(check: Callable[[Examined], _Found], here: Examined) -> list[Finding]:
    """The findings of a check, or a finding that Redis did not answer or does not allow it."""
    try:
        return _as_list(check(here))
    except (RedisTimeoutError, TimeoutError):
        return [
            Finding("wrong", _SILENT, "check its log, and whether it is stopped, swapping or running a long script")
        ]
    except (RedisError, OSError) as error:
        return [Finding("wrong", f"Redis does not allow the check: {reason_of(error)}")]
    except KeyError as error:  # hosted Redis services often hide figures
        return [Finding("note", f"Redis does not tell {error}, so that was not checked")]


def _as_list(found: _Found) -> list[Finding]:
    return [found] if isinstance(found, Finding) else list(found)
