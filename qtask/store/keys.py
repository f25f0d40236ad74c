"""The names of all keys that QTask uses in Redis. Only this package may use them.

RQ's and rq-scheduler's own keys come first: a task is an RQ job, and their tools read these.
"""

from __future__ import annotations

# RQ and rq-scheduler
JOB_PREFIX = "rq:job:"  # + id: hash, a job
QUEUE_PREFIX = "rq:queue:"  # + queue: list of job ids
INTERMEDIATE_SUFFIX = ":intermediate"  # + key of a queue: list, ids that a stock worker is taking out of it
CANCELLED_PREFIX = "rq:canceled:"  # + queue: sorted set, jobs that were cancelled by RQ's own tools
QUEUES = "rq:queues"  # set of queue keys, which `rq info` lists
SCHEDULE = "rq:scheduler:scheduled_jobs"  # sorted set, id by due
SCHEDULER_LOCK = "rq:scheduler_lock"  # string; while it exists, a stock rqscheduler stays passive
STOCK_SCHEDULERS = "rq:scheduler_instance:*"  # pattern of the keys of stock rqschedulers that are alive
RQ_WORKERS = "rq:workers"  # set of the keys of all registered workers, ours and stock ones
STARTED_PREFIX = "rq:wip:"  # + queue: sorted set, `id:execution` by the end of its lease
FINISHED_PREFIX = "rq:finished:"  # + queue: sorted set, id by the end of its keeping
FAILED_PREFIX = "rq:failed:"  # + queue: sorted set, the dead
RESULTS_PREFIX = "rq:results:"  # + id: stream, results of a stock worker's deliveries
SUSPENDED = "rq:suspended"  # string; exists while `rq suspend` holds the workers

# QTask's own
INBOX = "qtask:inbox"  # stream: field `task`, optionally `reply`
INBOX_GROUP = "qtask"  # its consumer group
REFUSED = "qtask:refused"  # stream: the newest refused dicts, the beginning of each
WAKE = "qtask:wake"  # channel: a task earlier than all before it was accepted
NODES = "qtask:nodes"  # counter: a number for each process that makes ids
NODE_PREFIX = "qtask:node:"  # + number: string, the nonce of the process that holds this number; expires
WORKERS = "qtask:workers"  # sorted set: worker token by its last heartbeat
COUNTERS = "qtask:counters"  # hash: `type:status` to how many outcomes
STATS_PREFIX = "qtask:stats:"  # + type of task: sorted set, one member an outcome, by the end of its delivery
LEDGER = "qtask:ledger"  # hash: `what:queue` to how many tasks; see audit.py
PAUSED_QUEUES = "qtask:paused_queues"  # set: names of the queues from which nothing is claimed
STOCK_RETRIES = (
    "qtask:stock_retries"  # set: ids that a stock worker will try again; until then RQ counts them as failed
)
ID_PREFIX = "qtask:id:"  # + id that a client chose: string, the due instant of its task, which was delivered; expires
FLOWS = "qtask:flows"  # sorted set: each flow with state by the instant at which a scheduler looks at it; see flows.lua
SIMPLE_FLOW = 1_000_000_000_000_000  # score there of a flow that has a parallel limit only, less that limit
FLOW_DESTINATIONS = "qtask:flow_destinations"  # set: flows with state that tasks may belong to without naming them
FLOW_VERSION = "qtask:flow_version"  # counter: how often that set has changed
FLOW_RULES = "qtask:flow_rules"  # hash: pattern of a flow rule to its limits, and '' to all rules; see flow_rules.py
FLOW_PREFIX = "qtask:flow:"  # + name of a flow: hash, its limits and its state
WAITING_PREFIX = "qtask:waiting:"  # + name of a flow: sorted set, the ids that wait in it by due
HEALTH_PREFIX = "qtask:health:"  # + name of a flow: hash, outcomes of the last minute; only where some have failed
TIMEOUT_PREFIX = "qtask:timeout:"  # + name of a flow: JSON, what `timeout: auto` has learned; for a day
FIRST_PARALLEL = 5  # the limit of a flow with `parallel: auto` until its deliveries have shown more
SLOTS_PREFIX = "qtask:slots:"  # + name of a flow: sorted set, the ids that are queued or in flight
GRAPH_PREFIX = "qtask:graph:"  # + id: string, a picture; expires after a day
GRAPHS = "qtask:graphs"  # sorted set: ids of the pictures by when they were drawn

# Added to the scores of leases, of delivered and of dead tasks in RQ's registries: RQ's clean-up fails or removes jobs
# whose score has passed, but that is up to QTask.
FOREVER_SECONDS = 3_155_760_000  # a hundred years

# A claim may come so much before the instant of its rate, as a share of the span; see flows.lua.
RATE_SLACK = 0.01
RATE_SLACK_SECONDS = 0.05  # at most

GRAPH_SECONDS = 86_400
GRAPHS_KEEP = 300  # of up to 200 kB each: 60 MB of the 1 GiB that Redis has in compose
INBOX_REPLY_SECONDS = 60  # for which the answer to an entry of the inbox is kept
REFUSED_KEEP = 10_000
REFUSED_BYTES = 4_096  # that are kept of each refused dict


def job(task_id: str) -> str:
    """Key of a task's job hash."""
    return JOB_PREFIX + task_id


def queue(name: str) -> str:
    """Key of a queue's list."""
    return QUEUE_PREFIX + name


def started(name: str) -> str:
    """Key of a queue's started registry."""
    return STARTED_PREFIX + name


def finished(name: str) -> str:
    """Key of a queue's finished registry."""
    return FINISHED_PREFIX + name


def failed(name: str) -> str:
    """Key of a queue's failed registry, which holds the dead."""
    return FAILED_PREFIX + name


def rq_workers(name: str) -> str:
    """Key of the set of the registered workers of a queue."""
    return f"{RQ_WORKERS}:{name}"


def results(task_id: str) -> str:
    """Key of RQ's results of a task, which only a stock worker writes."""
    return RESULTS_PREFIX + task_id


def stats(task_type: str) -> str:
    """Key of the statistics of one type of task."""
    return STATS_PREFIX + task_type


def node(number: int) -> str:
    """Key that names the holder of a node number."""
    return f"{NODE_PREFIX}{number}"


def graph(task_id: str) -> str:
    """Key of a picture."""
    return GRAPH_PREFIX + task_id
