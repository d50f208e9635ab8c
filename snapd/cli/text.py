"""Output for people: tables and sentences. Values come from the daemon's JSON; what a daemon before an upgrade does not
say yet is left out, since ``current`` leads to the new command a moment before the daemon is restarted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FENCING_WARNING = {
    "unsafe": "unsafe: it fences nobody; a host that only paused can wake up and write over others' work",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns, the last one as long as it is."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def status(value: dict[str, Any]) -> str:
    """``csnap status``."""
    member, io = value["member"], value["io"]
    lease = f"{member['lease_remaining_seconds']} s left of {member['lease_ttl_seconds']} s"
    rows = [
        ("volume", value["volume"]),
        ("node", value["node"]),
        ("state", member["state"] + (f": {member['why']}" if member["why"] else "")),
        ("lease", lease if member["lease_ttl_seconds"] else "none"),
        ("fencing", _fencing(value["fencing"])),
        (
            "clients",
            f"{io['connections']} connected, {io['inflight']} requests under way, {io['waiting']} parts waiting",
        ),
        ("members", ", ".join(_member(row) for row in value["members"]) or "none"),
        *_protocol(value),
        ("metrics", _metrics(value["metrics"])),
        *(("waiting", _waiting(row)) for row in value["fencing"]["waiting"]),
        *_reload(value.get("reload", {"needs_restart": [], "error": ""})),
        *(("warning", warning) for warning in value["warnings"]),
    ]
    text = "\n".join(f"{name:<9}{shown}" for name, shown in rows)
    return text + "\n\n" + snapshots(value["snapshots"])


def _metrics(address: str) -> str:
    """Where they are read: an address of a plain endpoint has no scheme."""
    if not address or address.startswith("unix:"):
        return address or "none"
    return f"{address if '://' in address else f'http://{address}'}/metrics"


def _fencing(value: dict[str, Any]) -> str:
    method: str = FENCING_WARNING.get(value["method"], value["method"])
    return method + (f" (helper: {value['helper']})" if value["helper"] else "")


def _protocol(value: dict[str, Any]) -> list[tuple[str, str]]:
    """Nothing while there is nothing to do."""
    protocol = value.get("protocol")
    if protocol is None or not 0 < protocol["in_force"] < protocol["newest"]:
        return []
    shown = f"{protocol['in_force']} in force"
    if protocol["spoken_by_all"] > protocol["in_force"]:
        return [("protocol", f"{shown}; all members speak a newer one: csnap volume upgrade {value['volume']}")]
    older = [row["node"] for row in value["members"] if max(row["protocols"], default=0) <= protocol["in_force"]]
    return [("protocol", f"{shown}; no newer one is spoken by {', '.join(older)}")]


def _reload(value: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("restart", f"needed for {', '.join(value['needs_restart'])}")] if value["needs_restart"] else []
    if value["error"]:
        rows.append(("warning", f"the changed configuration was refused: {value['error']}"))
    return rows


def _waiting(row: dict[str, Any]) -> str:
    return (
        f"waiting for fencing of {row['node']} since {age(row['since_seconds'])}, by {row['by']}; its locks stay until"
        " then (csnap fence confirm, if you are sure that it is off)"
    )


def _member(row: dict[str, Any]) -> str:
    return f"{row['node']} {row['state']}" + (f" (by {row['by']})" if row["by"] else "")


def snapshots(rows: Sequence[dict[str, Any]]) -> str:
    """``csnap snapshot list``."""
    if not rows:
        return "no snapshots"
    return table(
        ("SNAPSHOT", "STATE", "DM STATUS", "FULL", "MODE", "COW DEVICE"),
        [
            (
                row["name"],
                row["state"],
                row["dm_status"],
                "-" if row["percent_full"] is None else f"{row['percent_full']}%",
                "writable" if row["writable"] else "read-only",
                row["cow"],
            )
            for row in rows
        ],
    )


def age(seconds: float) -> str:
    """Return how long ago, in the unit that people would use."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def fence_steps(method: str, rows: Sequence[dict[str, Any]]) -> str:
    """``csnap fence test``."""
    words = {True: "works", False: "FAILS", None: "left out"}
    shown = [(row["target"], row["step"], words[row["ok"]], row["note"]) for row in rows]
    return f"method {method}\n\n" + table(("TARGET", "STEP", "RESULT", "NOTE"), shown)
