"""The contents of Redis at the end, and its inconsistencies."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, cast

from redis import Redis

from qtask.model.record import TaskRecord
from qtask.store import keys, tasks

_PAGE = 1_000
_WAITS = {"schedule", "flow", "queue", "started"}

_WHOLE_KEYS = {
    value
    for name, value in vars(keys).items()
    if name.isupper() and isinstance(value, str) and not name.endswith("_PREFIX")
}

# Keys of RQ and rq-scheduler about live and recently ended processes, for some minutes; they hold no tasks.
_REGISTRATIONS = ("rq:execution", "rq:clean_", "rq:worker:", "rq:workers", "rq:scheduler_instance:")


@dataclass(slots=True)
class Store:
    """The contents of Redis.

    Attributes:
        places: id to every place that it is in: `schedule`, `flow`, `queue`, `started`, `finished`, `dead`.
        jobs: ids that have a job hash.
        dead: every dead letter.
        remembered: chosen ids that are remembered.
        graphs: ids for which a picture is kept.
        slots: of flows, each with its flow.
        unknown_keys: keys that belong to no task and to nothing else.
        inbox: entries that no gateway has read.
        consumers: the number of consumers of the inbox.
        workers: tokens of the workers that are not known to have ended.
        keys: the number of all keys.
    """

    places: dict[str, list[str]] = field(default_factory=dict)
    jobs: set[str] = field(default_factory=set)
    dead: list[TaskRecord] = field(default_factory=list)
    remembered: set[str] = field(default_factory=set)
    graphs: set[str] = field(default_factory=set)
    slots: list[str] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    inbox: int = 0
    consumers: int = 0
    workers: list[str] = field(default_factory=list)
    keys: int = 0


def read_store(redis: Redis, *queues: str, reply_prefix: str = "reply:") -> Store:
    """Reads all of a Redis that nobody writes to any more.

    Args:
        queues: every queue that tasks went to.
        reply_prefix: of the keys that clients of the inbox named for their answers; these must expire.
    """
    store = Store()
    places: defaultdict[str, list[str]] = defaultdict(list)
    known = set(_WHOLE_KEYS)
    _place(places, "schedule", redis.zrange(keys.SCHEDULE, 0, -1))
    for queue in queues:
        known |= {keys.queue(queue), keys.started(queue), keys.finished(queue), keys.failed(queue)}
        _place(places, "queue", redis.lrange(keys.queue(queue), 0, -1))
        _place(places, "started", redis.zrange(keys.started(queue), 0, -1))
        _place(places, "finished", redis.zrange(keys.finished(queue), 0, -1))
        _place(places, "dead", redis.zrange(keys.failed(queue), 0, -1))
        store.dead += [tasks.show(redis, task_id) for task_id in tasks.find_dead(redis, queue, tasks.Filter())]
    for raw in redis.scan_iter(count=_PAGE):
        key = raw.decode()
        store.keys += 1
        if key.startswith(keys.JOB_PREFIX):
            store.jobs.add(key.removeprefix(keys.JOB_PREFIX))
        elif key.startswith(keys.ID_PREFIX):
            store.remembered.add(key.removeprefix(keys.ID_PREFIX))
        elif key.startswith(keys.GRAPH_PREFIX):
            store.graphs.add(key.removeprefix(keys.GRAPH_PREFIX))
        elif key.startswith((reply_prefix, keys.NODE_PREFIX, keys.HEALTH_PREFIX)):
            if redis.ttl(key) == -1:
                store.unknown_keys.append(f"{key}, which never expires")
        elif key.startswith(keys.SLOTS_PREFIX):
            flow = key.removeprefix(keys.SLOTS_PREFIX)
            store.slots += [f"{one.decode()} in {flow}" for one in cast("list[bytes]", redis.zrange(key, 0, -1))]
        elif key.startswith(keys.WAITING_PREFIX):
            for member in cast("list[bytes]", redis.zrange(key, 0, -1)):
                places[member.decode().rpartition(":")[2]].append("flow")
        elif key.startswith(keys.FLOW_PREFIX) and redis.zscore(keys.FLOWS, key.removeprefix(keys.FLOW_PREFIX)):
            pass  # a flow with limits
        elif not (key in known or key.startswith((keys.STATS_PREFIX, *_REGISTRATIONS))):
            store.unknown_keys.append(key)
    store.places = dict(places)
    if redis.exists(keys.INBOX):
        store.inbox = redis.xlen(keys.INBOX)
        store.consumers = len(cast("list[Any]", redis.xinfo_consumers(keys.INBOX, keys.INBOX_GROUP)))
    store.workers = [token.decode() for token in cast("list[bytes]", redis.zrange(keys.WORKERS, 0, -1))]
    return store


def inconsistencies(store: Store) -> dict[str, list[str]]:
    """Inconsistencies after every task and every process has ended: a fault to its examples."""
    places = store.places
    return {
        "tasks still wait": [one for one, found in places.items() if set(found) & _WAITS],
        "tasks stand in several places": [f"{one}: {found}" for one, found in places.items() if len(found) > 1],
        "job hashes are in no place": sorted(store.jobs - places.keys()),
        "ids have no job hash": sorted(places.keys() - store.jobs),
        "slots are left in flows": store.slots,
        "keys belong to no task": store.unknown_keys,
        "entries are left in the inbox": [f"{store.inbox} entries"] * bool(store.inbox),
        "workers have ended and are still known": store.workers,
    }


def _place(places: defaultdict[str, list[str]], name: str, members: Any) -> None:
    for member in members:
        places[member.decode().partition(":")[0]].append(name)
