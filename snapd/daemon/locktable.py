"""What ``csnap locks`` is told: every hold and ticket of every member, in words, as plain values for JSON.

All of it is this host's mirror of etcd, so nothing is asked of anybody. Ages are since this host has seen a key: no
clock of another host is involved, and what was there when this host started is at least that old.
"""

from __future__ import annotations

from typing import Any

from snapd import trace
from snapd.daemon.waits import blockers
from snapd.lockspace.keys import kind
from snapd.lockspace.member import LockRow, Member
from snapd.messages import EX, MODE_NAMES, NL
from snapd.trace import Used
from snapd.units import SECOND

SILENT = 2 * SECOND
"""How old what the worker says of itself may be: it looks four times a second."""


def report(member: Member, page: memoryview | None, now: int) -> list[dict[str, Any]]:
    """The value of ``csnap locks --json``, one object a hold or ticket; docs/operations.md has its fields."""
    names = {record.store: record.name for record in member.snapshots()}
    record = member.format
    region = record.region_size if record is not None else 0
    used = trace.used(page) if page is not None else None
    rows = member.locks()
    queues: dict[str, list[LockRow]] = {}
    for row in rows:
        if row.waiting:
            queues.setdefault(row.resource, []).append(row)
    return [_row(row, queues.get(row.resource, []), member, names, region, used, now) for row in rows]


def _row(
    row: LockRow,
    queue: list[LockRow],
    member: Member,
    names: dict[str, str],
    region: int,
    used: Used | None,
    now: int,
) -> dict[str, Any]:
    what = kind(row.resource)
    rest = row.resource.partition("/")[2]
    own = row.node == member.settings.node
    entry = member.resources.entries.get(row.resource) if own else None
    excluded = [ticket for ticket in queue if ticket.node != row.node and EX in (row.mode, ticket.mode)]
    asked = entry is not None and entry.revoked is not None and not row.waiting
    start = int(rest) * region if what == "region" and region else None
    return {
        "resource": row.resource,
        "kind": what,
        "snapshot": names.get(rest) if what == "tail" else None,
        "region": int(rest) if what == "region" else None,
        "bytes": [start, start + region] if start is not None else None,
        "node": row.node,
        "own": own,
        "mode": MODE_NAMES[row.mode],
        "state": "waiting" if row.waiting else "held",
        "position": 1 + queue.index(row) if row.waiting else None,
        "since_seconds": _seconds(now - row.since),
        "use": _use(row, entry.given if entry is not None else NL, used, now) if own and not row.waiting else None,
        "wanted_seconds": _seconds(now - min(ticket.since for ticket in excluded))
        if excluded and not row.waiting
        else None,
        "asked_back_seconds": _seconds(now - entry.revoked_at) if entry is not None and asked else None,
        "waits_for": sorted(blockers(member.mirror, row.node, row.resource, row.mode, row.revision))
        if row.waiting
        else [],
    }


def _use(row: LockRow, given: int, used: Used | None, now: int) -> str:
    """``cached``: held, and no I/O of this host needs it at the moment (the worker says so four times a second)."""
    what, _, rest = row.resource.partition("/")
    if not given:
        return "given back"  # the worker has; etcd is told next
    if used is None or now - used.ticked > SILENT:
        return "worker silent"
    busy = {
        "table": lambda: used.running > 0,
        "region": lambda: int(rest) in used.regions,
        "tail": lambda: trace.half(rest) in used.tails,
    }[what]()
    return "in use" if busy else "cached"


def _seconds(nanoseconds: int) -> float:
    return round(max(0, nanoseconds) / SECOND, 1)
