"""`qtask doctor`: what is wrong with this installation, in words, each with what to do."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from redis import Redis
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from qtask.config import Config, in_url
from qtask.model.errors import QTaskError, without_extra
from qtask.model.redis_address import without_password
from qtask.model.timing import format_duration
from qtask.process import heartbeat
from qtask.run.embedded import ADDRESS_FILE, embedded_url, noted_url, reachable_url
from qtask.store import keys, rights, tasks
from qtask.store.connect import connect, is_misconf, reason_of, trouble

HEARTBEAT_SECONDS = 10.0  # without one for so long, a worker does not count as alive
OVERDUE_SECONDS = 5.0
CLOCK_SECONDS = 1.0
NEARLY_FULL = 0.9  # of what Redis may take
ANSWER_SECONDS = 2.0
HTTP_SECONDS = 7.0  # a gateway waits for Redis for five
REDIS_SECONDS = 5.0
WAITED_SECONDS = 10.0  # in a queue, after which the workers count as too slow
DISK_SHARE, DISK_MIB = 0.05, 200  # free on the disk of the data; with less of both it is nearly full
SCANS = 200  # of a thousand keys each, to find a stock rqscheduler
DEAD_LOOKED_AT = 500  # of the newest, for what they died of
_SILENT = "Redis has stopped answering, so the rest was not looked at"
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
    gateway = _gateway(config, "note")
    findings = [_python(), *_packages(), _pipes(config), gateway, _http(config), *_data_folder(config)]
    redis = _redis(config)
    if isinstance(redis, Finding):
        return [*findings, redis]
    looks: list[Callable[[Redis], Finding | list[Finding]]] = [
        *(_redis_version, _mode, _eviction, _memory, _durability, _disk, _clock),
        *(_workers, _still_workers, _any_scheduler, _overdue, partial(_queues, config)),
        *(partial(_dead, config), _refused, partial(_rights, gateway.level == "fine")),
    ]
    if gateway.level == "fine":
        looks.append(partial(_same_redis, config))
    for look in looks:
        found = _guarded(look, redis)
        findings += found
        if any(one.what == _SILENT for one in found):
            break
    return findings


def health(config: Config, process: str) -> Finding:
    """Whether the processes of one kind on this host, or in this container, are well.

    The gateway must answer. Schedulers and workers must have lately given a sign of life, which a process that hangs
    does not. None of this needs Redis: an orchestrator that restarted workers because Redis is away would make them
    forget the outcomes that they keep until it is back.
    """
    if process == "gateway":
        return _gateway(config, "wrong")
    try:
        url = config.redis_url or noted_url(Path(config.data_dir)) or config.redis
    except QTaskError as error:
        return Finding("wrong", str(error))
    living, wrong = heartbeat.troubles(process, url, config.queue)
    if wrong:
        return Finding("wrong", "; ".join(wrong), "end it with SIGKILL and start another")
    if not living:
        what = f"no {process} for queue {config.queue} of {without_password(url)} runs on this host"
        return Finding("wrong", what, f"start one with `qtask {process}`; this command needs the same settings")
    return Finding("fine", f"1 {process} is alive" if living == 1 else f"{living} {process} processes are alive")


def _redis(config: Config) -> Redis | Finding:
    try:
        url = reachable_url(config)
        redis = connect(url, timeout=REDIS_SECONDS)
    except QTaskError as error:
        return Finding("wrong", str(error), "qtask up brings a Redis of its own")
    try:
        redis.ping()
    except (RedisError, OSError) as error:
        if is_misconf(error):
            return redis  # it still tells what is wrong
        what, advice = trouble(error, url)
        return Finding("wrong", what, "qtask up brings a Redis of its own" if what.startswith("no Redis") else advice)
    return redis


def _guarded(look: Callable[[Redis], Finding | list[Finding]], redis: Redis) -> list[Finding]:
    try:
        found = look(redis)
    except (RedisTimeoutError, TimeoutError):
        return [Finding("wrong", _SILENT, "look at its log, and whether it is stopped, swaps or runs a long script")]
    except (RedisError, OSError) as error:
        return [Finding("wrong", f"Redis does not allow a look: {reason_of(error)}")]
    except KeyError as error:  # who hosts Redis for others often hides figures
        return [Finding("note", f"Redis does not tell {error}, so that was not looked at")]
    return found if isinstance(found, list) else [found]


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
    place = f"{in_url(config.host)}:{config.port}"
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
    place = f"{in_url(config.host)}:{config.http_port}"
    connection = HTTPConnection(config.local_host, config.http_port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = json.loads(connection.getresponse().read(10_000))
    except ConnectionRefusedError as error:
        return Finding("note", f"no gateway answers over HTTP on {place}: {error.strerror}", "qtask up starts one")
    except TimeoutError:
        words = f"what listens on {place} accepts connections and does not answer within {HTTP_SECONDS:g} s"
        advice = f"if it is a gateway, its process hangs: restart it; else {_OTHER_HTTP_PORT}"
        return Finding("wrong", words, advice)
    except (OSError, HTTPException, ValueError):
        answer = None
    finally:
        connection.close()
    if not isinstance(answer, dict) or "ok" not in answer:
        return Finding("wrong", f"something else than a gateway answers over HTTP on {place}", _OTHER_HTTP_PORT)
    if not answer["ok"]:
        said = answer.get("error")
        why = said.get("message") if isinstance(said, dict) else said
        return Finding("wrong", f"the gateway on {place} is not well: {why}", "look at the Redis that it uses")
    return Finding("fine", f"a gateway answers over HTTP on {place}")


def _redis_version(redis: Redis) -> Finding:
    about = redis.info("server")
    found = str(about["redis_version"])  # Valkey says here with which Redis it is compatible
    if tuple(map(int, found.split(".")[:2])) < (6, 2):
        return Finding("wrong", f"Redis {found} is too old", "QTask needs 6.2 or newer, or Valkey")
    name = f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {found}"
    # Measured with QTask: built with libc's allocator, a server needs half as much time again for a task.
    if str(redis.info("memory").get("mem_allocator", "")).startswith("libc"):
        advice = (
            "a server built with jemalloc, as those of Linux distributions are, serves a burst about a third faster; "
            "to keep the data it has to be of the same kind and at least as new"
        )
        return Finding("note", f"{name}, built with libc's memory allocator", advice)
    return Finding("fine", name)


def _eviction(redis: Redis) -> Finding:
    policy = str(redis.info("memory")["maxmemory_policy"])
    if policy != "noeviction":
        advice = "CONFIG SET maxmemory-policy noeviction"
        return Finding(
            "wrong", f"this Redis may throw tasks away when memory is short (maxmemory-policy {policy})", advice
        )
    return Finding("fine", "this Redis throws nothing away (maxmemory-policy noeviction)")


def _memory(redis: Redis) -> Finding:
    memory = redis.info("memory")
    used, most = int(memory["used_memory"]) // 1_048_576, int(memory["maxmemory"]) // 1_048_576
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
        words = "Redis cannot write its append-only file, so it takes no tasks (MISCONF)"
        return Finding("wrong", words, "look at its log; the disk may be full: make room, and it goes on by itself")
    try:
        kept = {**redis.config_get("appendfsync"), **redis.config_get("no-appendfsync-on-rewrite")}
    except ResponseError:  # who hosts Redis for others often hides its settings
        return Finding("note", "Redis keeps an append-only file; when it is forced onto the disk was not looked at")
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
            words = f"no worker of QTask's is alive, but {stock} of RQ's are registered"
            return Finding("note", words, "start one with `qtask worker`: it delivers many at once")
        return Finding("wrong", "no worker is alive: nothing is delivered", "start one with `qtask worker`")
    return Finding("fine", "1 worker is alive" if alive == 1 else f"{alive} workers are alive")


def _scheduler(redis: Redis) -> Finding:
    holder = redis.get(keys.SCHEDULER_LOCK)
    if holder is None:
        return Finding("wrong", "no scheduler is alive: nothing becomes due", "start one with `qtask scheduler`")
    if holder != b"qtask":
        return Finding("fine", "a stock rqscheduler is at work")
    return Finding("fine", "a scheduler is alive")


def _any_scheduler(redis: Redis) -> Finding:
    """As `_scheduler`, but also finds a stock rqscheduler, which holds the lock only while it looks for due tasks."""
    finding = _scheduler(redis)
    if finding.level == "wrong" and _has_stock_scheduler(redis):
        advice = "it looks for due tasks once a minute by default: stop it, and start `qtask scheduler`"
        return Finding("note", "a stock rqscheduler is at work, and no scheduler of QTask's: tasks are late", advice)
    return finding


def _has_stock_scheduler(redis: Redis) -> bool:
    cursor = 0
    for _ in range(SCANS):
        found: Any = redis.scan(cursor, match="rq:scheduler_instance:*", count=1_000)
        cursor, names = found
        if names:
            return True
        if not cursor:
            break
    return False


def _overdue(redis: Redis) -> Finding:
    seconds, _ = redis.time()
    late = redis.zcount(keys.SCHEDULE, "-inf", seconds - OVERDUE_SECONDS)
    if late:
        return Finding(
            "wrong", f"overdue by more than {OVERDUE_SECONDS:g} s, and not released: {late}", "is a scheduler alive?"
        )
    return Finding("fine", f"no task is overdue; in the schedule: {redis.zcard(keys.SCHEDULE)}")


def _data_folder(config: Config) -> Iterator[Finding]:
    """The folder by which commands find the Redis of a `qtask up`; nothing where a Redis is named."""
    if config.redis_url:
        return
    folder = Path(config.data_dir)
    where = f"{folder}" if folder.is_absolute() else f"{folder} in {Path.cwd()}"
    elsewhere = "name the folder of the `qtask up` that you mean with --data-dir, or run this where it runs"
    try:
        inside = sorted(entry.name for entry in folder.iterdir())
        (folder / ADDRESS_FILE).read_bytes()
    except NotADirectoryError:
        yield Finding("wrong", f"the data folder {where} is not a folder", elsewhere)
    except FileNotFoundError:
        if not folder.is_dir():
            yield Finding("note", f"there is no data folder {where}: no `qtask up` has run on it", elsewhere)
        elif inside and "appendonlydir" not in inside:
            yield Finding("wrong", f"{where} is not the data folder of a QTask", elsewhere)
        else:
            yield Finding("note", f"no `qtask up` has started its Redis on the data folder {where}", elsewhere)
    except PermissionError:
        yield Finding("wrong", f"this user may not read the data folder {where}", _run_as(folder))
    else:
        if not os.access(folder, os.W_OK):
            yield Finding("wrong", f"this user may not write to the data folder {where}", _run_as(folder))
        if not embedded_url(folder):
            yield Finding("note", f"the `qtask up` of the data folder {where} has ended", f"start it; or {elsewhere}")
        else:
            yield Finding("fine", f"a `qtask up` runs on the data folder {where}")
        yield _room(folder)


def _run_as(folder: Path) -> str:
    try:
        owner = folder.owner()
    except (KeyError, OSError):  # a user without a name
        owner = "its owner"
    return f"run this as {owner}, or choose another folder with --data-dir"


def _room(folder: Path) -> Finding:
    """How much room the disk has that holds the data of Redis."""
    disk = os.statvfs(folder)
    free, share = disk.f_bavail * disk.f_frsize // 1_048_576, disk.f_bavail / max(1, disk.f_blocks)
    words = f"the disk of {folder} has {free} MiB left ({share:.0%})"
    advice = "make room: when it is full, no task is accepted and no outcome is kept"
    if not disk.f_bavail:
        return Finding("wrong", f"the disk of {folder} is full", advice)
    if (share < DISK_SHARE and free < DISK_MIB * 10) or (free < DISK_MIB and share < 0.5):
        return Finding("wrong", f"{words}: it is nearly full", advice)
    return Finding("fine", words)


def _disk(redis: Redis) -> list[Finding]:
    """The disk of a Redis of this host that is not a `qtask up` on the data folder."""
    kwargs = redis.connection_pool.connection_kwargs
    if "path" not in kwargs and kwargs.get("host") not in ("127.0.0.1", "::1", "localhost"):
        return [Finding("note", "Redis runs on another host, whose disk was not looked at")]
    try:
        return [_room(Path(str(redis.config_get("dir")["dir"])))]
    except (ResponseError, KeyError, OSError):
        return [Finding("note", "the disk of Redis was not looked at: its folder is not told, or not found here")]


def _mode(redis: Redis) -> Finding:
    if redis.info("server").get("redis_mode") == "cluster":
        advice = "use one with cluster-enabled no, or Sentinel for failover"
        return Finding("wrong", "this Redis runs in cluster mode, which QTask does not support", advice)
    about = redis.info("replication")
    if about["role"] != "master":
        master = f"{about.get('master_host')}:{about.get('master_port')}"
        advice = f"use the address of its master ({master}), or that of the sentinels"
        return Finding("wrong", f"this Redis is a replica of {master}: it takes no tasks", advice)
    return Finding("fine", "this Redis is a master, not a replica or a cluster")


def _rights(gateway_answers: bool, redis: Redis) -> list[Finding]:
    """What the user of this address may not do, for each process that may run as that user."""
    findings = []
    for role in rights.ROLES:
        if role == "inbox":
            continue
        _, lacking = rights.look(redis, role)
        if lacking:
            level: Level = "wrong" if role == "reader" or not _runs(redis, role, gateway_answers) else "note"
            advice = f"grant what a {role} needs: docs/deployment.md has it; or run it as another user of Redis"
            more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
            findings.append(Finding(level, f"for a {role}: {lacking[0]}{more}", advice))
    return findings or [Finding("fine", "the user of this address has all rights in Redis that QTask needs")]


def _runs(redis: Redis, role: rights.Role, gateway_answers: bool) -> bool:
    """Whether such a process is alive, so that it has its rights, perhaps as another user."""
    if role == "worker":
        return _workers(redis).level == "fine"
    if role == "gateway":
        return gateway_answers
    return role == "client" or redis.get(keys.SCHEDULER_LOCK) is not None


def _same_redis(config: Config, redis: Redis) -> list[Finding]:
    """Whether the gateway of this host knows a task that is in this Redis; nothing where there is none."""
    ids: Any = redis.zrange(keys.SCHEDULE, -1, -1) or redis.zrange(keys.failed(config.queue), -1, -1)
    ids = ids or redis.zrange(keys.finished(config.queue), -1, -1)
    if not ids:
        return []
    connection = HTTPConnection(config.local_host, config.http_port, timeout=HTTP_SECONDS)
    try:
        connection.request("GET", f"/tasks/{quote(ids[0].decode(), safe='')}")
        status = connection.getresponse().status
    except (OSError, HTTPException):
        return []  # what is wrong with its HTTP, another finding says
    finally:
        connection.close()
    if status == HTTPStatus.NOT_FOUND and redis.exists(keys.job(ids[0].decode())):
        words = f"the gateway on {config.host}:{config.port} works on another Redis than the one looked at here"
        return [Finding("wrong", words, "give both the same --redis, or the --data-dir of the `qtask up` that runs")]
    return [Finding("fine", "the gateway works on this Redis")] if status == HTTPStatus.OK else []


def _still_workers(redis: Redis) -> list[Finding]:
    """Workers of QTask that are registered with RQ and have given no sign of life."""
    findings = []
    seconds, _ = redis.time()
    for key in redis.smembers("rq:workers"):
        about: Any = redis.hmget(key, "qtask", "last_heartbeat", "hostname", "pid")
        token, beat, host, pid = (value.decode() if value else "" for value in about)
        if not token or not beat:
            continue
        silent = seconds - datetime.fromisoformat(beat.replace("Z", "+00:00")).replace(tzinfo=UTC).timestamp()
        if silent <= HEARTBEAT_SECONDS:
            continue
        name = f"the worker with pid {pid} on {host}"
        words = f"has given no sign of life for {format_duration(silent)}"
        if host == socket.gethostname() and _lives(int(pid or 0)):
            advice = f"it is frozen or hangs; its tasks go to other workers: end it with `kill -9 {pid}`"
            findings.append(Finding("wrong", f"{name} {words}, but its process is there", advice))
        else:
            advice = "if that was not meant, start it again; its tasks go to other workers"
            findings.append(Finding("note", f"{name} {words}: it was killed, or cannot reach Redis", advice))
    return findings


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _queues(config: Config, redis: Redis) -> list[Finding]:
    """Queues that nobody takes from, or not fast enough."""
    findings = []
    known: Any = redis.smembers(keys.QUEUES)
    names = {key.decode().removeprefix(keys.QUEUE_PREFIX) for key in known} | {config.queue}
    seconds, _ = redis.time()
    for name in sorted(names):
        length = redis.llen(keys.queue(name))
        if not length:
            continue
        if not redis.scard(f"rq:workers:{name}"):
            words = f"the queue {name} holds {length} tasks, and no worker takes from it"
            findings.append(Finding("wrong", words, f"start one with `qtask worker --queue {name}`"))
            continue
        head: Any = redis.lrange(keys.queue(name), 0, 0)
        due: Any = redis.hmget(keys.job(head[0].decode()), "due")[0] if head else None
        waited = seconds - float(due) if due else 0.0
        if waited > WAITED_SECONDS:
            words = f"the queue {name} holds {length} tasks, the first of which waits for {format_duration(waited)}"
            advice = "the workers do not keep up, or are suspended (`rq resume`): start more with `qtask worker`"
            findings.append(Finding("wrong", words, advice))
    return findings or [Finding("fine", "no queue waits for workers")]


def _dead(config: Config, redis: Redis) -> Finding:
    count = redis.zcard(keys.failed(config.queue))
    if not count:
        return Finding("fine", f"no dead letters in the queue {config.queue}")
    records = tasks.list_tasks(redis, config.queue, "dead", DEAD_LOOKED_AT)
    last = [record.outcomes[-1] for record in records if record.outcomes]
    errors = Counter(str(one.code) if one.error == "status" else one.error for one in last).most_common(3)
    told = ", ".join(f"{times} by {error}" for error, times in errors)
    newest = f" of the newest {len(records)}" if count > len(records) else ""
    letters = "dead letter" if count == 1 else "dead letters"
    words = f"{count} {letters} in the queue {config.queue}{newest}: {told or 'no outcomes'}"
    advice = "see them with `qtask list --state dead`; then `qtask retry` or `qtask remove` (--all, or --error KIND)"
    return Finding("note", words, advice)


def _refused(redis: Redis) -> Finding:
    count = redis.xlen(keys.REFUSED)
    if not count:
        return Finding("fine", "no entries of the inbox were refused")
    newest: Any = redis.xrevrange(keys.REFUSED, count=1)
    try:
        error = json.loads(newest[0][1][b"error"])["error"]
        why = f"{error['code']} {error['field']}".strip()
    except (LookupError, ValueError, TypeError):
        why = "unknown"
    words = f"{count} {'entry' if count == 1 else 'entries'} of the inbox refused, the newest for: {why}"
    advice = f"see them with `redis-cli XREVRANGE {keys.REFUSED} + - COUNT 10`, and remove them with DEL {keys.REFUSED}"
    return Finding("note", words, advice)
