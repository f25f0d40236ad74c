"""One run: `python -m tests.chaos.run [--seed N] [--seconds N] [--tasks N]`; it exits 1 when the ledger has faults."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from redis.exceptions import RedisError

from qtask.store import keys
from qtask.store.audit import audit
from tests.chaos.ledger import Ledger, balance, say_audit, say_disruptions
from tests.chaos.plan import Plan, make_plan
from tests.chaos.receivers import Receivers
from tests.chaos.store import read_store
from tests.chaos.submitters import REPLY_PREFIX, ClientSubmitter, ForkSubmitter, InboxSubmitter, Notes, Submitter
from tests.chaos.system import QUEUE, System

DRAIN_SECONDS = 90.0  # after the last disruption: enough for leases, retries and inbox entries to finish
SUBMIT_SECONDS = 30.0  # after the last disruption: unanswered tasks are sent again
HISTORY_SHARE = 4  # the history keeps one task in four, so that it drops some during the run


def run(plan: Plan, folder: Path) -> Ledger:
    """Executes a plan; all its files are in the folder."""
    notes = Notes(len(plan.tasks))
    began = time.monotonic()
    with Receivers(folder) as receivers, System(folder, receivers.pipes, len(plan.tasks) // HISTORY_SHARE) as system:
        rest = (plan.tasks, receivers.places, notes)
        submitters: list[Submitter] = [
            ClientSubmitter("socket", system.gateway_urls, *rest),
            ClientSubmitter("client", [system.redis_url], *rest),
            InboxSubmitter(system.redis_url, *rest),
            ForkSubmitter("fork", [system.redis_url, system.gateway_urls[0]], *rest),
        ]
        for submitter in submitters:
            submitter.start()
        system.begin(plan.events)
        system.wait()
        for submitter in submitters:
            submitter.end(SUBMIT_SECONDS + plan.seconds)
        executed = time.monotonic()
        _drain(system)
        drained = time.monotonic()
        system.end()
        audited = audit(system.redis)
        store = read_store(system.redis, QUEUE, reply_prefix=REPLY_PREFIX)
        arrivals = receivers.close()
        ledger = balance(plan, notes, arrivals, store, system.disruptions)
        say_audit(ledger, audited)
        say_disruptions(ledger, system.disruptions, system.cuts)
        if not system.disk.is_small:
            ledger.say("", "the disk was never full: only root can mount one that is small enough to be filled")
        reclaims = system.logged("reclaimed").total()
        ledger.say(
            "took", f"{executed - began:.0f} s of chaos, {drained - executed:.0f} s to the end; {reclaims} reclaims"
        )
        ledger.add_fault("complaints about processes", system.complaints)
        ledger.add_fault("unexpected output of processes", system.unexpected_output())
    return ledger


def _drain(system: System) -> None:
    """Waits until every task has ended; the ledger names those that have not."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < deadline:
        try:
            with system.redis.pipeline(transaction=False) as pipeline:
                pipeline.zcard(keys.SCHEDULE)
                pipeline.llen(keys.queue(QUEUE))
                pipeline.zcard(keys.started(QUEUE))
                pipeline.xlen(keys.INBOX)
                for flow in cast("list[bytes]", system.redis.zrange(keys.FLOWS, 0, -1)):
                    pipeline.zcard(keys.WAITING_PREFIX + flow.decode())
                if not any(pipeline.execute()):
                    return
        except (RedisError, OSError):
            pass  # Redis is being restarted; the deadline limits this
        time.sleep(0.1)


def main() -> None:
    """Reads the command line, executes the plan, prints the ledger."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` the processes would ignore it, and the plan sends it
    parser = argparse.ArgumentParser(description="Kills processes at random while tasks go through, and counts them.")
    parser.add_argument("--seed", type=int, help="plays this plan again; random by default")
    parser.add_argument("--seconds", type=float, default=540.0, help="for which tasks are submitted")
    parser.add_argument("--tasks", type=int, default=50_000)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    again = f"--seed {seed} --seconds {given.seconds:g} --tasks {given.tasks}"
    print(f"chaos: {given.tasks} tasks within {given.seconds:g} s; to play it again: {again}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="qtask-chaos-"))
    ledger = run(make_plan(seed, given.seconds, given.tasks), folder)
    print("\n".join(ledger.lines))
    if ledger.faults:
        print("\n".join(["FAULTS", *(f"  {fault}" for fault in ledger.faults)]))
        sys.exit(f"the ledger does not balance; seed {seed}, logs in {folder}")
    shutil.rmtree(folder)
    print("the ledger balances")


if __name__ == "__main__":
    main()
