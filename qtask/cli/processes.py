"""`qtask up`, `gateway`, `scheduler`, `worker`: run the processes. `qtask health`: check one of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

import click

from qtask.cli.options import CONCERNS, GATEWAY, LOGS, LOOK, STORE, WORKER, settings
from qtask.config import Config
from qtask.model.errors import QTaskError

# Packages that the processes import, some of them only for the first task that needs them.
_SERVICE_PACKAGES = ("uvloop", "pycurl", "rq", "rq_scheduler", "matplotlib", "websockets")


@click.command()
@settings("redis_url", "redis_memory_mib", "workers", *dict.fromkeys((*GATEWAY[1:], *WORKER[1:])))
def up(config: Config) -> None:
    """Run all of QTask, with its own Redis.

    Starts a gateway, a scheduler and workers as separate processes, and restarts those that die. They use the Redis
    given with --redis; without it, QTask starts one and keeps its data in --data-dir.
    """
    from qtask.run.up import up as run

    need_service()
    _run("up", run, config)


@click.command()
@settings(*GATEWAY)
def gateway(config: Config) -> None:
    """Run a gateway: accept tasks."""
    from qtask.gateway.process import run

    _run("gateway", run, config)


@click.command()
@settings(*STORE, *LOGS)
def scheduler(config: Config) -> None:
    """Run a scheduler: release due tasks."""
    from qtask.scheduler.process import run

    _run("scheduler", run, config)


@click.command()
@settings(*WORKER, "processes")
def worker(config: Config) -> None:
    """Run a worker: deliver tasks."""
    from qtask.worker.process import run

    flags = click.get_current_context().params
    if flags["queue"] and not flags["queues"]:
        config = replace(config, queues="")  # a flag comes before what the environment or a file says
    _run("worker", run, config)


@click.command()
@click.argument("process", type=click.Choice(["gateway", "scheduler", "worker"]))
@settings(*LOOK, "host", "port")
def health(config: Config, process: str) -> None:
    """Check that a process is healthy.

    For health checks of a container or host. Exits with 0 if the process is healthy, else with 1. A gateway must
    answer. The schedulers or workers on this host, for this Redis and queue, must have sent a heartbeat recently. It
    does not check whether Redis answers.
    """
    from qtask.run.doctor.health import health as look

    finding = look(config, process)
    click.echo(finding.as_line())
    sys.exit(0 if finding.level == "fine" else 1)


def need_service() -> None:
    """Raises `ModuleNotFoundError` when a package of the service is missing, before any process is started."""
    for package in _SERVICE_PACKAGES:
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


def _run(process: str, run: Callable[[Config], None], config: Config) -> None:
    """Runs a process. An expected error is logged as its last event, and the exit code is 1."""
    from qtask.observe import log

    log.setup(config, process)
    for sentence in click.get_current_context().meta.get(CONCERNS, ()):
        log.logger.warning("setting", extra={"about": sentence})
    try:
        run(config)
    except QTaskError as error:
        log.logger.error("failed", extra={"error": str(error)})
        sys.exit(1)
