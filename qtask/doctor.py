"""`qtask doctor`: what is wrong with this installation, in words, each with what to do."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Literal

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from qtask.config import Config
from qtask.embedded import reachable_url
from qtask.errors import QTaskError, without_extra
from qtask.store import keys
from qtask.store.connect import connect, require
from qtask.timing import format_duration

HEARTBEAT_SECONDS = 10.0  # without one for so long, a worker does not count as alive
OVERDUE_SECONDS = 5.0
CLOCK_SECONDS = 1.0
NEARLY_FULL = 0.9  # of what Redis may take
ANSWER_SECONDS = 2.0
_OTHER_PORT = "give QTask another port with --port"
_OTHER_HTTP_PORT = "give QTask another port with --http-port"

Level = Literal["fine", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to do when it is not fine."""

    level: Level
    what: str
    advice: str = ""

    def as_line(self) -> str:
        """For people."""
        mark = {"fine": "ok  ", "note": "note", "wrong": "BAD "}[self.level]
        return f"{mark}  {self.what}" + (f"\n      {self.advice}" if self.advice else "")

    def as_dict(self) -> dict[str, str]:
        """For programs."""
        return {"level": self.level, "what": self.what, "advice": self.advice}


def examine(config: Config) -> list[Finding]:
    """Looks at everything that can be looked at from here."""
    findings = [_python(), *_packages(), _pipes(config), _gateway(config, "note"), _http(config)]
    redis = _redis(config)
    if isinstance(redis, Finding):
        return [*findings, redis]
    looks = (_redis_version, _eviction, _memory, _durability, _clock, _workers, _scheduler, _overdue)
    return findings + [_guarded(look, redis) for look in looks]


def health(config: Config, process: str) -> Finding:
    """Whether one process of this host is well: the gateway answers, a scheduler or worker has lately told so."""
    if process == "gateway":
        return _gateway(config, "wrong")
    redis = _redis(config)
    if isinstance(redis, Finding):
        return redis
    return _guarded(_workers if process == "worker" else _scheduler, redis)


def _redis(config: Config) -> Redis | Finding:
    try:
        url = reachable_url(config)
        redis = connect(url, timeout=5.0)
        require(redis, url)
    except QTaskError as error:
        return Finding("wrong", str(error), "qtask up brings a Redis of its own")
    return redis


def _guarded(look: Callable[[Redis], Finding], redis: Redis) -> Finding:
    try:
        return look(redis)
    except (RedisError, OSError) as error:
        return Finding("wrong", f"Redis does not allow a look: {error}")


def _python() -> Finding:
    here = ".".join(map(str, sys.version_info[:3]))
    return Finding("fine", f"Python {here}")


