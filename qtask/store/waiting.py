"""Tasks that wait in their flows: pages of them, and what one of them waits for."""

from __future__ import annotations

import msgspec

from qtask.model.flow_record import Wait, wait_in
from qtask.model.ids import client_id
from qtask.store import keys
from qtask.store.flow_records import find_flow, scan_names
from qtask.store.flows import Extra
from qtask.store.pages import Cursor, Page, Place, decode_cursor, encode_cursor, sorted_page, text
from qtask.store.queries import Steps, commands

FLOWS_AT_ONCE = 100  # flows whose sizes are read in one round trip
ROUNDS = 100  # of these for one page, so that a page has an end where many flows have no waiting tasks


def waiting_page(cursor: Cursor, limit: int) -> Steps[Page[str]]:
    """The stored ids of the tasks of a queue that wait in flows, after a cursor, up to `limit` of them (at least one).

    Flow by flow, in no order of the flows; the tasks of one flow in the order in which they begin. The page may have
    fewer tasks, or none, even if more follow. A flow in which tasks wait all the while is on the pages once; one that
    comes or goes meanwhile may be on them twice.
    """
    found: list[str] = []
    scan, names, at = cursor.scan, list(cursor.flows), cursor
    for _ in range(ROUNDS):
        if not names:
            if scan == "0":
                return Page(found)
            listed, scan = yield from scan_names(scan or "0", FLOWS_AT_ONCE)
            names = yield from _with_tasks(listed)
        while names and len(found) < limit:
            place = Place(keys.WAITING_PREFIX + names[0], shared=True)
            page = yield from sorted_page(place, at, limit - len(found))
            found += [id_of(member) for member in page.items]
            if page.cursor:
                at = decode_cursor(page.cursor, cursor.order, cursor.queue)
            else:
                at = Cursor(cursor.order, cursor.queue)
                del names[0]
        if len(found) >= limit:
            break
    if not names and scan == "0":
        return Page(found)
    return Page(
        found, encode_cursor(Cursor(cursor.order, cursor.queue, at.score, at.member, scan=scan or "0", flows=names))
    )


def _with_tasks(names: list[str]) -> Steps[list[str]]:
    """Those of the flows in which tasks wait."""
    counts = (yield commands(*(("ZCARD", keys.WAITING_PREFIX + name) for name in names))) if names else []
    return [name for name, count in zip(names, counts, strict=True) if count]


def id_of(member: str) -> str:
    """The stored id in a member of a waiting set, which may begin with a rank; see flows.lua."""
    return member.rpartition(":")[2]


def wait_of(task_id: str) -> Steps[Wait | None]:
    """What a task waits for in its flow; None if it does not wait in one.

    Args:
        task_id: its stored id.
    """
    ((raw,),) = yield commands(("HMGET", keys.job(task_id), "extra"))
    if not raw:
        return None
    extra = msgspec.json.decode(raw, type=Extra)
    member = f"{extra.rank}:{task_id}" if extra.rank else task_id
    flow = yield from find_flow(extra.flow)
    rank, first = yield commands(
        ("ZRANK", keys.WAITING_PREFIX + extra.flow, member), ("ZRANGE", keys.SLOTS_PREFIX + extra.flow, 0, 0)
    )
    if rank is None or flow is None:
        return None
    holder, retry = (text(first[0]) if first else ""), None
    if holder and flow.ordered:
        (retry,) = yield commands(("ZSCORE", keys.SCHEDULE, holder))
    return wait_in(flow, int(rank) + 1, client_id(holder) if holder else "", None if retry is None else float(retry))
