"""Each task is in exactly one place: the scripts on a real Redis, in random order, compared with a simple model.

Time in Redis cannot be moved, so a task that must be due gets a score in the past, a lease that must have expired is
claimed with a negative margin, and a worker that must be dead gets an old heartbeat.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any, Literal, cast

import msgspec
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from msgspec import UNSET
from redis import Redis

from qtask.config import Config
from qtask.destinations.parsing import check_task
from qtask.model.errors import WrongState
from qtask.model.ids import client_id, stored_id
from qtask.model.outcome import OUTCOMES_KEEP
from qtask.scheduler.process import Scheduler
from qtask.store import keys, leases, queues, schedule, tasks, workers
from qtask.store.leases import CLAIM_BYTES, LEASE_MARGIN_SECONDS, Fate, Settlement, SettleOptions
from qtask.store.ledger import read_figures
from qtask.store.nodes import Leased, Node, Nodes
from qtask.store.queries import Steps, commands, run
from qtask.store.submit import Batch, Place, Submission, submit

QUEUES = ("one", "two")
TOKENS = ("alice", "bob")  # of workers
CHOSEN = ("order-1", "order:2", '0__"3"')  # ids that clients choose
MAKERS = ("gateway", "its clone", "another gateway")  # of ids; all share a number, the first two also a nonce
NUMBER = 7
RETENTION_COUNT = 3
FAR_SECONDS = 3_600.0
FATES = ("finished", "finished", "failed", "failed", "retry", "retry far", "lost")
_FATE: dict[str, Fate] = {
    "finished": "finished",
    "failed": "failed",
    "lost": "failed",
    "retry": "retry",
    "retry far": "retry",
}
LINE = json.dumps({"status": "failed", "started": 1.0, "ended": 1.0, "lateness": None, "duration": 0.0}).encode()
STEPS = ("submit", "work", "work", "work", "suffer", "decide")
MOST_TASKS = 10  # at once: few, so that they often meet

Where = Literal["schedule", "queue", "started", "finished", "dead"]
_STATUS = {"queue": "queued", "started": "started", "finished": "finished", "dead": "failed"}
_STATE = {"schedule": "scheduled", "queue": "queued", "started": "started", "finished": "delivered", "dead": "dead"}


@dataclass
class ModelTask:
    """The model of a task.

    Attributes:
        due: of its first delivery, in Unix seconds.
        waits: in the schedule, and due in the far future.
        holder: token of the worker that holds the lease.
        expired: whether that lease has expired.
        sent: the batch in which it was submitted.
        outcomes, history: numbers of lines in the fields of these names.
    """

    queue: str
    due: float
    waits: bool
    chosen: bool
    sent: Sent
    place: Where = "schedule"
    attempt: int = 0
    holder: str = ""
    expired: bool = False
    outcomes: int = 0
    history: int = 0


class Maker(Nodes):
    """Makes ids with a number that others may hold, too. A node and its clone make the same ids."""

    def __init__(self, nonce: str, made: Callable[[], str]) -> None:
        super().__init__()
        self.nonce = nonce
        self.made = made

    def take(self) -> Steps[Node]:
        (holder,) = yield commands(("GET", keys.node(NUMBER)))
        if holder != self.nonce.encode():
            yield commands(("SET", keys.node(NUMBER), self.nonce))
        node = Node(self.nonce, Leased(NUMBER, (0, 0)))
        node.ids.next = self.made  # type: ignore[method-assign]
        return node


@dataclass
class Sent:
    """A batch that was submitted, and may be submitted again, as by a gateway whose reply was lost.

    Attributes:
        batch: as it was before its reply was read.
        accepted: its tasks after the first submission.
    """

    maker: str
    queue: str
    batch: Batch
    submissions: Sequence[Submission]
    delays: Sequence[float]
    accepted: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Settled:
    """Outcomes that were settled, and may be settled again: late, or because the reply was lost."""

    queue: str
    token: str
    attempts: Mapping[str, int]


def queue_of(submission: Submission, sent: Sent) -> str:
    """The queue that a task names, else that of its batch."""
    named = submission.checked.task.settings.queue
    return sent.queue if named is UNSET else named


class Places(RuleBasedStateMachine):
    """Every step of a task, by the scripts that the processes run."""

    redis: Redis  # set by the test

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, ModelTask] = {}
        self.queued: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.remembered: dict[str, float] = {}
        self.alive: set[str] = set()
        self.paused: set[str] = set()
        self.settled = 0
        self.ledger: Counter[str] = Counter()
        self.sent: list[Sent] = []
        self.settles: list[Settled] = []
        self.numbers = count(1)
        made = [f"a-{n}" for n in range(1, 5_000)]
        self.makers = {
            "gateway": Maker("a", iter(made).__next__),
            "its clone": Maker("a", chain.from_iterable(zip(made, (f"c{one}" for one in made), strict=True)).__next__),
            "another gateway": Maker("b", iter([f"b-{n}" for n in range(1, 5_000)]).__next__),
        }
        self.scheduler = Scheduler("one", self.redis)

    @initialize()
    def empty(self) -> None:
        self.redis.flushall()
        self.redis.xgroup_create(keys.INBOX, keys.INBOX_GROUP, "0", mkstream=True)
        for queue in QUEUES:
            self.redis.sadd(keys.QUEUES, keys.queue(queue))

    # One rule for all steps: of several rules, Hypothesis leaves out some at random, and then no task gets far.
    @rule(step=st.sampled_from(STEPS), data=st.data())
    def step(self, step: str, data: st.DataObject) -> None:
        {"submit": self.draw_submit, "work": self.draw_work, "suffer": self.draw_loss, "decide": self.draw_decision}[
            step
        ](data)

    def draw_submit(self, data: st.DataObject) -> None:
        if self.sent and data.draw(st.integers(0, 3)) == 0:
            self.submit_again(data.draw(st.sampled_from(self.sent)))
        elif len(self.tasks) < MOST_TASKS:
            self.submit(self.draw_batch(data))

    def draw_work(self, data: st.DataObject) -> None:
        work = data.draw(st.sampled_from(("claim", "settle", "settle", "release", "settle again", "nack")))
        started = self.ids(lambda task: task.place == "started")
        if work == "settle again" and self.settles:
            self.settle_again(data.draw(st.sampled_from(self.settles)), data.draw(st.booleans()))
        elif work == "claim" or not started:
            if not any(self.queued.values()):
                self.release(500)
            token, limit = data.draw(st.sampled_from(TOKENS)), data.draw(st.integers(1, 4))
            self.claim(
                token, limit, data.draw(st.booleans()), data.draw(st.sampled_from((CLAIM_BYTES, CLAIM_BYTES, 1)))
            )
        elif work == "release":
            self.release(data.draw(st.integers(1, 2)))
        else:
            task = self.tasks[data.draw(st.sampled_from(started))]
            if work == "nack":
                self.nack(task.queue, task.holder, data.draw(st.integers(0, 1)))
            else:
                fates = data.draw(st.lists(st.sampled_from(FATES), min_size=2, max_size=4))
                self.settle(task.queue, task.holder, fates, data.draw(st.sampled_from((0, 0, 2))))

    def draw_loss(self, data: st.DataObject) -> None:
        far = self.ids(lambda task: task.waits)
        held = self.ids(lambda task: task.holder in self.alive)
        if data.draw(st.booleans()) and far:
            self.time_passes(data.draw(st.sampled_from(far)))
        elif data.draw(st.booleans()) and held:
            self.worker_dies(self.tasks[data.draw(st.sampled_from(held))].holder)
        else:
            self.reclaim()
            self.forget(data.draw(st.booleans()))

    def draw_decision(self, data: st.DataObject) -> None:
        if data.draw(st.integers(0, 4)) == 0:
            queue = data.draw(st.sampled_from(QUEUES))
            (self.pause if data.draw(st.integers(0, 2)) else self.purge)(queue)
            return
        dead = self.ids(lambda task: task.place == "dead")
        if not dead or data.draw(st.integers(0, 3)) == 0:
            if self.tasks:
                task_id = data.draw(st.sampled_from(list(self.tasks)))
                (self.cancel if data.draw(st.booleans()) else self.forget_one)(task_id)
            return
        drawn = data.draw(st.lists(st.sampled_from(dead), unique=True, min_size=1, max_size=3))
        # With one that may not be dead, and one that does not exist.
        wanted = list(dict.fromkeys([*drawn, next(iter(self.tasks)), "unknown"]))
        (self.remove_dead if data.draw(st.integers(0, 2)) == 0 else self.retry_dead)(wanted)

    # --- accepting -----------------------------------------------------------------------------------------------

    def draw_batch(self, data: st.DataObject) -> Sent:
        ids = st.sampled_from(("", "", "", *CHOSEN))
        names = st.sampled_from(("", "", *QUEUES))
        dicts = data.draw(st.lists(st.tuples(ids, st.booleans(), st.booleans(), names), min_size=2, max_size=6))
        by_inbox = data.draw(st.booleans())
        submissions, delays = [], []
        for chosen, far, by_instant, name in dicts:
            delay = FAR_SECONDS if far else 0.0
            when = {"at": self.now() + FAR_SECONDS if far else 1.0} if by_instant else {"time": delay}
            given = {**when, **({"id": chosen} if chosen else {}), "timeout": 7.5}
            given |= {"queue": name} if name else {}
            address = {"type": "http", "link": "http://127.0.0.1:1/"}
            checked = check_task({"title": "t", "address": address, "settings": given})
            entry = ""
            if by_inbox:
                entry = cast(bytes, self.redis.xadd(keys.INBOX, {"task": checked.body})).decode()
                self.redis.xreadgroup(keys.INBOX_GROUP, "gateway", {keys.INBOX: ">"})
            submissions.append(Submission(checked, entry))
            delays.append(delay)
        queue = data.draw(st.sampled_from(QUEUES))
        maker = data.draw(st.sampled_from(MAKERS))
        return Sent(maker, queue, Batch(queue, submissions), submissions, delays)

    def submit(self, sent: Sent) -> None:
        """Submits a batch for the first time: each dict becomes a task or is a duplicate of a chosen id."""
        maker = self.makers[sent.maker]
        before = set(self.tasks)
        places = submit(self.redis, maker, sent.batch)
        for submission, delay, place in zip(sent.submissions, sent.delays, places, strict=True):
            assert place is not None
            sent.accepted.append(place.id)
            if place.id in CHOSEN and (place.id in self.tasks or place.id in self.remembered):
                self.check_known(place)
                self.ledger[f"duplicates:{sent.queue}"] += 1
                continue
            assert place.id not in before, "no other task has this id"
            assert not place.duplicate
            assert place.due >= self.now() + delay - 60
            assert submission.checked.task.settings.id in (UNSET, place.id)
            queue = queue_of(submission, sent)
            self.tasks[place.id] = ModelTask(queue, place.due, delay > 0, place.id in CHOSEN, sent)
            self.ledger[f"accepted:{queue}"] += 1
            before.add(place.id)
        self.sent.append(sent)

    def submit_again(self, sent: Sent) -> None:
        """Submits it again, as if its reply had been lost. Known tasks are not accepted twice."""
        maker = self.makers[sent.maker]
        held = self.redis.get(keys.node(NUMBER)) == maker.nonce.encode()
        batch = Batch(sent.queue, sent.submissions)
        node = run(self.redis, maker.take()) if held else Node(maker.nonce, Leased(NUMBER, (0, 0)))
        node.ids.next = iter([one for one in sent.accepted if one and one not in CHOSEN]).__next__  # type: ignore[method-assign]
        batch.call(node)
        event("a batch is sent again" if held else "a batch is sent again, without its number")
        places = submit(self.redis, maker, batch)
        for submission, delay, first, place in zip(sent.submissions, sent.delays, sent.accepted, places, strict=True):
            if place is None:
                assert submission.entry, "its entry is gone, so the task has ended"
                assert not (held and self.is_of(first, sent))
            elif place.id in CHOSEN and (place.id in self.tasks or place.id in self.remembered):
                self.check_known(place)
                self.ledger[f"duplicates:{sent.queue}"] += 1
            elif place.id in self.tasks:
                assert held
                assert place.id == first
                assert not place.duplicate
                self.check_due(place)
            else:
                assert not (held and self.is_of(first, sent))
                assert not submission.entry
                queue = queue_of(submission, sent)
                self.tasks[place.id] = ModelTask(queue, place.due, delay > 0, place.id in CHOSEN, sent)
                self.ledger[f"accepted:{queue}"] += 1

    def is_of(self, task_id: str | None, sent: Sent) -> bool:
        """Whether the task exists and came with this batch: a clone may use a free id again."""
        return task_id in self.tasks and self.tasks[task_id].sent is sent

    def check_known(self, place: Place) -> None:
        assert place.duplicate
        if place.id in self.tasks:
            self.check_due(place)
        else:
            assert place.due == self.remembered[place.id]

    def check_due(self, place: Place) -> None:
        known = self.tasks[place.id]
        score: Any = None if known.attempt else self.redis.zscore(keys.SCHEDULE, stored_id(place.id))
        assert place.due == (known.due if score is None else score)

    # --- from the schedule to a worker ---------------------------------------------------------------------------

    def time_passes(self, task_id: str) -> None:
        task = self.tasks[task_id]
        self.redis.zadd(keys.SCHEDULE, {stored_id(task_id): self.now() - 1})
        task.waits = False
        if not task.attempt:
            score: Any = self.redis.zscore(keys.SCHEDULE, stored_id(task_id))
            task.due = score

    def release(self, limit: int) -> None:
        scheduled = [client_id(one.decode()) for one in cast("list[bytes]", self.redis.zrange(keys.SCHEDULE, 0, -1))]
        due = [task_id for task_id in scheduled if not self.tasks[task_id].waits]
        released = schedule.release(self.redis, limit)
        assert released.moved == min(limit, len(due))
        assert released.foreign == []
        for task_id in due[:limit]:
            self.tasks[task_id].place = "queue"
            self.queued[self.tasks[task_id].queue].append(task_id)

    def claim(self, token: str, limit: int, ends_at_once: bool, bytes_limit: int) -> None:
        queue = max(QUEUES, key=lambda one: len(self.queued[one]))
        self.beat(token)
        margin = -FAR_SECONDS if ends_at_once else LEASE_MARGIN_SECONDS
        reply = leases.claim(queue, token, limit, bytes_limit, margin).run(self.redis)
        assert leases.ClaimReply._make(reply).paused == (queue in self.paused)
        _, replied = leases.read_claimed(reply)
        limit = 1 if bytes_limit == 1 else limit  # the first one is larger
        if queue in self.paused:
            event("a claim from a paused queue")
            limit = 0
        claimed, self.queued[queue] = self.queued[queue][:limit], self.queued[queue][limit:]
        for task_id, (raw_id, attempt, due, _) in zip(claimed, replied, strict=True):
            assert client_id(raw_id.decode()) == task_id
            task = self.tasks[task_id]
            task.place, task.holder, task.expired = "started", token, ends_at_once
            task.attempt += 1
            assert abs(attempt) == task.attempt
            assert (attempt < 0) == bool(task.history), "only after a first delivery before it was dead"
            assert float(due) == task.due, "it is the same at every attempt"

    def beat(self, token: str) -> None:
        workers.heartbeat(token, f"rq:worker:{token}", 420, {"last_heartbeat": "now"}).run(self.redis)
        self.alive.add(token)

    # --- settling ------------------------------------------------------------------------------------------------

    def settle(self, queue: str, token: str, fates: Sequence[str], dead_retention_count: int) -> None:
        """Settles tasks that a worker holds, and one that it does not hold, or no longer holds."""
        mine = self.held(queue, token)
        entries = [(task_id, "finished") for task_id in [one for one in self.tasks if one not in mine][:2]]
        entries += zip(mine, fates, strict=False)
        attempts = {task_id: self.tasks[task_id].attempt for task_id, _ in entries}
        self.run_settle(queue, token, entries, dead_retention_count)
        self.settles.append(Settled(queue, token, attempts))

    def settle_again(self, settled: Settled, reply_lost: bool) -> None:
        """Settles again: only tasks that this worker has claimed again since then are settled.

        When the settle is resent because its reply was lost, a later claim is given back: its reply was lost, too.
        """
        entries = [(task_id, "finished") for task_id in settled.attempts]
        self.run_settle(settled.queue, settled.token, entries, 0, settled.attempts if reply_lost else {})

    def run_settle(
        self,
        queue: str,
        token: str,
        entries: Sequence[tuple[str, str]],
        dead_retention_count: int,
        attempts: Mapping[str, int] | None = None,
    ) -> None:
        later: list[str] = []
        outcomes: list[Settlement] = []
        expected = 0
        for task_id, fate in entries:
            task = self.tasks.get(task_id)
            again = fate == "lost" or (task is not None and task.attempt > 1)
            options = SettleOptions(again=again, unbegun=fate == "lost")
            if fate.startswith("retry"):
                options.delay = FAR_SECONDS if fate == "retry far" else 0.0
            if fate == "finished" and task_id in CHOSEN:
                options.remember = 86_400
            if attempts and task_id in attempts:
                options.attempt = attempts[task_id]
            outcomes.append(
                Settlement(
                    id=stored_id(task_id),
                    fate=_FATE[fate],
                    outcome=b"" if fate == "lost" else LINE,
                    error="why",
                    counter="http:delivered",
                    ended=f"{self.now():.6f}",
                    member=f"{task_id}:{next(self.numbers)}:x::0.1",
                    options=b"" if options == SettleOptions() else msgspec.json.encode(options),
                )
            )
            if task is None or (task.place, task.queue, task.holder) != ("started", queue, token):
                continue
            if options.attempt not in (None, task.attempt):
                later.append(task_id)
            else:
                expected += 1
                self.end(task_id, task, fate, again)
        config = Config(queue=queue, retention_count=RETENTION_COUNT, dead_retention_count=dead_retention_count)
        settled, dropped = leases.read_settled(leases.settle(config, token, outcomes).run(self.redis))
        assert settled == expected
        for task_id in later:
            event("a later attempt whose claim was lost is given back")
            self.tasks[task_id].attempt -= 1
            self.return_to_queue(task_id)
        self.settled += settled
        self.forget_finished(queue)
        self.forget_dead(queue, [client_id(task_id.decode()) for task_id in dropped], dead_retention_count)

    def end(self, task_id: str, task: ModelTask, fate: str, again: bool) -> None:
        event(f"{'a further' if again else 'a first'} delivery ends: {fate}")
        task.holder, task.expired = "", False
        if fate == "lost":
            task.attempt -= 1
            task.place = "dead"
            return
        task.outcomes = min(OUTCOMES_KEEP, task.outcomes + 1 if again else 1)
        if fate.startswith("retry"):
            task.place, task.waits = "schedule", fate == "retry far"
        else:
            task.place = "finished" if fate == "finished" else "dead"
        if fate == "finished":
            self.ledger[f"delivered:{task.queue}"] += 1
            if task.chosen:
                self.remembered[task_id] = task.due

    def forget_finished(self, queue: str) -> None:
        """Removes the oldest from the history; of those that ended in the same millisecond it may be any."""
        mine = set(self.ids(lambda task: task.place == "finished" and task.queue == queue))
        kept = {client_id(one.decode()) for one in cast("list[bytes]", self.redis.zrange(keys.finished(queue), 0, -1))}
        assert kept <= mine
        assert len(kept) == min(len(mine), RETENTION_COUNT)
        for task_id in mine - kept:
            del self.tasks[task_id]

    def forget_dead(self, queue: str, dropped: Sequence[str], keep: int) -> None:
        """Removes exactly those that the reply names."""
        mine = self.ids(lambda task: task.place == "dead" and task.queue == queue)
        assert not dropped or (keep and len(mine) - len(dropped) == keep)
        for task_id in dropped:
            event("a dead one is dropped")
            assert task_id in mine
            del self.tasks[task_id]
            self.ledger[f"dropped:{queue}"] += 1

    # --- reclaiming, giving back ---------------------------------------------------------------------------------

    def worker_dies(self, token: str) -> None:
        self.alive.discard(token)
        self.redis.zadd(keys.WORKERS, {token: self.now() - 60})

    def reclaim(self) -> None:
        known = {token.decode() for token in cast("list[bytes]", self.redis.zrange(keys.WORKERS, 0, -1))}
        dead = known - self.alive
        reclaimed = self.scheduler.housekeeping.reclaim(*QUEUES)
        gone = self.ids(lambda task: task.place == "started" and (task.expired or task.holder in dead))
        assert Counter(reclaimed) == Counter(map(stored_id, gone))
        for task_id in map(client_id, reclaimed):
            event("one is reclaimed")
            task = self.tasks[task_id]
            task.outcomes = min(OUTCOMES_KEEP, task.outcomes + 1)
            self.return_to_queue(task_id)

    def forget(self, keeping_ends: bool) -> None:
        """With `keeping_ends` the retention of one delivered task has ended."""
        (ended,) = self.ids(lambda task: task.place == "finished")[:1] or ("",)
        if ended and keeping_ends:
            self.redis.zadd(keys.finished(self.tasks.pop(ended).queue), {stored_id(ended): keys.FOREVER_SECONDS + 1})
            event("one is forgotten")
        assert self.scheduler.housekeeping.forget(*QUEUES) == (1 if ended and keeping_ends else 0)

    def nack(self, queue: str, token: str, keep: int) -> None:
        mine = self.held(queue, token)
        kept, given_back = mine[:keep], mine[keep:]
        assert leases.nack(queue, token, map(stored_id, kept)).run(self.redis) == len(given_back)
        returned = self.in_queue(queue)[: len(given_back)]
        assert Counter(returned) == Counter(given_back)
        for task_id in reversed(returned):
            event("one is given back")
            self.tasks[task_id].attempt -= 1
            self.return_to_queue(task_id)

    def return_to_queue(self, task_id: str) -> None:
        task = self.tasks[task_id]
        task.place, task.holder, task.expired = "queue", "", False
        self.queued[task.queue].insert(0, task_id)

    # --- decisions of users --------------------------------------------------------------------------------------

    def cancel(self, task_id: str) -> None:
        task = self.tasks[task_id]
        if task.place not in ("schedule", "queue"):
            with pytest.raises(WrongState) as error:
                tasks.cancel(self.redis, task_id)
            assert error.value.state == _STATE[task.place]
            return
        assert tasks.cancel(self.redis, task_id) == _STATE[task.place]
        event(f"one is cancelled: {task.place}")
        if task.place == "queue":
            self.queued[task.queue].remove(task_id)
        del self.tasks[task_id]
        self.ledger[f"cancelled:{task.queue}"] += 1

    def pause(self, queue: str) -> None:
        """Pauses a queue, or resumes it."""
        queues.pause_queue(self.redis, queue, queue not in self.paused)
        self.paused ^= {queue}

    def purge(self, queue: str) -> None:
        gone, self.queued[queue] = self.queued[queue], []
        assert queues.purge_queue(self.redis, queue) == len(gone)
        for task_id in gone:
            event("one is purged")
            del self.tasks[task_id]
            self.ledger[f"cancelled:{queue}"] += 1

    def forget_one(self, task_id: str) -> None:
        task = self.tasks[task_id]
        if task.place != "finished":
            with pytest.raises(WrongState) as error:
                tasks.forget(self.redis, task_id)
            assert error.value.state == _STATE[task.place]
            return
        assert tasks.forget(self.redis, task_id) == "delivered"
        event("one is forgotten because somebody asked for it")
        del self.tasks[task_id]

    def retry_dead(self, wanted: list[str]) -> None:
        dead = self.dead_of(wanted)
        assert tasks.retry(self.redis, wanted) == dead
        for task_id in dead:
            event("a dead one is tried again")
            task = self.tasks[task_id]
            task.history = min(OUTCOMES_KEEP, task.history + task.outcomes)
            task.place, task.attempt, task.outcomes = "queue", 0, 0
            self.queued[task.queue].append(task_id)

    def remove_dead(self, wanted: list[str]) -> None:
        dead = self.dead_of(wanted)
        assert tasks.remove_dead(self.redis, wanted) == dead
        for task_id in dead:
            event("a dead one is removed")
            self.ledger[f"removed:{self.tasks.pop(task_id).queue}"] += 1

    def dead_of(self, wanted: list[str]) -> list[str]:
        return [task_id for task_id in wanted if task_id in self.tasks and self.tasks[task_id].place == "dead"]

    # --- invariants ----------------------------------------------------------------------------------------------

    @invariant()
    def each_is_in_its_one_place(self) -> None:
        found: dict[str, list[tuple[str, str]]] = {task_id: [] for task_id in self.tasks}

        def note(place: str, queue: str, members: Any) -> None:
            for member in members:
                task_id = client_id(member.decode().partition(":")[0])
                found.setdefault(task_id, []).append((place, queue))

        note("schedule", "", self.redis.zrange(keys.SCHEDULE, 0, -1))
        for queue in QUEUES:
            note("queue", queue, self.redis.lrange(keys.queue(queue), 0, -1))
            note("started", queue, self.redis.zrange(keys.started(queue), 0, -1))
            note("finished", queue, self.redis.zrange(keys.finished(queue), 0, -1))
            note("dead", queue, self.redis.zrange(keys.failed(queue), 0, -1))
            assert self.in_queue(queue) == self.queued[queue]
        for task_id, places in found.items():
            assert task_id in self.tasks, f"{task_id} does not belong to a task"
            task = self.tasks[task_id]
            assert places == [(task.place, "" if task.place == "schedule" else task.queue)], task_id

    @invariant()
    def each_has_a_job_that_says_where_it_is(self) -> None:
        for task_id, task in self.tasks.items():
            fields: Any = self.redis.hgetall(keys.job(stored_id(task_id)))
            job = {name.decode(): value for name, value in fields.items()}
            assert job["data"].startswith(b'["qtask.do",0,[{')
            assert job["origin"].decode() == task.queue
            assert job["timeout"] == b"18"
            status = job.get("status", b"scheduled").decode()
            assert status == _STATUS.get(task.place, "scheduled"), task_id
            assert int(job.get("attempt", 0)) == task.attempt
            for name, lines in (("outcomes", task.outcomes), ("history", task.history)):
                assert len(job.get(name, b"").splitlines()) == lines, (task_id, name)
            assert self.redis.ttl(keys.job(stored_id(task_id))) == -1

    @invariant()
    def nothing_else_is_left_behind(self) -> None:
        fixed = {keys.INBOX, keys.QUEUES, keys.COUNTERS, keys.LEDGER, keys.WORKERS, keys.SCHEDULE, keys.stats("http")}
        fixed |= {keys.PAUSED_QUEUES} if self.paused else set()
        for queue in QUEUES:
            fixed |= {keys.queue(queue), keys.started(queue), keys.finished(queue), keys.failed(queue)}
        fixed |= {f"rq:worker:{token}" for token in TOKENS} | {keys.node(NUMBER)}
        found = {key.decode() for key in cast("list[bytes]", self.redis.keys("*"))}
        jobs = {key for key in found if key.startswith(keys.JOB_PREFIX)}
        ids = {key for key in found if key.startswith(keys.ID_PREFIX)}
        assert jobs == {keys.job(stored_id(task_id)) for task_id in self.tasks}
        assert ids == {keys.ID_PREFIX + stored_id(task_id) for task_id in self.remembered}
        assert found - jobs - ids <= fixed
        assert self.redis.xlen(keys.INBOX) == 0
        assert sum(map(int, self.redis.hvals(keys.COUNTERS))) == self.settled

    @invariant()
    def the_ledger_balances(self) -> None:
        """At every instant, in total and for each queue."""
        counted: Any = self.redis.hgetall(keys.LEDGER)
        assert {name.decode(): int(count) for name, count in counted.items()} == +self.ledger
        figures = read_figures(self.redis)
        assert figures.owed == figures.held == len(self.ids(lambda task: task.place != "finished"))
        for queue in QUEUES:
            waiting = self.ids(lambda task, queue=queue: (task.place, task.queue) == ("schedule", queue))  # type: ignore[misc]
            assert figures.scheduled_of(queue) == len(waiting)

    # --- helpers of the rules ------------------------------------------------------------------------------------

    def now(self) -> float:
        seconds, microseconds = self.redis.time()
        return float(seconds) + microseconds / 1e6

    def in_queue(self, queue: str) -> list[str]:
        return [client_id(one.decode()) for one in cast("list[bytes]", self.redis.lrange(keys.queue(queue), 0, -1))]

    def ids(self, fits: Callable[[ModelTask], bool]) -> list[str]:
        return [task_id for task_id, task in self.tasks.items() if fits(task)]

    def held(self, queue: str, token: str) -> list[str]:
        return self.ids(lambda task: (task.place, task.queue, task.holder) == ("started", queue, token))


@pytest.mark.timeout(300)  # shrinking a failure takes longer than the test
@pytest.mark.parametrize("examples", [30, pytest.param(150, marks=pytest.mark.slow)])
def test_each_task_is_in_exactly_one_place_after_any_steps(redis: Redis, examples: int) -> None:
    Places.redis = redis
    bounds = settings(
        max_examples=examples, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_machine(Places, settings=bounds)
