"""Workers and schedulers that are registered in Redis."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

from qtask.model.timing import format_duration
from qtask.run.doctor.finding import Examined, Finding
from qtask.store import health

HEARTBEAT_SECONDS = 10.0  # a worker without a heartbeat for so long does not count as alive


def workers(here: Examined) -> Finding:
    """Whether a worker is alive."""
    alive = health.count_workers(here.redis, health.now(here.redis) - HEARTBEAT_SECONDS)
    if not alive:
        stock = health.count_registered_workers(here.redis)
        if stock:
            words = f"no worker of QTask is alive, but {stock} of RQ are registered"
            return Finding("note", words, "start one with `qtask worker`: it delivers many tasks at once")
        return Finding("wrong", "no worker is alive: nothing is delivered", "start one with `qtask worker`")
    return Finding("fine", "1 worker is alive" if alive == 1 else f"{alive} workers are alive")


def silent_workers(here: Examined) -> list[Finding]:
    """Workers of QTask that are registered with RQ and send no heartbeats."""
    findings = []
    now = health.now(here.redis)
    for worker in health.registered_workers(here.redis):
        if not worker.token or not worker.last_heartbeat:
            continue
        beat, host, pid = worker.last_heartbeat, worker.hostname, worker.pid
        silent = now - datetime.fromisoformat(beat.replace("Z", "+00:00")).replace(tzinfo=UTC).timestamp()
        if silent <= HEARTBEAT_SECONDS:
            continue
        name = f"the worker with pid {pid} on {host}"
        words = f"has sent no heartbeat for {format_duration(silent)}"
        if host == socket.gethostname() and _lives(int(pid or 0)):
            advice = f"it is frozen or hangs; its tasks go to other workers: end it with `kill -9 {pid}`"
            findings.append(Finding("wrong", f"{name} {words}, but its process exists", advice))
        else:
            advice = "if that was not intended, start it again; its tasks go to other workers"
            findings.append(Finding("note", f"{name} {words}: it was killed, or cannot reach Redis", advice))
    return findings


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def schedulers(here: Examined) -> Finding:
    """Whether a scheduler of QTask or a stock rqscheduler is alive."""
    finding = _scheduler(here)
    if finding.level == "wrong" and health.has_stock_scheduler(here.redis):
        advice = "it checks for due tasks once a minute by default: stop it, and start `qtask scheduler`"
        return Finding("note", "a stock rqscheduler is running, and no scheduler of QTask: tasks are late", advice)
    return finding


def _scheduler(here: Examined) -> Finding:
    if not health.has_scheduler(here.redis):
        return Finding("wrong", "no scheduler is alive: nothing becomes due", "start one with `qtask scheduler`")
    if health.is_stock_scheduler(here.redis):
        return Finding("fine", "a stock rqscheduler is running")
    return Finding("fine", "a scheduler is alive")
