"""What ``csnap status`` is told: plain values for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from snapd import __version__, counters
from snapd.config import Config
from snapd.daemon import upgrading
from snapd.daemon.metrics import Slot, snapshot_slots
from snapd.lockspace.member import Member, MemberRow
from snapd.lockspace.ports import JOINING
from snapd.lockspace.records import SnapshotRecord
from snapd.printable import printable
from snapd.units import SECOND


@dataclass(slots=True)
class View:
    """What is known of this daemon so far; filled while it starts."""

    config: Config
    state: str = JOINING
    why: str = ""
    member: Member | None = None
    words: memoryview | None = None
    warnings: list[str] = field(default_factory=list)
    metrics: str = ""
    needs_restart: tuple[str, ...] = ()  # keys that the file has changed and that are not in force
    reload_error: str = ""  # why the file is not in force as it stands
    helper: str = ""  # who does the privileged part of fencing, for people

    @property
    def lease_remaining(self) -> int:
        return self.member.lease_remaining if self.member is not None else 0

    @property
    def snapshots(self) -> tuple[SnapshotRecord, ...]:
        return self.member.snapshots() if self.member is not None else ()

    @property
    def slots(self) -> dict[str, Slot]:
        return snapshot_slots(self.words) if self.words is not None else {}


def dm_status(state: str, slot: Slot | None) -> str:
    """The kernel's words for a snapshot: dm-snapshot's status line."""
    state = slot.state if slot is not None and state not in ("invalid", "overflow") else state
    if state == "invalid":
        return "Invalid"
    if state == "overflow":
        return "Overflow"
    if slot is None or not slot.total:
        return "Unknown"
    return f"{slot.allocated}/{slot.total} {slot.metadata}"


def report(view: View) -> dict[str, Any]:
    """The value of ``csnap status --json``."""
    config, member = view.config, view.member
    rows = member.members() if member is not None else []
    return {
        "volume": config.volume.name,
        "node": config.node.name,
        "member": {
            "state": view.state,
            "why": view.why,
            "lease_remaining_seconds": round(view.lease_remaining / SECOND, 1),
            "lease_ttl_seconds": member.lease_ttl // SECOND if member is not None else 0,
            "fencing": config.fencing.method,
        },
        "fencing": {
            "method": config.fencing.method,
            "helper": view.helper,
            "waiting": _waiting(member) if member is not None else [],
        },
        "snapshots": [_snapshot(record, view.slots.get(record.store)) for record in view.snapshots],
        "members": [_member(row) for row in rows],
        "protocol": upgrading.described(member, rows),
        "io": _io(view.words),
        "metrics": view.metrics,
        "reload": {"needs_restart": list(view.needs_restart), "error": view.reload_error},
        "warnings": view.warnings,
        "version": __version__,
    }


def _waiting(member: Member) -> list[dict[str, Any]]:
    """Dead members whose locks stay until they are fenced. ``since_seconds``: since when this host has seen it."""
    now = member.timers.now()
    return [
        {"node": node, "by": by, "since_seconds": round(max(0, now - since) / SECOND, 1)}
        for node, by, since in member.fencing_waits()
    ]


def _snapshot(record: SnapshotRecord, slot: Slot | None) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": record.state,
        "dm_status": dm_status(record.state, slot),
        "percent_full": round(100 * slot.allocated / slot.total, 1) if slot is not None and slot.total else None,
        "exceptions": slot.exceptions if slot is not None else None,
        "writable": record.writable,
        "cow": record.path,
        "store": record.store,
    }


def _member(row: MemberRow) -> dict[str, Any]:
    speaks = row.speaks
    return {
        "node": row.node,
        "state": row.state,
        "by": row.by,
        "version": speaks.version if speaks is not None else "",
        "protocols": [speaks.oldest, speaks.newest] if speaks is not None else [],
        "started": row.started or None,
    }


def _io(words: memoryview | None) -> dict[str, Any]:
    if words is None:
        return {"connections": 0, "inflight": 0, "waiting": 0, "direct": None}
    return {
        "connections": words[counters.CONNECTIONS],
        "inflight": words[counters.INFLIGHT],
        "waiting": words[counters.WAITING],
        "direct": bool(words[counters.DIRECT]),
    }


def line(view: View) -> str:
    """The line that ``systemctl status`` shows. A line break in it would be another message to systemd."""
    parts = [view.state + (f" ({view.why})" if view.why else "")]
    if view.member is not None:
        parts.append(f"lease {view.lease_remaining // SECOND} s")
        parts += [f"waiting for fencing of {node}" for node, _, _ in view.member.fencing_waits()]
    slots = view.slots
    for record in view.snapshots[:4]:
        parts.append(f"{record.name} {dm_status(record.state, slots.get(record.store))}")
    if view.needs_restart:
        parts.append(f"needs a restart for {', '.join(view.needs_restart)}")
    if view.reload_error:
        parts.append("the changed configuration was refused")
    return printable(", ".join(parts))
