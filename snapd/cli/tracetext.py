"""``csnap trace`` for people: a line for each request, and at the end where the time of all of them went. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from snapd.printable import printable
from snapd.units import format_size

Row = dict[str, Any]

COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("QUEUE", ("queued",)),
    ("WAIT", ("table", "lease", "region", "space", "tail")),
    ("READ", ("read_old",)),
    ("COPY", ("write_cow",)),
    ("COMMIT", ("commit",)),
    ("I/O", ("io",)),
)
"""What stages a column adds up, in the order of a write's path."""

WIDE = 120
"""Columns from which on export, offset and length are shown too."""

ADVICE = {
    "queued": "the client's payload came slowly, or the worker was busy (csnap top: CPU)",
    "table": "a snapshot was being taken or deleted, and a host drained slowly: csnap locks",
    "lease": "this host was cut off from etcd: csnap status, and etcd's own health",
    "region": "hosts write to, or read through, the same regions: csnap locks",
    "space": "COW chunks, copy buffers or a re-read: is the COW device slow, or nearly full?",
    "read_old": "reads of old content from the origin: the origin's disk is slow",
    "write_cow": "the COW device is slow at writes",
    "tail": "hosts append to one snapshot at the same time: csnap locks",
    "commit": "the COW device is slow at flushes and synchronous writes",
    "io": "the device behind the export is slow: the origin, for origin and most snapshot reads",
}


def duration(milliseconds: float) -> str:
    """At most five signs: 85us, 1.3ms, 240ms, 2.5s, 14m; nothing at all: -."""
    if milliseconds < 0.0005:
        return "-"
    if milliseconds < 0.9995:
        return f"{milliseconds * 1000:.0f}us"
    if milliseconds < 999.5:
        return f"{milliseconds:.1f}ms" if milliseconds < 9.95 else f"{milliseconds:.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 99.95:
        return f"{seconds:.1f}s"
    return f"{seconds:.0f}s" if seconds < 600 else f"{seconds / 60:.0f}m"


def waited_for(row: Row) -> tuple[str, float]:
    """The wait that took longest, with who had the lock, and how long; nothing if it was no noticeable part."""
    stages: dict[str, float] = row["stages_ms"]
    locks = {name: stages.get(name, 0.0) for name in COLUMNS[1][1]}
    longest = max(locks, key=lambda name: locks[name])
    if not locks[longest] or locks[longest] * 10 < row["took_ms"]:
        return "", 0.0
    if longest == "lease":
        return "etcd (lease)", locks[longest]
    what = {
        "table": "table",
        "region": f"region {row['region']}",
        "tail": f"tail of {row['snapshot'] or '?'}",
        "space": f"space in {row['snapshot'] or '?'}",
    }[longest]
    return what + (f": {', '.join(row['waited_for'])}" if row["waited_for"] else ""), locks[longest]


def head(width: int) -> str:
    names = " ".join(f"{name:>{max(5, len(name))}}" for name, _ in COLUMNS)
    where = f" {'EXPORT':<18} {'OFFSET':>15} {'LENGTH':>7}" if width >= WIDE else ""
    return f"{'ENDED':<8}  {'TOOK':>5} {'OP':<5}{where} {names}  WAITED FOR"


def line(row: Row, width: int, mark: Callable[[str], str] = lambda text: text) -> str:
    """One request within ``width`` columns. ``mark`` makes the longest stage stand out (and counts for nothing)."""
    under_way = row["ended"] is None
    ended = f"{row['stage'][:8]:<8}" if under_way else time.strftime("%H:%M:%S", time.localtime(row["ended"]))
    stages: dict[str, float] = row["stages_ms"]
    cells = []
    for name, parts in COLUMNS:
        text = f"{duration(sum(stages.get(part, 0.0) for part in parts)):>{max(5, len(name))}}"
        cells.append(mark(text) if row["longest"] in parts else text)
    where = f" {row['export'][:18]:<18} {row['offset']:>15} {format_size(row['length']):>7}" if width >= WIDE else ""
    took = duration(row["took_ms"]) + ("+" if under_way else "")
    first = f"{ended:<8} {took:>6} {row['op']:<5}{where}"
    notes = [part for part in (row["error"], waited_for(row)[0]) if part]
    if width < WIDE and row["export"] != "origin":
        notes.append(row["export"].removeprefix("snapshot/"))
    used = len(first) + sum(max(5, len(name)) + 1 for name, _ in COLUMNS) + 2
    note = " ".join(notes)
    room = max(8, width - used)
    return f"{first} {' '.join(cells)}  {note if len(note) <= room else note[: room - 1] + '+'}".rstrip()


