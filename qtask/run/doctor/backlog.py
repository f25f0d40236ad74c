"""Tasks that are stuck: overdue, waiting for workers, dead, or refused by the inbox."""

from __future__ import annotations

import json
from collections import Counter

from qtask.model.timing import format_duration
from qtask.run.doctor.finding import Examined, Finding
from qtask.store import health, queues, tasks

OVERDUE_SECONDS = 5.0
WAITED_SECONDS = 10.0  # in a queue, after which the workers count as too slow
DEAD_LOOKED_AT = 500  # newest dead letters whose errors are counted


def overdue(here: Examined) -> Finding:
    """Due tasks that have not been released."""
    late = health.count_due_before(here.redis, health.now(here.redis) - OVERDUE_SECONDS)
    if late:
        return Finding(
            "wrong", f"overdue by more than {OVERDUE_SECONDS:g} s, and not released: {late}", "is a scheduler alive?"
        )
    return Finding("fine", f"no task is overdue; in the schedule: {health.count_scheduled(here.redis)}")


def waiting_queues(here: Examined) -> list[Finding]:
    """Queues from which no worker takes tasks, or not fast enough, and those that are paused."""
    findings = []
    now = health.now(here.redis)
    for record in queues.list_queues(here.redis):
        name, length = record.name, record.queued
        waiting = health.waiting(here.redis, name)
        if record.paused:
            words = f"the queue {name} is paused and holds {length} tasks"
            findings.append(Finding("note", words, f"resume it with `qtask queue resume {name}`"))
            continue
        if waiting is None:
            continue
        length = waiting.length
        if not waiting.has_worker:
            words = f"the queue {name} holds {length} tasks, and no worker takes from it"
            findings.append(Finding("wrong", words, f"start one with `qtask worker --queue {name}`"))
            continue
        waited = now - waiting.oldest_due if waiting.oldest_due else 0.0
        if waited > WAITED_SECONDS:
            words = f"the queue {name} holds {length} tasks, the first of which waits for {format_duration(waited)}"
            advice = "the workers do not keep up, or are suspended (`rq resume`): start more with `qtask worker`"
            findings.append(Finding("wrong", words, advice))
    return findings or [Finding("fine", "no queue waits for workers")]


def dead_letters(here: Examined) -> list[Finding]:
    """Dead letters of each queue, and their most frequent errors."""
    found = [_dead_letters(here, one.name, one.dead) for one in queues.list_queues(here.redis) if one.dead]
    return found or [Finding("fine", "no dead letters")]


def _dead_letters(here: Examined, queue: str, count: int) -> Finding:
    records = tasks.list_tasks(here.redis, queue, "dead", DEAD_LOOKED_AT)
    last = [record.outcomes[-1] for record in records if record.outcomes]
    errors = Counter(str(one.code) if one.error == "status" else one.error for one in last).most_common(3)
    told = ", ".join(f"{times} by {error}" for error, times in errors)
    newest = f" of the newest {len(records)}" if count > len(records) else ""
    letters = "dead letter" if count == 1 else "dead letters"
    words = f"{count} {letters} in the queue {queue}{newest}: {told or 'no outcomes'}"
    advice = "see them with `qtask list --state dead`; then `qtask retry` or `qtask remove` (--all, or --error KIND)"
    return Finding("note", words, advice)


def refused_entries(here: Examined) -> Finding:
    """Entries of the inbox that were refused."""
    count = health.count_refused(here.redis)
    if not count:
        return Finding("fine", "no entries of the inbox were refused")
    try:
        error = json.loads(health.newest_refusal(here.redis) or b"")["error"]
        why = f"{error['code']} {error['field']}".strip()
    except (LookupError, ValueError, TypeError):
        why = "unknown"
    words = f"{count} {'entry' if count == 1 else 'entries'} of the inbox refused, the newest for: {why}"
    advice = (
        f"see them with `redis-cli XREVRANGE {health.REFUSED} + - COUNT 10`, and remove them with DEL {health.REFUSED}"
    )
    return Finding("note", words, advice)
