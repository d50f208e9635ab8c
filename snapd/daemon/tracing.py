"""What ``csnap trace`` is told: the worker's slow requests, in words and numbers for JSON.

The command asks again and again, each time for what is behind the numbers that it has seen. The threshold that it asks
for is in force until nobody has asked for it for ASKED_FOR, so a command that is killed leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import time
from typing import Any

from snapd import counters, trace
from snapd.daemon.admin import Reply
from snapd.daemon.loop import Loop
from snapd.daemon.waits import Waits
from snapd.errors import Refused
from snapd.lockspace.member import Member
from snapd.messages import Message, Trace
from snapd.trace import KEPT, KEPT_FROM, LIVE, REGION, SPACE, STAGES, TABLE, TAIL, UNDER_WAY, WORST, Record
from snapd.units import SECOND

FORMAT = 1
"""Raised when a value changes its meaning; new ones may come at any time."""

ASKED_FOR = 5 * SECOND
"""How long a threshold outlives the last question; the command asks twice a second."""

MOST = 2500
"""Records in one answer, the newest: the control process has other things to do than the 40 ms that these take."""

JUST_NOW = 64
"""Records of each ring among which an answer is looked for to what was under way a quarter of a second ago."""

RINGS = {"kept": KEPT, "live": LIVE}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A ``trace`` request, checked. ``after``: numbers by ring; None: all that there is."""

    after: dict[str, int | None]
    threshold: int

    @classmethod
    def from_request(cls, request: dict[str, Any]) -> Wanted:
        """Raises Refused."""
        after, threshold = request.get("after", {}), request.get("threshold_ns", KEPT_FROM)
        if type(threshold) is not int or not 0 <= threshold <= 3600 * SECOND:
            raise Refused("trace: expected threshold_ns from 0 to an hour")
        if not isinstance(after, dict) or any(type(value) is not int or value < 0 for value in after.values()):
            raise Refused("trace: expected after to be an object of numbers")
        return cls({ring: after.get(ring) for ring in RINGS}, threshold)


