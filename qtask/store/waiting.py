"""Tasks that wait in their flows: pages of them, and what one of them waits for."""

from __future__ import annotations

from itertools import accumulate

import msgspec

from qtask.model.flow_record import Wait, wait_in
from qtask.model.ids import client_id
from qtask.store import keys
from qtask.store.flow_records import find_flow, scan_names
from qtask.store.flows import Extra
from qtask.store.pages import LIMIT, Cursor, Page, Place, decode_cursor, encode_cursor, sorted_page, text, texts
from qtask.store.queries import Steps, commands

FLOWS_AT_ONCE = 100  # flows that are read in one round trip
LOOK = 10_000  # flows and tasks that are looked at for one page; it ends then, whether or not it is full


def waiting_page(cursor: Cursor, limit: int) -> Steps[Page[str]]:
    """The stored ids of the tasks of a queue (of all, without a name) that wait in flows, after a cursor, up to `limit`
    of them (at least one).

    Flow by flow, in no order of the flows; the tasks of one flow in the order in which they begin. The page may have
    fewer tasks, or none, even if more follow. A flow in which tasks wait all the while is on the pages once; one that
    comes or goes meanwhile may be on them twice.
    """
    found: list[str] = []
    scan, names, at = cursor.scan, list(cursor.flows), cursor
    limit, looked = max(1, min(limit, LIMIT)), 0
    while looked < LOOK and len(found) < limit:
        if not names:
            if scan == "0":
                return Page(found)
            names, scan = yield from scan_names(scan or "0", FLOWS_AT_ONCE)
            looked += len(names)
            continue
        room = limit - len(found)
        whole = [] if at.score else (yield from _whole_flows(names, room))
        if whole:
            members = [member for flow in whole for member in flow]
            found += yield from _of_queue([id_of(member) for member in members], cursor.queue)
            looked += len(members)
            del names[: len(whole)]
            continue
        page = yield from sorted_page(Place(keys.WAITING_PREFIX + names[0], shared=True), at, room)
        found += [id_of(member) for member in page.items]
        looked += len(page.items)
        if page.cursor:
            at = decode_cursor(page.cursor, cursor.order, cursor.queue)
        else:
            at = Cursor(cursor.order, cursor.queue)
            del names[0]
    if not names and scan == "0":
        return Page(found)
    end = Cursor(cursor.order, cursor.queue, at.score, at.member, scan=scan, flows=names)
    return Page(found, encode_cursor(end))


def _whole_flows(names: list[str], room: int) -> Steps[list[list[str]]]:
    """The members of the first flows, as many of these as have no more than `room` members together."""
    counts = yield commands(*(("ZCARD", keys.WAITING_PREFIX + name) for name in names))
    sizes = [size for size, total in zip(counts, accumulate(counts), strict=True) if total <= room]
    if not any(sizes):
        return [[] for _ in sizes]
    asked = (("ZRANGE", keys.WAITING_PREFIX + name, 0, size) for name, size in zip(names, sizes, strict=False))
    found = [texts(members) for members in (yield commands(*asked))]
    # A flow that has grown since it was counted is read by its own pages.
    grown = (number for number, members in enumerate(found) if len(members) > sizes[number])
    return found[: next(grown, len(found))]


def _of_queue(ids: list[str], queue: str) -> Steps[list[str]]:
    """Those of the tasks that belong to a queue; all of them without a name."""
    if not ids or not queue:
        return ids
    origins = yield commands(*(("HMGET", keys.job(task_id), "origin") for task_id in ids))
    return [task_id for task_id, (origin,) in zip(ids, origins, strict=True) if text(origin) == queue]


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
