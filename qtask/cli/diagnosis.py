"""`qtask doctor`, `audit`: find problems."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from qtask.cli.connection import connected
from qtask.cli.options import LOOK, json_flag, settings
from qtask.config import Config


@click.command()
@json_flag
@settings(*LOOK, "host", "port", "http_port", "pipe_dir")
def doctor(config: Config, as_json: bool) -> None:
    """Find problems of this installation, and say how to fix them."""
    from qtask.run.doctor.examination import examine

    findings = examine(config)
    for finding in findings:
        click.echo(json.dumps(finding.as_dict()) if as_json else finding.as_line())
    sys.exit(1 if any(finding.level == "wrong" for finding in findings) else 0)


@click.command()
@click.option("--write-off", is_flag=True, help="count missing tasks as gone, so that later audits balance")
@json_flag
@settings(*LOOK)
def audit(config: Config, as_json: bool, write_off: bool) -> None:
    """Check that every accepted task is accounted for.

    Prints, for all queues together, that accepted = scheduled + waiting + queued + in flight + delivered + dead +
    cancelled + removed, and the ids of tasks that do not fit. It may run at any time. Exits with 1 if it does not
    balance.
    """
    from qtask.observe import tables
    from qtask.store import audit as auditing

    redis = connected(config)
    found = auditing.audit(redis)
    if as_json:
        click.echo(tables.to_json({"balances": found.balances, **asdict(found)}))
    else:
        tables.print_audit(found)
    if write_off and found.missing:
        auditing.write_off(redis, found.missing)
    sys.exit(0 if found.balances else 1)