class Tracing:
    """``words``: the worker's trace page, once it has been started."""

    def __init__(self, loop: Loop, node: str, volume: str) -> None:
        self.waits = Waits(loop.now)
        self.words: memoryview | None = None
        self._send: Callable[[Message], None] = lambda message: None
        self._loop, self._node, self._volume = loop, node, volume
        self._asked: dict[int, int] = {}  # threshold -> when it was asked for last
        self._in_force = KEPT_FROM

    def attach(self, words: memoryview, send: Callable[[Message], None]) -> None:
        """The worker has been started; ``send`` goes to it."""
        self.words, self._send = words, send

    def command(self, request: dict[str, Any], reply: Reply) -> None:
        wanted = Wanted.from_request(request)
        if self.words is None:
            raise Refused("trace: the worker has not been started yet")
        self._asked[wanted.threshold] = self._loop.now()
        self._settle()
        reply.result(self._report(wanted, self.words))

    def _settle(self) -> None:
        """Tell the worker the lowest threshold that somebody has asked for lately."""
        now = self._loop.now()
        self._asked = {threshold: when for threshold, when in self._asked.items() if now - when < ASKED_FOR}
        lowest = min((KEPT_FROM, *self._asked))
        if lowest != self._in_force:
            self._in_force = lowest
            self._send(Trace(lowest))
        if lowest < KEPT_FROM:
            self._loop.call_later(ASKED_FOR + SECOND // 10, self._settle)

    def _report(self, wanted: Wanted, words: memoryview) -> dict[str, Any]:
        now = self._loop.now()
        self.waits.look()
        records: list[tuple[str, Record]] = []
        lost = 0
        heads: dict[str, int] = {}
        for name, ring in RINGS.items():
            after = wanted.after[name]
            heads[name] = trace.head(words, ring)
            found = [(name, record) for record in trace.read(words, ring, after or 0)]
            if after is not None:
                lost += max(0, heads[name] - after - len(found))
            records += found
        if wanted.after["kept"] is None:
            known = {_which(record) for _, record in records}
            records += [("worst", record) for record in trace.read(words, WORST) if _which(record) not in known]
        records = [row for row in records if row[1].took >= wanted.threshold]
        records.sort(key=lambda row: row[1].ended)
        lost += max(0, len(records) - MOST)
        teller = _Teller(self.waits, time() - now / SECOND)
        return {
            "format": FORMAT,
            "volume": self._volume,
            "node": self._node,
            "incarnation": teller.member.settings.incarnation if teller.member is not None else "",
            "now": round(teller.wall + now / SECOND, 3),
            "threshold_ms": _ms(self._in_force),
            "kept_from_ms": _ms(KEPT_FROM),
            "heads": heads,
            "lost": lost,
            "requests": [teller.row(record, name) for name, record in records[-MOST:]],
            "under_way": [teller.row(record, "") for record in _under_way(words)],
            "under_way_age_seconds": round((now - trace.used(words).ticked) / SECOND, 2),
        }


def _under_way(words: memoryview) -> list[Record]:
    """Without those that have been answered since the worker looked, as far as that is noted."""
    answered = {
        _which(record)
        for ring in RINGS.values()
        for record in trace.read(words, ring, max(0, trace.head(words, ring) - JUST_NOW))
    }
    return [record for record in trace.read(words, UNDER_WAY) if _which(record) not in answered]


def _which(record: Record) -> tuple[int, int, int]:
    """The request that it is of."""
    return record.ended - record.took, record.operation, record.offset


class _Teller:
    """Puts names to what a record has numbers for; ``wall``: what the wall clock showed at boottime 0."""

    def __init__(self, waits: Waits, wall: float) -> None:
        self.wall = wall
        self.member: Member | None = waits.member
        self._waits = waits
        snapshots = self.member.snapshots() if self.member is not None else ()
        self._names = {trace.half(record.store): (record.name, record.store) for record in snapshots}
        record = self.member.format if self.member is not None else None
        self._region = record.region_size if record is not None else 0

    def row(self, record: Record, ring: str) -> dict[str, Any]:
        """One request. A snapshot that has been deleted since is called by what the record has of its store."""
        name, store = self._named(record.store)
        error = record.error
        longest = max(range(len(STAGES)), key=lambda stage: record.spent[stage])
        region = record.region if record.region >= 0 and record.spent[REGION] else None
        start = region * self._region if region is not None and self._region else None
        return {
            "ring": ring,
            "number": record.sequence,
            "ended": round(self.wall + record.ended / SECOND, 3) if ring else None,
            "took_ms": _ms(record.took),
            "op": counters.OPERATIONS[record.operation] if record.operation < len(counters.OPERATIONS) else "?",
            "error": (counters.ERRNOS.get(error, str(error)) if error else ""),
            "export": f"snapshot/{self._named(record.export)[0]}" if record.export else "origin",
            "offset": record.offset,
            "length": record.length,
            "stages_ms": {stage: _ms(spent) for stage, spent in zip(STAGES, record.spent, strict=True)},
            "longest": STAGES[longest],
            "stage": STAGES[record.stage] if not ring else None,
            "region": region,
            "region_bytes": [start, start + self._region] if start is not None else None,
            "snapshot": name or None,
            "waited_for": self._on(record, store, region),
        }

    def _named(self, half: int) -> tuple[str, str]:
        if not half:
            return "", ""
        text = f"{half:016x}"
        return self._names.get(half, (f"{text[:8]}-{text[8:12]}-{text[12:]}-...", ""))

    def _on(self, record: Record, store: str, region: int | None) -> list[str]:
        """Nodes that had, or were before this host in the queue of, a lock that this request waited for."""
        resources = [f"region/{region}"] if region is not None else []
        if store and (record.spent[TAIL] or record.spent[SPACE]):
            resources.append(f"tail/{store}")
        if record.spent[TABLE]:
            resources.append("table")
        found: set[str] = set()
        for resource in resources:
            found.update(self._waits.on(resource, record.ended - record.took, record.ended))
        return sorted(found)


def _ms(nanoseconds: int) -> float:
    return round(nanoseconds / 1_000_000, 3)
