"""What ``csnap top`` shows, computed from a history of observations. No I/O, no clock: both come with the observation.

Rates and latencies are of the time between the last two observations of the same daemon; after a restart, or with one
observation, they are unknown (None), not 0. The fill rate is of the last WINDOW, because copies come in bursts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from snapd.cli.top.observation import Fencing, Observation, Row, Store, Wait

WINDOW = 60.0
"""Seconds of history."""

SPAN_LEAST = 0.05
"""Seconds between two observations below which a rate means nothing."""


@dataclass(frozen=True, slots=True)
class IoLine:
    """One operation of one group. Seconds; None: unknown, or nothing happened."""

    group: str
    op: str
    total: int
    per_second: float | None
    bytes_per_second: float | None
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class HostLine:
    """``here``: the host that was asked. Lease and I/O are known of that one only."""

    node: str
    state: str
    by: str
    here: bool
    lease: float | None
    version: str
    per_second: float | None
    bytes_per_second: float | None
    held: int
    waits: int
    blocks: int
    """Tickets of others that wait for a hold of this host."""


@dataclass(frozen=True, slots=True)
class StoreLine:
    """``full_in`` seconds at the present rate; None: it does not fill, or nobody knows."""

    name: str
    state: str
    used: int | None
    size: int | None
    percent: float | None
    fill: float | None
    full_in: float | None
    exceptions: int | None


@dataclass(frozen=True, slots=True)
class Model:
    """Everything on the screen. ``silent_since`` (wall clock): no daemon answers since then, figures are older."""

    volume: str
    node: str
    state: str
    why: str
    version: str
    fencing: str
    lease_remaining: float
    lease_ttl: float
    taken: float
    silent_since: float | None
    silent_why: str
    span: float | None
    warnings: tuple[str, ...]
    fencing_waits: tuple[Fencing, ...]
    inflight: int
    waiting: int
    stalled: bool
    oldest: float
    clients: int
    errors: int
    errors_per_second: float | None
    copies_per_second: float | None
    copy_bytes_per_second: float | None
    entries_per_commit: float | None
    io: tuple[IoLine, ...]
    hosts: tuple[HostLine, ...]
    stores: tuple[StoreLine, ...]
    waits: tuple[Wait, ...]
    waits_total: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class History:
    """Observations of one daemon, the oldest WINDOW ago. ``wall``: seconds since the epoch, for people."""

    def __init__(self) -> None:
        self._kept: deque[Observation] = deque()
        self._taken = 0.0
        self._silent_since: float | None = None
        self._silent_why = ""

    def answered(self, observation: Observation, wall: float) -> None:
        if self._kept and not _continues(self._kept[-1], observation):
            self._kept.clear()
        self._kept.append(observation)
        while observation.now - self._kept[0].now > WINDOW:
            self._kept.popleft()
        self._taken, self._silent_since, self._silent_why = wall, None, ""

    def silent(self, why: str, wall: float) -> None:
        """No daemon answered: what comes next is compared with the last answer, if it is of the same daemon."""
        if self._silent_since is None:
            self._silent_since = wall
        self._silent_why = why
        while len(self._kept) > 1:
            self._kept.popleft()

    def model(self) -> Model | None:
        """None before the first answer."""
        if not self._kept:
            return None
        return _model(list(self._kept), self._taken, self._silent_since, self._silent_why)

    @property
    def silence(self) -> tuple[float, str] | None:
        return None if self._silent_since is None else (self._silent_since, self._silent_why)


def _continues(before: Observation, after: Observation) -> bool:
    """Whether counters of both can be compared: the same worker, and time went on."""
    if before.incarnation != after.incarnation or after.now - before.now < SPAN_LEAST:
        return False
    if before.worker is None or after.worker is None:
        return before.worker is after.worker
    earlier = {(row.group, row.op): row.ops for row in before.worker.rows}
    return all(row.ops >= earlier.get((row.group, row.op), 0) for row in after.worker.rows)


def _model(kept: Sequence[Observation], taken: float, silent_since: float | None, silent_why: str) -> Model:
    last, before = kept[-1], kept[-2] if len(kept) > 1 else None
    span = last.now - before.now if before is not None and silent_since is None else None
    worker = last.worker
    earlier = before.worker if before is not None and span is not None else None
    io = _io(worker.rows if worker is not None else (), earlier.rows if earlier is not None else None, span)

    def rate(name: str) -> float | None:
        if worker is None or earlier is None or span is None:
            return None
        return float(getattr(worker, name) - getattr(earlier, name)) / span

    copied, commits = rate("commit_entries"), rate("commits")
    return Model(
        volume=last.volume,
        node=last.node,
        state=last.state,
        why=last.why,
        version=last.version,
        fencing=last.fencing,
        lease_remaining=last.lease_remaining,
        lease_ttl=last.lease_ttl,
        taken=taken,
        silent_since=silent_since,
        silent_why=silent_why,
        span=span,
        warnings=last.warnings,
        fencing_waits=last.fencing_waits,
        inflight=worker.inflight if worker is not None else 0,
        waiting=worker.waiting if worker is not None else 0,
        stalled=worker.stalled if worker is not None else False,
        oldest=worker.oldest_seconds if worker is not None else 0.0,
        clients=worker.connections if worker is not None else 0,
        errors=worker.errors if worker is not None else 0,
        errors_per_second=rate("errors"),
        copies_per_second=rate("copies"),
        copy_bytes_per_second=rate("copy_bytes"),
        entries_per_commit=copied / commits if copied and commits else None,
        io=io,
        hosts=_hosts(last, io),
        stores=tuple(_store(store, kept) for store in last.stores),
        waits=last.waits,
        waits_total=last.waits_total,
    )


def _io(rows: Sequence[Row], earlier: Sequence[Row] | None, span: float | None) -> tuple[IoLine, ...]:
    """Operations that ever happened."""
    known = {(row.group, row.op): row for row in earlier or ()}
    lines = []
    for row in rows:
        if not row.ops:
            continue
        old = known.get((row.group, row.op))
        if old is None or span is None:
            lines.append(IoLine(row.group, row.op, row.ops, None, None, None, None))
            continue
        times = [now - then for now, then in zip(row.log2_ns, old.log2_ns, strict=False)]
        lines.append(
            IoLine(
                row.group,
                row.op,
                row.ops,
                (row.ops - old.ops) / span,
                None if row.bytes is None or old.bytes is None else (row.bytes - old.bytes) / span,
                quantile(times, 0.5),
                quantile(times, 0.99),
            )
        )
    return tuple(lines)


def quantile(log2_ns: Sequence[int], part: float) -> float | None:
    """Return the seconds below which this part of the durations lies; None if there are none.

    Inside its bucket a duration may be anything from half the bound to the bound; evenly spread is what is assumed.
    """
    total = sum(log2_ns)
    wanted, below = part * total, 0
    for k, count in enumerate(log2_ns):
        if count > 0 and below + count >= wanted:
            low, high = (1 << k >> 1), 1 << k
            return (low + (high - low) * (wanted - below) / count) / 1e9
        below += count
    return None


def _hosts(last: Observation, io: Sequence[IoLine]) -> tuple[HostLine, ...]:
    clients = [line for line in io if line.group in ("origin", "snapshot")]
    lines = []
    for host in last.hosts:
        here = host.node == last.node
        lines.append(
            HostLine(
                node=host.node,
                state=last.state if here else host.state,
                by=host.by,
                here=here,
                lease=last.lease_remaining if here else None,
                version=last.version if here else host.version,
                per_second=_sum([line.per_second for line in clients]) if here else None,
                bytes_per_second=_sum([line.bytes_per_second for line in clients]) if here else None,
                held=sum(last.held.get(host.node, {}).values()),
                waits=sum(wait.node == host.node for wait in last.waits),
                blocks=sum(any(node == host.node for node, _ in wait.holders) for wait in last.waits),
            )
        )
    return tuple(lines)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _store(store: Store, kept: Sequence[Observation]) -> StoreLine:
    percent = 100 * store.used / store.size if store.used is not None and store.size else None
    fill = _fill(store, kept)
    full_in = None
    if fill and store.used is not None and store.size is not None:
        full_in = max(0, store.size - store.used) / fill
    return StoreLine(store.name, store.state, store.used, store.size, percent, fill, full_in, store.exceptions)


def _fill(store: Store, kept: Sequence[Observation]) -> float | None:
    """Bytes a second since the oldest observation that knows this store."""
    if store.used is None:
        return None
    for observation in kept[:-1]:
        for old in observation.stores:
            if old.store == store.store and old.used is not None:
                return max(0, store.used - old.used) / (kept[-1].now - observation.now)
    return None