@dataclass
class Summary:
    """Where the time of all requests shown went."""

    threshold_ms: float
    begun: float = 0.0
    ended: float = 0.0
    requests: int = 0
    errors: int = 0
    lost: int = 0
    under_way: int = 0
    total_ms: float = 0.0
    slowest_ms: float = 0.0
    stages: dict[str, tuple[float, int, float]] = field(default_factory=dict)  # ms, requests, longest
    waits: dict[str, float] = field(default_factory=dict)  # what was waited for -> ms

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            began = row["ended"] - row["took_ms"] / 1000
            self.begun = min(self.begun, began) if self.requests else began
            self.ended = max(self.ended, row["ended"])
            self.requests += 1
            self.errors += bool(row["error"])
            self.total_ms += row["took_ms"]
            self.slowest_ms = max(self.slowest_ms, row["took_ms"])
            for name, spent in row["stages_ms"].items():
                if spent:
                    total, count, longest = self.stages.get(name, (0.0, 0, 0.0))
                    self.stages[name] = total + spent, count + 1, max(longest, spent)
            what, spent = waited_for(row)
            if what:
                self.waits[what] = self.waits.get(what, 0.0) + spent

    def to_json(self) -> dict[str, Any]:
        return {
            "event": "summary",
            "threshold_ms": self.threshold_ms,
            "requests": self.requests,
            "errors": self.errors,
            "lost": self.lost,
            "under_way": self.under_way,
            "total_ms": round(self.total_ms, 3),
            "slowest_ms": self.slowest_ms,
            "stages": {
                name: {
                    "total_ms": round(total, 3),
                    "share": round(total / self.total_ms, 4) if self.total_ms else 0.0,
                    "requests": count,
                    "longest_ms": longest,
                }
                for name, (total, count, longest) in self.stages.items()
            },
            "waited_for_ms": {what: round(spent, 3) for what, spent in self.waits.items()},
        }

    def text(self) -> str:
        """A table, the largest share first, and what to look at next."""
        if not self.requests:
            left = f"; {self.under_way} under way" if self.under_way else ""
            return f"no request that is answered took {duration(self.threshold_ms)} or longer" + left
        begun, ended = (time.strftime("%H:%M:%S", time.localtime(when)) for when in (self.begun, self.ended))
        lines = [
            f"{self.requests} request{'s' * (self.requests > 1)} of {duration(self.threshold_ms)} or longer,"
            f" {begun} to {ended}; slowest {duration(self.slowest_ms)}"
            + (f"; {self.errors} failed" if self.errors else ""),
            "",
            f"{'STAGE':<10} {'SHARE':>5} {'TIME':>6} {'LONGEST':>7} {'REQUESTS':>8}",
        ]
        order = sorted(self.stages.items(), key=lambda item: -item[1][0])
        for name, (total, count, longest) in order:
            share = f"{100 * total / self.total_ms:.0f}%"
            lines.append(f"{name:<10} {share:>5} {duration(total):>6} {duration(longest):>7} {count:>8}")
        waits = sorted(self.waits.items(), key=lambda item: -item[1])[:3]
        if waits:
            lines.append("waited for: " + "; ".join(f"{printable(what)} ({duration(spent)})" for what, spent in waits))
        if self.lost:
            lines.append(f"{self.lost} more were overwritten before they could be read")
        lines.append(f"{order[0][0]}: {ADVICE.get(order[0][0], '')}")
        return "\n".join(lines)


def slowest(rows: Sequence[Row], count: int) -> list[Row]:
    return sorted(rows, key=lambda row: -row["took_ms"])[:count]
