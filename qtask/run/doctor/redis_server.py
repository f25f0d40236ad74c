"""Redis itself: its version, role, memory, durability, clock, and the rights of our user."""

from __future__ import annotations

import time

from redis.exceptions import ResponseError

from qtask.model.timing import format_duration
from qtask.run.doctor.finding import Examined, Finding, Level
from qtask.run.doctor.processes import workers
from qtask.store import health, rights

CLOCK_SECONDS = 1.0  # by which the clocks may differ
NEARLY_FULL = 0.9  # of maxmemory


def version(here: Examined) -> Finding:
    """The server and its version, and whether it is new and fast enough."""
    about = here.redis.info("server")
    found = str(about["redis_version"])  # of Valkey, the version of Redis that it is compatible with
    if tuple(map(int, found.split(".")[:2])) < (6, 2):
        return Finding("wrong", f"Redis {found} is too old", "QTask needs 6.2 or newer, or Valkey")
    name = f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {found}"
    # Measured with QTask: a server that is built with libc's allocator needs 50 % more time per task.
    if str(here.redis.info("memory").get("mem_allocator", "")).startswith("libc"):
        advice = (
            "a server built with jemalloc, as those of Linux distributions are, serves a burst about a third faster; "
            "to keep the data it must be the same product and at least as new"
        )
        return Finding("note", f"{name}, built with libc's memory allocator", advice)
    return Finding("fine", name)


def mode(here: Examined) -> Finding:
    """Whether it is a master, and not in cluster mode."""
    if here.redis.info("server").get("redis_mode") == "cluster":
        advice = "use one with cluster-enabled no, or Sentinel for failover"
        return Finding("wrong", "this Redis runs in cluster mode, which QTask does not support", advice)
    about = here.redis.info("replication")
    if about["role"] != "master":
        master = f"{about.get('master_host')}:{about.get('master_port')}"
        advice = f"use the address of its master ({master}), or that of the sentinels"
        return Finding("wrong", f"this Redis is a replica of {master}: it accepts no tasks", advice)
    return Finding("fine", "this Redis is a master, not a replica or a cluster")


def eviction(here: Examined) -> Finding:
    """Whether it may evict tasks."""
    policy = str(here.redis.info("memory")["maxmemory_policy"])
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction"
        return Finding("wrong", f"this Redis may evict tasks when memory is short (maxmemory-policy {policy})", advice)
    return Finding("fine", "this Redis evicts nothing (maxmemory-policy noeviction)")


def memory(here: Examined) -> Finding:
    """Whether its memory is limited and nearly full."""
    figures = here.redis.info("memory")
    used, limit = int(figures["used_memory"]) // 1_048_576, int(figures["maxmemory"]) // 1_048_576
    if not limit:
        advice = (
            "CONFIG SET maxmemory to what the host can spare; when it is reached, tasks are refused and none is lost"
        )
        return Finding("note", "this Redis may use all memory of its host, which then kills it (maxmemory 0)", advice)
    words = f"this Redis uses {used} MiB of the {limit} MiB that it may use"
    if used > limit * NEARLY_FULL:
        advice = "when it is full, no task is accepted: raise maxmemory, or remove dead letters"
        return Finding("wrong", words, advice)
    return Finding("fine", words)


def durability(here: Examined) -> Finding:
    """What would be lost in a restart or a power cut."""
    persistence = here.redis.info("persistence")
    if not persistence.get("aof_enabled"):
        advice = "CONFIG SET appendonly yes, and add it to redis.conf"
        return Finding("wrong", "tasks are lost when Redis restarts: it keeps no append-only file", advice)
    if persistence.get("aof_last_write_status") != "ok":
        words = "Redis cannot write its append-only file, so it accepts no tasks (MISCONF)"
        return Finding(
            "wrong", words, "check its log; the disk may be full: free some space, and it recovers without a restart"
        )
    try:
        kept = {**here.redis.config_get("appendfsync"), **here.redis.config_get("no-appendfsync-on-rewrite")}
    except ResponseError:  # hosted Redis services often hide the settings
        return Finding("note", "Redis keeps an append-only file; when it is synced to the disk was not checked")
    return _when_synced(str(kept.get("appendfsync")), kept.get("no-appendfsync-on-rewrite") == "yes")


def _when_synced(when: str, pauses: bool) -> Finding:
    lost = {"everysec": "the last second", "no": "the last half minute"}.get(when)
    if lost is not None:
        advice = "CONFIG SET appendfsync always, and add it to redis.conf; or leave it, which is faster"
        what = f"Redis keeps an append-only file, but a power cut may lose {lost} (appendfsync {when})"
        return Finding("note", what, advice)
    if pauses:
        advice = "CONFIG SET no-appendfsync-on-rewrite no, and add it to redis.conf"
        return Finding(
            "note", "Redis keeps an append-only file, but does not sync it to the disk during a rewrite", advice
        )
    return Finding("fine", "Redis keeps an append-only file and syncs it to the disk before it answers")


def clock(here: Examined) -> Finding:
    """Whether the clocks of this host and of Redis agree."""
    before = time.time()
    seconds, microseconds = here.redis.time()
    difference = seconds + microseconds / 1e6 - (before + time.time()) / 2
    words = f"the clocks of this host and of Redis differ by {format_duration(abs(difference))}"
    if abs(difference) > CLOCK_SECONDS:
        return Finding("note", words, "due instants use Redis's clock; synchronise both with NTP")
    return Finding("fine", words)


def user_rights(here: Examined) -> list[Finding]:
    """Which rights the user of this address lacks, for each process that may run as that user."""
    findings = []
    for role in rights.ROLES:
        if role == "inbox":
            continue
        _, lacking = rights.look(here.redis, role)
        if lacking:
            level: Level = "wrong" if role == "reader" or not _runs(here, role) else "note"
            advice = f"grant the rights of a {role} in docs/deployment.md, or run it as another user of Redis"
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            findings.append(Finding(level, f"for a {role}: {lacking[0]}{more}", advice))
    return findings or [Finding("fine", "the user of this address has all rights in Redis that QTask needs")]


def _runs(here: Examined, role: rights.Role) -> bool:
    """Whether such a process is alive; then it has its rights, possibly as another user."""
    if role == "worker":
        return workers(here).level == "fine"
    if role == "gateway":
        return here.gateway_answers
    return role == "client" or health.has_scheduler(here.redis)