def _packages() -> Iterator[Finding]:
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        yield Finding("note", without_extra(error))
        return
    try:
        wanted = [Requirement(line) for line in requires("qtask") or ()]
    except PackageNotFoundError:
        yield Finding(
            "note", "qtask runs from its source and is not installed", "pip install '.[server]' makes it whole"
        )
        return
    here = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": "server"})]
    bad = False
    for requirement in here:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            bad = True
            yield Finding("wrong", f"the package {requirement.name} is missing", f"pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            bad = True
            yield Finding("wrong", f"{requirement.name} {found} does not fit", f"pip install '{requirement}'")
    if not bad:
        yield Finding("fine", f"{len(here)} packages in fitting versions")


def _pipes(config: Config) -> Finding:
    folder = config.pipes
    if not folder.is_dir():
        advice = "make it, or name another with --pipe-dir"
        return Finding("note", f"the pipe folder {folder} does not exist: no pipe can be delivered to", advice)
    if not os.access(folder, os.X_OK | os.R_OK):
        return Finding("wrong", f"the pipe folder {folder} cannot be entered", "mend its permissions")
    return Finding("fine", f"the pipe folder {folder} can be used")


def _gateway(config: Config, when_silent: Level) -> Finding:
    place = f"{config.host}:{config.port}"
    try:
        with socket.create_connection((config.local_host, config.port), ANSWER_SECONDS) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(b"[]\n")
            answer = connection.recv(100)
    except ConnectionRefusedError as error:
        return Finding(when_silent, f"no gateway answers on {place}: {error.strerror}", "qtask up starts one")
    except OSError as error:
        return Finding("wrong", f"what listens on {place} does not answer as a gateway does: {error}", _OTHER_PORT)
    if answer != b"[]\n":
        return Finding("wrong", f"something else than a gateway answers on {place}", _OTHER_PORT)
    return Finding("fine", f"a gateway answers on {place}")


def _http(config: Config) -> Finding:
    place = f"{config.host}:{config.http_port}"
    connection = HTTPConnection(config.local_host, config.http_port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read(10_000))
    except ConnectionRefusedError as error:
        return Finding("note", f"no gateway answers over HTTP on {place}: {error.strerror}", "qtask up starts one")
    except (OSError, HTTPException, ValueError):
        answer = None
    finally:
        connection.close()
    if not isinstance(answer, dict) or "ok" not in answer:
        return Finding("wrong", f"something else than a gateway answers over HTTP on {place}", _OTHER_HTTP_PORT)
    if not answer["ok"]:
        said = answer.get("error")
        words = said.get("message") if isinstance(said, dict) else said
        return Finding("wrong", f"the gateway on {place} is not well: {words}")
    return Finding("fine", f"a gateway answers over HTTP on {place}")


def _redis_version(redis: Redis) -> Finding:
    about = redis.info("server")
    found = str(about["redis_version"])  # Valkey says here with which Redis it is compatible
    if tuple(map(int, found.split(".")[:2])) < (6, 2):
        return Finding("wrong", f"Redis {found} is too old", "QTask needs 6.2 or newer, or Valkey")
    return Finding("fine", f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {found}")


def _eviction(redis: Redis) -> Finding:
    policy = str(redis.info("memory").get("maxmemory_policy", "?"))
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction"
        return Finding(
            "wrong", f"this Redis may throw tasks away when memory is short (maxmemory-policy {policy})", advice
        )
    return Finding("fine", "this Redis throws nothing away (maxmemory-policy noeviction)")


def _memory(redis: Redis) -> Finding:
    memory = redis.info("memory")
    used, most = int(memory["used_memory"]) // 1_048_576, int(memory.get("maxmemory", 0)) // 1_048_576
    if not most:
        advice = "CONFIG SET maxmemory to what the host can spare; then tasks are refused, and none is lost"
        return Finding("note", "this Redis may take all memory of its host, which then ends it (maxmemory 0)", advice)
    words = f"this Redis uses {used} MiB of the {most} MiB that it may"
    if used > most * NEARLY_FULL:
        advice = "when it is full no task is accepted: give it more (maxmemory), or remove what is dead"
        return Finding("wrong", words, advice)
    return Finding("fine", words)


def _durability(redis: Redis) -> Finding:
    persistence = redis.info("persistence")
    if not persistence.get("aof_enabled"):
        advice = "CONFIG SET appendonly yes, and write it into redis.conf"
        return Finding("wrong", "tasks are lost when Redis restarts: it keeps no append-only file", advice)
    if persistence.get("aof_last_write_status") != "ok":
        return Finding("wrong", "Redis cannot write its append-only file", "look at its log; the disk may be full")
    try:
        kept = {**redis.config_get("appendfsync"), **redis.config_get("no-appendfsync-on-rewrite")}
    except ResponseError:  # who hosts Redis for others often hides its settings
        return Finding("fine", "Redis keeps an append-only file, and does not tell how well")
    return _syncing(str(kept.get("appendfsync")), kept.get("no-appendfsync-on-rewrite") == "yes")


def _syncing(when: str, pauses: bool) -> Finding:
    lost = {"everysec": "the last second", "no": "the last half minute"}.get(when)
    if lost is not None:
        advice = "CONFIG SET appendfsync always, and write it into redis.conf; or leave it, which is faster"
        what = f"Redis keeps an append-only file, of which a power cut may take {lost} (appendfsync {when})"
        return Finding("note", what, advice)
    if pauses:
        advice = "CONFIG SET no-appendfsync-on-rewrite no, and write it into redis.conf"
        return Finding(
            "note", "Redis keeps an append-only file, but not forced onto the disk while it rewrites it", advice
        )
    return Finding("fine", "Redis keeps an append-only file, forced onto the disk before it answers")


def _clock(redis: Redis) -> Finding:
    before = time.time()
    seconds, microseconds = redis.time()
    difference = seconds + microseconds / 1e6 - (before + time.time()) / 2
    words = f"the clocks of this host and of Redis differ by {format_duration(abs(difference))}"
    if abs(difference) > CLOCK_SECONDS:
        return Finding("note", words, "due instants go by Redis's clock; set both by NTP")
    return Finding("fine", words)


def _workers(redis: Redis) -> Finding:
    seconds, _ = redis.time()
    alive = redis.zcount(keys.WORKERS, seconds - HEARTBEAT_SECONDS, "+inf")
    if not alive:
        stock = redis.scard("rq:workers")
        if stock:
            return Finding("note", f"no worker of QTask's is alive, but {stock} of RQ's are registered")
        return Finding("wrong", "no worker is alive: nothing is delivered", "start one with `qtask worker`")
    return Finding("fine", "1 worker is alive" if alive == 1 else f"{alive} workers are alive")


def _scheduler(redis: Redis) -> Finding:
    holder = redis.get(keys.SCHEDULER_LOCK)
    if holder is None:
        return Finding("wrong", "no scheduler is alive: nothing becomes due", "start one with `qtask scheduler`")
    return Finding("fine", "a scheduler is alive" if holder == b"qtask" else "a stock rqscheduler is at work")


def _overdue(redis: Redis) -> Finding:
    seconds, _ = redis.time()
    late = redis.zcount(keys.SCHEDULE, "-inf", seconds - OVERDUE_SECONDS)
    if late:
        return Finding(
            "wrong", f"overdue by more than {OVERDUE_SECONDS:g} s, and not released: {late}", "is a scheduler alive?"
        )
    return Finding("fine", f"no task is overdue; in the schedule: {redis.zcard(keys.SCHEDULE)}")
