"""What ``csnap top`` is told: the figures of one moment, as plain values for JSON.

Names and not the counters page's words: the command and the daemon may be of different versions. Counters are totals
since this daemon's start; whoever wants a rate asks twice and divides by the difference of ``now_seconds``. Of other
hosts this one knows what stands in etcd (member records, holds, tickets); their I/O and their leases it does not.
"""

from __future__ import annotations

from typing import Any

from snapd import counters
from snapd.daemon import status
from snapd.daemon.status import View
from snapd.errors import FormatError
from snapd.lockspace.kv import KeyValue
from snapd.lockspace.member import Member
from snapd.lockspace.records import TicketRecord
from snapd.messages import EX, MODE_NAMES
from snapd.units import SECOND, SECTOR

FORMAT = 1
"""Raised when a value changes its meaning; new ones may come at any time."""

WAITS_MOST = 200
"""Tickets told one by one, the oldest: three at 3 a.m. are read, two hundred fit no screen."""


KINDS = {kind[:3]: kind for kind in ("table", "region", "tail")}


def report(view: View, now: int) -> dict[str, Any]:
    """``now``: boottime, as the worker stamps."""
    member = view.member
    waits = _waits(member, now) if member is not None else []
    waits.sort(key=lambda wait: -wait["since_seconds"])
    return {
        "format": FORMAT,
        "now_seconds": now / SECOND,
        "incarnation": member.settings.incarnation if member is not None else "",
        "status": status.report(view),
        "held": _held(member) if member is not None else {},
        "waits": waits[:WAITS_MOST],
        "waits_total": len(waits),
        "worker": _worker(view.words, now) if view.words is not None else None,
        "snapshots": _snapshots(view),
    }


def _held(member: Member) -> dict[str, dict[str, int]]:
    """Per node: how many holds of each kind and mode, as ``region/EX``."""
    counts: dict[tuple[str, tuple[str, int]], int] = {}
    for resource, holds in member.mirror.holds.items():  # tens of thousands, in the control loop: no more than needed
        for hold in holds:
            counts[resource[:3], hold] = counts.get((resource[:3], hold), 0) + 1
    held: dict[str, dict[str, int]] = {}
    for (begin, (node, mode)), count in counts.items():
        held.setdefault(node, {})[f"{KINDS[begin]}/{MODE_NAMES[mode]}"] = count
    return held


def _waits(member: Member, now: int) -> list[dict[str, Any]]:
    """Every ticket, and for whom it waits: holders whose mode excludes it, then older tickets that do."""
    mirror, found = member.mirror, []
    for resource, tickets in mirror.tickets.items():
        holds = list(mirror.holds.get(resource, ()))
        earlier: list[tuple[str, int]] = []
        for node, kv in sorted(tickets.items(), key=lambda item: item[1].create_revision):
            mode = _wanted(kv)
            found.append(
                {
                    "resource": resource,
                    "node": node,
                    "mode": MODE_NAMES[mode],
                    "since_seconds": round(max(0, now - mirror.seen_since(kv.key)) / SECOND, 3),
                    "holders": [
                        {"node": holder, "mode": MODE_NAMES[held]}
                        for holder, held in holds
                        if holder != node and EX in (mode, held)
                    ],
                    "behind": [other for other, wanted in earlier if EX in (mode, wanted)],
                }
            )
            earlier.append((node, mode))
    return found


def _wanted(kv: KeyValue) -> int:
    try:
        return TicketRecord.from_bytes(kv.key, kv.value).mode
    except FormatError:  # another host's version; whatever it is, it excludes somebody
        return EX


def _worker(words: memoryview, now: int) -> dict[str, Any]:
    oldest, heartbeat = words[counters.OLDEST], words[counters.HEARTBEAT]
    return {
        "inflight": words[counters.INFLIGHT],
        "waiting": words[counters.WAITING],
        "stalled": bool(words[counters.STALLED]),
        "connections": words[counters.CONNECTIONS],
        "oldest_seconds": max(0, now - oldest) / SECOND if oldest else 0.0,
        "heartbeat_age_seconds": max(0, now - heartbeat) / SECOND if heartbeat else 0.0,
        "copies": words[counters.COPIES],
        "copy_bytes": words[counters.COPY_BYTES],
        "commits": words[counters.COMMITS],
        "commit_entries": words[counters.COMMIT_ENTRIES],
        "errors": sum(words[at] for at in counters.IO_ERRORS.values()),
        "rows": [
            *(_row(words, group, name, at) for (group, name), at in counters.IO.items()),
            *(
                {**_row(words, f"disk {group}", name, at), "bytes": None}
                for (group, name), at in counters.BACKEND.items()
            ),
            _row(words, "copy-out", "copy", counters.COPY),
        ],
    }


def _row(words: memoryview, group: str, name: str, at: int, counted: bool = True) -> dict[str, Any]:
    """``log2_ns[k]``: operations that took less than 2**k nanoseconds, and not less than half of that.

    ``counted``: whether bytes are; of disk operations, which are timed by their batch, they are not.
    """
    histogram = words[at + counters.HISTOGRAM : at + counters.ROW].tolist()
    return {
        "group": group,
        "op": name,
        "ops": words[at + counters.OPS],
        "bytes": words[at + counters.BYTES] if counted else None,
        "log2_ns": histogram,
    }


def _snapshots(view: View) -> list[dict[str, Any]]:
    """Newest first, in bytes; a COW device that this host has not loaded is only named."""
    slots, rows = view.slots, []
    for record in view.snapshots:
        slot = slots.get(record.store)
        rows.append(
            {
                "name": record.name,
                "state": record.state,
                "store": record.store,
                "used_bytes": slot.allocated * SECTOR if slot is not None else None,
                "size_bytes": slot.total * SECTOR if slot is not None else None,
                "exceptions": slot.exceptions if slot is not None else None,
            }
        )
    return rows
