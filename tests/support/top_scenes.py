"""What ``csnap top`` is told in its tests: answers of a daemon, quiet and in trouble."""

from __future__ import annotations

from typing import Any

from snapd.cli.top.model import History, Model
from snapd.cli.top.observation import parse

BUCKETS = 44
TAKEN = 1_700_000_000.0
"""22:13:20 in UTC, which is what the golden screens are drawn in."""


def row(group: str, op: str, ops: int, length: int | None, **buckets: int) -> dict[str, Any]:
    """``k18=3``: three operations of 2**17 to 2**18 ns."""
    times = [0] * BUCKETS
    for name, count in buckets.items():
        times[int(name[1:])] = count
    return {"group": group, "op": op, "ops": ops, "bytes": length, "log2_ns": times}


def answer(now: float, *rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An answer of host-a of three, with what ``changes`` give another value."""
    member = {
        "state": "active",
        "why": "",
        "lease_remaining_seconds": 8.1,
        "lease_ttl_seconds": 10,
        "fencing": "scsi-pr",
    }
    status = {
        "volume": "vmstore",
        "node": "host-a",
        "member": {**member, **changes.pop("member", {})},
        "fencing": {"method": "scsi-pr", "helper": "", "waiting": changes.pop("fencing", [])},
        "members": changes.pop("members", [host("host-a"), host("host-b"), host("host-c")]),
        "warnings": changes.pop("warnings", []),
        "version": "0.1.0",
    }
    worker = {
        "inflight": 4,
        "waiting": 0,
        "stalled": False,
        "connections": 2,
        "oldest_seconds": 0.004,
        "copies": 0,
        "copy_bytes": 0,
        "commits": 0,
        "commit_entries": 0,
        "errors": 0,
        "rows": list(rows),
    }
    return {
        "format": 1,
        "now_seconds": now,
        "incarnation": changes.pop("incarnation", "one"),
        "status": status,
        "held": changes.pop("held", {"host-a": {"table/CR": 1, "region/EX": 411}, "host-b": {"table/CR": 1}}),
        "waits": changes.pop("waits", []),
        "waits_total": changes.pop("waits_total", 0),
        "worker": {**worker, **changes.pop("worker", {})},
        "snapshots": changes.pop("snapshots", [snapshot("s1", 2 << 30)]),
        **changes,
    }


def host(node: str, state: str = "active", by: str = "") -> dict[str, Any]:
    return {"node": node, "state": state, "by": by}


def snapshot(name: str, used: int | None, size: int | None = 16 << 30, state: str = "active") -> dict[str, Any]:
    exceptions = None if used is None else used >> 14
    return {
        "name": name,
        "state": state,
        "store": f"store-{name}",
        "used_bytes": used,
        "size_bytes": size,
        "exceptions": exceptions,
    }


def wait(resource: str, node: str, seconds: float, *holders: str, behind: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "resource": resource,
        "node": node,
        "mode": "EX",
        "since_seconds": seconds,
        "holders": [{"node": holder, "mode": "EX"} for holder in holders],
        "behind": list(behind),
    }


def modelled(*answers: dict[str, Any]) -> Model:
    """The model after these answers."""
    history = History()
    for value in answers:
        history.answered(parse(value), TAKEN)
    model = history.model()
    assert model is not None
    return model


def busy() -> Model:
    """Two seconds of healthy work: 2,000 writes, 100 copies, a snapshot that fills slowly."""
    before = answer(
        100.0, row("origin", "read", 100, 409600, k16=100), row("origin", "write", 1000, 4096000, k18=1000),
        row("disk cow", "write", 90, None, k19=90), snapshots=[snapshot("s2", 1 << 30), snapshot("s1", 8 << 30)],
    )  # fmt: skip
    after = answer(
        102.0, row("origin", "read", 1100, 4505600, k16=1100), row("origin", "write", 3000, 12288000, k18=2960, k24=40),
        row("disk cow", "write", 190, None, k19=190),
        snapshots=[snapshot("s2", (1 << 30) + (512 << 10)), snapshot("s1", 8 << 30)],
        worker={"copies": 100, "copy_bytes": 1638400, "commits": 10, "commit_entries": 100},
    )  # fmt: skip
    return modelled(before, after)


def troubled() -> Model:
    """host-b is dead and not fenced, its locks are waited for, one snapshot is nearly full and one lost."""
    waits = [
        wait("region/17", "host-a", 41.0, "host-b"),
        wait("region/17", "host-c", 12.5, "host-b", behind=("host-a",)),
        *(wait(f"region/{n}", "host-a", 2.0 - n / 100, "host-b") for n in range(100, 112)),
    ]
    snapshots = [
        snapshot("nightly", 1000 << 20, 1024 << 20),
        snapshot("before-upgrade", 900 << 20, 1024 << 20),
        snapshot("old", None, None, "invalid"),
        snapshot("older", 1 << 20),
    ]
    rows = [row(*group, 10 + n, 40960, k30=10) for n, group in enumerate(_GROUPS)]
    later = [row(*group, 20 + n, 81920, k30=20) for n, group in enumerate(_GROUPS)]
    trouble: dict[str, Any] = {
        "member": {"state": "stalled", "why": "etcd: no endpoint answers", "lease_remaining_seconds": 0.0},
        "members": [host("host-a"), host("host-b", "fencing", "host-a"), host("host-c", "dead")],
        "fencing": [{"node": "host-b", "by": "host-a", "since_seconds": 41.0}],
        "warnings": ["page cache used on /var/lib/csnap/origin: the file system refuses O_DIRECT, which costs memory"],
        "snapshots": snapshots,
        "waits": waits,
        "waits_total": 300,
    }
    worker = {"stalled": True, "waiting": 9, "oldest_seconds": 41.2, "errors": 4}
    return modelled(answer(100.0, *rows, **trouble), answer(104.0, *later, **trouble, worker=worker))


_GROUPS = [(group, op) for group in ("origin", "snapshot", "disk cow") for op in ("read", "write", "flush")]


def silenced() -> Model:
    """A healthy daemon that has been away for a while."""
    history = History()
    history.answered(parse(answer(100.0, row("origin", "write", 1000, 4096000, k18=1000))), TAKEN)
    history.silent("no daemon answers on /run/csnap/vmstore/admin.sock: nobody listens", TAKEN + 4)
    history.silent("no daemon answers on /run/csnap/vmstore/admin.sock: nobody listens", TAKEN + 6)
    model = history.model()
    assert model is not None
    return model


SCENES = {"busy": busy, "troubled": troubled, "silenced": silenced}
