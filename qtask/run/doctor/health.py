"""`qtask health`: whether the processes of one kind on this host, or in this container, are healthy."""

from __future__ import annotations

from pathlib import Path

from qtask.config import Config
from qtask.model.errors import QTaskError
from qtask.run.doctor.finding import Finding
from qtask.run.doctor.gateway import socket_answers


def health(config: Config, process: str) -> Finding:
    """Whether the processes of one kind are healthy.

    A gateway must answer. Schedulers and workers must have written a heartbeat recently, which a process that hangs
    does not do. None of this needs Redis: if an orchestrator restarted workers because Redis is away, they would lose
    the outcomes that they keep until it is back.

    Args:
        config: has the address of the gateway, or the Redis and the queue of the others.
        process: `gateway`, `scheduler` or `worker`.
    """
    if process == "gateway":
        return socket_answers(config, "wrong")
    # The check of a gateway runs every few seconds and needs none of these.
    from qtask.model.redis_address import without_password
    from qtask.process import heartbeat
    from qtask.run.embedded import noted_url

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
