"""The rights in Redis that each process needs: one table, for the check at start and for the documented ACL.

A missing right would show up late and in unexpected places: without the right to publish, tasks are accepted and never
delivered. So each process checks all of its rights when it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import msgspec
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from qtask.model.errors import ConfigError
from qtask.store import keys
from qtask.store.flow_rules import SET_RULES
from qtask.store.flows import PARK, SET_FLOW
from qtask.store.inbox import LEAVE_INBOX, REFUSE
from qtask.store.leases import CLAIM, NACK, SETTLE
from qtask.store.ledger import AUDIT
from qtask.store.nodes import TAKE_NUMBER
from qtask.store.pages import PAGE
from qtask.store.queues import PURGE
from qtask.store.schedule import FORGET, RECLAIM, RELEASE
from qtask.store.scripts import NoKeys, Script
from qtask.store.submit import SUBMIT
from qtask.store.tasks import CANCEL, FORGET_TASK, REMOVE_DEAD, RETRY
from qtask.store.workers import HEARTBEAT

# client: `qtask.Client("redis://…")`, `qtask send --redis`, and the commands that change tasks. inbox: a program that
# submits with XADD. reader: the commands that only read.
Role = Literal["gateway", "scheduler", "worker", "client", "inbox", "reader"]
ROLES: tuple[Role, ...] = get_args(Role)

_RQ = "rq:*"
_OWN = "qtask:*"
_WAKE = "qtask:*"
_RQ_COMMANDS = "rq:pubsub:*"
REPLY_PREFIX = "qtask:reply:"  # + anything: where the ACL of the inbox lets a program wait for its answer

# Commands that redis-py sends when it connects, and this module when it checks.
_CONNECTING = (
    *("AUTH", "HELLO", "PING", "SELECT", "CLIENT|SETNAME"),
    *("ACL|WHOAMI", "EVAL", "EVALSHA", "INFO"),
)
_LOOKING = (
    *("HGET", "HMGET", "HGETALL", "GET", "EXISTS", "SISMEMBER", "TIME"),
    *("ZSCORE", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZSCAN", "LLEN", "LRANGE", "LPOS", "SCARD", "SMEMBERS", "XLEN"),
    "XREVRANGE",
)
_DECIDING_ON_QUEUES = ("SADD", "SREM", "ZSCAN")
_CALL = re.compile(r"\b(?:p?call|call_in_parts)\('([A-Z]+)'(?:, '([A-Z]+)')?")
_WITH_SUBCOMMANDS = ("XGROUP", "XINFO", "SCRIPT", "CLIENT", "CONFIG", "ACL")


@dataclass(frozen=True, slots=True)
class Rights:
    """The rights of one role.

    Attributes:
        direct: commands that it sends itself, `XINFO|CONSUMERS` for a subcommand.
        scripts: scripts that it runs; they run with its rights.
        keys: patterns of the keys.
        channels: patterns of the channels.
        samples: keys that it uses, with which its rights to keys are checked.
        talks: pairs of command and channel, checked together.
    """

    direct: tuple[str, ...]
    scripts: tuple[Script[Any, Any], ...] = ()
    keys: tuple[str, ...] = (_RQ, _OWN)
    channels: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()
    talks: tuple[tuple[str, str], ...] = ()

    @property
    def commands(self) -> list[str]:
        """All commands, direct ones and those of scripts, sorted."""
        return sorted({*self.direct, *(command for script in self.scripts for command in _commands_of(script))})

    @property
    def rules(self) -> str:
        """The ACL rules that grant exactly this, as `ACL SETUSER` takes them."""
        patterns = [f"~{pattern}" for pattern in self.keys] + [f"&{pattern}" for pattern in self.channels]
        commands = [f"+{command.lower()}" for command in self.commands]
        return " ".join(["resetkeys", "resetchannels", "-@all", *patterns, *commands])


_JOB, _RESULTS = keys.job("qtask-probe"), keys.results("qtask-probe")
_QUEUE, _STARTED = keys.queue("qtask"), keys.started("qtask")
_FINISHED, _FAILED = keys.finished("qtask"), keys.failed("qtask")
_TASKS = (_JOB, _RESULTS, keys.SCHEDULE, keys.QUEUES, keys.LEDGER, _QUEUE, _STARTED, _FINISHED, _FAILED, keys.FLOWS)
_SUBMITTING = (_JOB, keys.SCHEDULE, keys.NODES, keys.node(0), keys.LEDGER, keys.ID_PREFIX + "qtask-probe")
_STATISTICS = (keys.COUNTERS, keys.stats("http"))
_FLOWS = (
    *(keys.FLOWS, keys.FLOW_DESTINATIONS, keys.FLOW_VERSION),
    *(prefix + "qtask-probe" for prefix in (keys.FLOW_PREFIX, keys.WAITING_PREFIX, keys.SLOTS_PREFIX)),
)

RIGHTS: dict[Role, Rights] = {
    "gateway": Rights(
        direct=(
            *(*_CONNECTING, "TIME", "WAIT", "SCRIPT|LOAD", "HMGET", "ZSCORE", "GET"),
            *("ZCARD", "ZCOUNT", "ZRANGE", "ZRANK", "ZSCAN"),
            *("XGROUP|CREATE", "XREADGROUP", "XAUTOCLAIM", "XACK", "XINFO|CONSUMERS"),
            *("SMEMBERS", "HGETALL", "HGET", "SISMEMBER", "LLEN", "ZCARD", "SCARD", *_DECIDING_ON_QUEUES),
        ),
        scripts=(
            *(TAKE_NUMBER, SET_RULES, SUBMIT, REFUSE, LEAVE_INBOX, CANCEL, PURGE, RETRY, REMOVE_DEAD, FORGET_TASK),
            SET_FLOW,
        ),
        channels=(_WAKE,),
        samples=(*_TASKS, *_SUBMITTING, *_FLOWS, keys.INBOX, keys.REFUSED, keys.graph("qtask-probe")),
        talks=(("PUBLISH", keys.WAKE),),
    ),
    "scheduler": Rights(
        direct=(
            *(*_CONNECTING, "TIME", "GET", "SET", "EXPIRE", "SMEMBERS", "HMGET", "ZSCORE", "SUBSCRIBE", "UNSUBSCRIBE"),
            # rq-scheduler: its registration, and jobs that were made with its API
            *("DEL", "HSET", "HGETALL", "EXISTS", "MULTI", "EXEC", "ZADD", "ZREM", "ZINCRBY", "SADD", "RPUSH"),
            *("HEXISTS", "HGET", "HDEL", "WATCH", "UNWATCH", "PERSIST", "PUBLISH"),
        ),
        scripts=(RELEASE, RECLAIM, FORGET),
        channels=(_WAKE,),
        samples=(*_TASKS, *_FLOWS, keys.WORKERS, keys.SCHEDULER_LOCK, "rq:scheduler_instance:qtask-probe"),
        talks=(("PUBLISH", keys.WAKE), ("SUBSCRIBE", keys.WAKE)),
    ),
    "worker": Rights(
        direct=(
            *(*_CONNECTING, "SCRIPT|LOAD", "BLMOVE", "EXISTS", "ZADD", "TIME"),
            # RQ: the registration of a worker, its clean-up, and the commands of `rq`
            *(
                "CLIENT|LIST",
                "CLIENT|INFO",
                "DEL",
                "HSET",
                "HGET",
                "HMGET",
                "SADD",
                "SREM",
                "SMEMBERS",
                "EXPIRE",
                "MULTI",
                "EXEC",
            ),
            *("SUBSCRIBE", "UNSUBSCRIBE", "SCARD", "PERSIST"),
            # `__graph__`
            *("HGETALL", "ZCARD", "ZRANGE", "SET", "ZREMRANGEBYSCORE", "UNLINK", "ZREM"),
        ),
        scripts=(CLAIM, SETTLE, NACK, PARK, HEARTBEAT),
        channels=(_WAKE, _RQ_COMMANDS),
        samples=(
            *(
                *_TASKS,
                *_FLOWS,
                *_STATISTICS,
                keys.HEALTH_PREFIX + "qtask-probe",
                keys.WORKERS,
                keys.GRAPHS,
                keys.graph("qtask-probe"),
            ),
            *("rq:worker:qtask-probe", "rq:workers", "rq:suspended"),
        ),
        talks=(("PUBLISH", keys.WAKE), ("SUBSCRIBE", "rq:pubsub:qtask-probe")),
    ),
    "client": Rights(
        direct=(*_CONNECTING, *_LOOKING, *_DECIDING_ON_QUEUES),
        scripts=(TAKE_NUMBER, SUBMIT, CANCEL, PURGE, RETRY, REMOVE_DEAD, FORGET_TASK, SET_FLOW, PAGE, AUDIT),
        channels=(_WAKE,),
        samples=(*_TASKS, *_SUBMITTING, *_FLOWS),
        talks=(("PUBLISH", keys.WAKE),),
    ),
    "inbox": Rights(
        direct=("AUTH", "HELLO", "PING", "SELECT", "XADD", "BLPOP"),
        keys=(keys.INBOX, f"{REPLY_PREFIX}*"),
        samples=(keys.INBOX, f"{REPLY_PREFIX}qtask-probe"),
    ),
    "reader": Rights(
        direct=(*_CONNECTING, *_LOOKING, "CONFIG|GET", "SCAN"),
        scripts=(PAGE, AUDIT),
        samples=(
            *_TASKS,
            *_FLOWS,
            *_STATISTICS,
            keys.WORKERS,
            keys.REFUSED,
            keys.SCHEDULER_LOCK,
            keys.graph("qtask-probe"),
        ),
    ),
}


class RightsArguments(NamedTuple):
    """See rights.lua."""

    tries: bytes


class RightsReply(NamedTuple):
    """See rights.lua."""

    mode: str
    answers: list[int]


_RIGHTS = Script("rights", NoKeys, RightsArguments, replies=(RightsReply,))


def check(redis: Redis, role: Role) -> None:
    """Checks that a process can work on this Redis.

    Raises `ConfigError` if Redis runs in cluster mode or a right is missing, and redis-py's errors if Redis does not
    answer.
    """
    mode, lacking = look(redis, role)
    if mode == "cluster":
        raise ConfigError(
            "this Redis runs in cluster mode, which QTask does not support: its scripts use keys of several slots. "
            "Use a Redis with cluster-enabled no, or Sentinel for failover"
        )
    if lacking:
        raise ConfigError(f"{'; '.join(lacking)} (needed by: {role}; docs/deployment.md has the whole ACL)")


def look(redis: Redis, role: Role) -> tuple[str, list[str]]:
    """The mode in which Redis runs (`standalone`, `cluster`, …), and the rights that its user lacks for a role.

    Each missing right is a sentence with the rules that grant it. Raises redis-py's errors if Redis does not answer.
    """
    rights = RIGHTS[role]
    keyed = [name for name in rights.commands if _KEY in _SAMPLES.get(name, ())]
    plain = [name for name in rights.commands if name not in keyed and name not in ("PUBLISH", "SUBSCRIBE")]
    talks = [[name, channel, ""] if name == "PUBLISH" else [name, channel] for name, channel in rights.talks]
    tries = [_command(name, "") for name in plain] + talks
    pairs = _pairs(rights, keyed)
    tries += [_command(name, sample) for sample, name in pairs]
    try:
        reply = _run(redis, tries)
    except NoPermissionError:
        return "", [f"user {_user(redis)!r} of Redis may not EVAL: grant +eval"]
    user = f"user {_user(redis)!r} of Redis"
    rest = iter(reply.answers)
    found = [
        f"{user} may not {_words(name)}: grant +{name.lower()}"
        for name, may in [(name, next(rest)) for name in plain]
        if may == _DENIED
    ]
    for name, channel in rights.talks:
        may = next(rest)
        if may == _DENIED or (may == _UNTRIED and name == "SUBSCRIBE" and not _may_subscribe(redis, channel)):
            pattern = next(one for one in rights.channels if channel.startswith(one[:-1]))
            found.append(f"{user} may not {name} on {channel}: grant +{name.lower()} &{pattern}")
    table: dict[str, dict[str, int]] = {}
    for sample, name in pairs:
        table.setdefault(sample, {})[name] = next(rest)
    untried = any(row.get("BLMOVE") == _UNTRIED for row in table.values())
    if untried and _ALLOWED in table[_QUEUE].values() and not _may_wait(redis):
        found.append(f"{user} may not BLMOVE: grant +blmove")
    return reply.mode, found + [f"{user} {what}" for what in _lacking_of_keys(rights, table)]


_DENIED, _ALLOWED, _UNTRIED = 0, 1, 2
_TELLING = ("HMGET", "EXISTS", "GET", "HSET", "ZADD", "SET", "XADD")  # each role has one of these that reads


def _pairs(rights: Rights, keyed: list[str]) -> list[tuple[str, str]]:
    """The pairs of key and command to try.

    All commands are tried on one key of each pattern, and a few that read and write on the other keys: the whole table
    would block Redis for 40 ms.
    """
    whole = {next(sample for sample in rights.samples if fnmatchcase(sample, pattern)) for pattern in rights.keys}
    telling = [name for name in keyed if name in _TELLING]
    samples = dict.fromkeys(rights.samples)
    return [(sample, name) for sample in samples for name in (keyed if sample in whole else telling)]


def _lacking_of_keys(rights: Rights, table: dict[str, dict[str, int]]) -> Iterator[str]:
    """The missing rights, derived from which command may run on which key."""
    usable = {sample: row for sample, row in table.items() if _ALLOWED in row.values()}
    closed = [sample for sample in table if sample not in usable]
    for pattern in rights.keys:
        inside = [sample for sample in closed if fnmatchcase(sample, pattern)]
        if inside:
            yield f"may not use the keys {pattern} (such as {inside[0]}): grant ~{pattern}"
    somewhere = {name for row in usable.values() for name, may in row.items() if may != _DENIED}
    nowhere = {name for row in usable.values() for name in row} - somewhere
    patterns = " ".join(f"~{pattern}" for pattern in rights.keys)
    for name in sorted(nowhere):  # or a command that writes, where the keys may only be read
        yield f"may not {_words(name)}: grant +{name.lower()} {patterns}"
    for sample, row in usable.items():
        denied = [name for name, may in row.items() if may == _DENIED and name not in nowhere]
        if denied:
            yield f"may not {', '.join(map(_words, denied))} on the key {sample}: grant ~{sample}"


def _words(name: str) -> str:
    return name.replace("|", " ")


def _may_subscribe(redis: Redis, channel: str) -> bool:
    try:
        with redis.pubsub() as pubsub:
            pubsub.subscribe(channel)
            pubsub.get_message(timeout=1.0)
    except NoPermissionError:
        return False
    return True


def _may_wait(redis: Redis) -> bool:
    try:
        redis.execute_command("BLMOVE", *[f"{_QUEUE}:qtask-probe"] * 2, "LEFT", "LEFT", "0.01")
    except NoPermissionError:
        return False
    return True


def _run(redis: Redis, tries: list[list[str]]) -> RightsReply:
    call = _RIGHTS.call(NoKeys(), RightsArguments(tries=msgspec.json.encode(tries)))
    reply = RightsReply._make(redis.execute_command(*call.as_eval))  # works even if the role has no other right
    mode = reply.mode
    return reply._replace(mode=mode.decode() if isinstance(mode, bytes) else mode)


def _user(redis: Redis) -> str:
    try:
        name: Any = redis.execute_command("ACL", "WHOAMI")
    except RedisError:
        return str(redis.connection_pool.connection_kwargs.get("username") or "default")
    return name.decode() if isinstance(name, bytes) else str(name)


def _command(name: str, key: str) -> list[str]:
    command = name.split("|")
    return [*command, *(_KEY + key if part == _KEY else part for part in _SAMPLES.get(name, ()))]


def _commands_of(script: Script[Any, Any]) -> set[str]:
    """The commands that a script runs."""
    found = set()
    for line in script.text.decode().splitlines():
        code = line.partition("--")[0]
        for command, first in _CALL.findall(code):
            found.add(f"{command}|{first}" if command in _WITH_SUBCOMMANDS else command)
        found.update(re.findall(r"\bcall\(\s*'([A-Z]+)'\s*\)", code))
    return found


_KEY = "\0"  # marks the place of the key, for rights.lua as well
# Arguments with which a command changes nothing if the key does not exist: it finds nothing, or an argument is invalid,
# which Redis checks after the rights. rights.lua removes what LPUSH, RPUSH and SADD leave.
_SAMPLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("GET", "HGETALL", "HLEN", "ZCARD", "LLEN", "SCARD", "SMEMBERS", "EXISTS", "DEL"), (_KEY,)),
    **dict.fromkeys(("UNLINK", "PERSIST", "WATCH", "LPOP", "XLEN", "ZPOPMIN"), (_KEY,)),
    **dict.fromkeys(("HGET", "HMGET", "HDEL", "HEXISTS", "LPOS", "ZREM", "ZSCORE", "ZMSCORE", "ZRANK"), (_KEY, "x")),
    **dict.fromkeys(("LPUSH", "RPUSH", "SADD", "SREM", "SISMEMBER"), (_KEY, "x")),
    **dict.fromkeys(("ZRANGE", "ZREVRANGE", "ZCOUNT", "ZRANGEBYSCORE", "LRANGE"), (_KEY, "0", "0")),
    **dict.fromkeys(("ZREMRANGEBYRANK", "ZREMRANGEBYSCORE"), (_KEY, "0", "0")),
    "INCRBY": (_KEY, "no number"),
    "INCR": (_KEY, "odd"),
    "HSETNX": (_KEY, "x"),
    "ZSCAN": (_KEY, "0"),
    "LREM": (_KEY, "1", "x"),
    "EXPIRE": (_KEY, "1"),
    "HSET": (_KEY, "a", "b", "odd"),
    "HINCRBY": (_KEY, "x", "no number"),
    "ZADD": (_KEY, "no number", "x"),
    "ZINCRBY": (_KEY, "no number", "x"),
    "SET": (_KEY, "x", "no option"),
    "BLPOP": (_KEY, "0.01"),
    "BLMOVE": (_KEY, _KEY, "LEFT", "LEFT", "0.01"),
    "XADD": (_KEY, "no id", "x", "x"),
    "XACK": (_KEY, "x", "1-1"),
    "XDEL": (_KEY, "1-1"),
    "XPENDING": (_KEY, "x", "-", "+", "1", "x"),
    "XREVRANGE": (_KEY, "+", "-"),
    "XAUTOCLAIM": (_KEY, "x", "x", "0", "0-0"),
    "XREADGROUP": ("GROUP", "x", "x", "STREAMS", _KEY, ">"),
    "XGROUP|CREATE": (_KEY, "x", "0"),
    "XGROUP|DELCONSUMER": (_KEY, "x", "x"),
    "XINFO|CONSUMERS": (_KEY, "x"),
    "AUTH": ("x",),
    "SELECT": ("0",),
    "WAIT": ("0", "1"),
    "EVAL": ("return 1", "0"),
    "EVALSHA": ("0" * 40, "0"),
    "SCRIPT|LOAD": ("return 1",),
    "CONFIG|GET": ("appendfsync",),
    "CLIENT|SETNAME": ("x",),
}
