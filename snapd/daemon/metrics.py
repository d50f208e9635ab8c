"""The values of the families, gathered when they are asked for.

Three sources: what was observed one by one in the control process (``Observations``), the worker's counters page, and
a ``Sample`` of the member that the loop takes on request. ``collect`` runs in the endpoint's thread.
"""

from __future__ import annotations

import platform
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from snapd import __version__, counters
from snapd.daemon.families import ALARMS, COUNTER, FAMILIES, GAUGE, HISTOGRAM, PREFIX, USES, Family
from snapd.lockspace.keys import kind
from snapd.lockspace.member import LockRow
from snapd.lockspace.ports import ACTIVE, FENCED, JOINING, LEAVING, STALLED
from snapd.lockspace.records import SNAPSHOT_STATES, SnapshotRecord
from snapd.messages import MODE_NAMES
from snapd.units import SECOND, SECTOR

STATES = (JOINING, ACTIVE, STALLED, FENCED, LEAVING)

BOUNDS = (*(50_000 * 2**n for n in range(18)), 10 * SECOND, 30 * SECOND)
"""Nanoseconds: 50 us x 2^n up to 6.6 s, then 10 and 30 s."""

LOG2_TIMES = range(12, 37)  # 4 us to 69 s
LOG2_COUNTS = range(1, 14)  # 2 to 8192

Labels = tuple[str, ...]


@dataclass(slots=True)
class Distribution:
    """Upper bounds and how many were at most that; the last bound is infinite. ``total`` is their sum."""

    buckets: list[tuple[str, float]]
    total: float


Value = float | Distribution
Values = dict[str, dict[Labels, Value]]


class Observations:
    """What is counted event by event. ``observe`` is called by the loop, ``values`` by the endpoint's thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._families = {family.name: family for family in FAMILIES}
        self._counts: dict[str, dict[Labels, int]] = {}
        self._times: dict[str, dict[Labels, list[int]]] = {}
        for family in FAMILIES:
            if family.kind == HISTOGRAM and family.known:
                self._times[family.name] = {labels: _empty() for labels in family.known}
            elif family.known:
                self._counts[family.name] = dict.fromkeys(family.known, 0)

    def observe(self, name: str, labels: dict[str, str], value: int) -> None:
        """Count ``value``: nanoseconds into a histogram, an amount onto a counter.

        What no family fits is dropped: no host goes down for a metric. A test looks for such names in the source.
        """
        family = self._families.get(name.removesuffix("_total"))
        if family is None or set(labels) != set(family.labels):
            return
        key = tuple(labels[label] for label in family.labels)
        with self._lock:
            if family.kind == HISTOGRAM:
                row = self._times.setdefault(family.name, {}).setdefault(key, _empty())
                row[bisect_left(BOUNDS, value)] += 1
                row[-1] += value
            else:
                counts = self._counts.setdefault(family.name, {})
                counts[key] = counts.get(key, 0) + value

    def values(self) -> Values:
        with self._lock:
            found: Values = {name: dict(counts) for name, counts in self._counts.items()}
            for name, rows in self._times.items():
                found[name] = {key: _observed(row) for key, row in rows.items()}
        return found


def _empty() -> list[int]:
    """A row: one count for each bound, one beyond the last, and the sum."""
    return [0] * (len(BOUNDS) + 2)


def _observed(row: list[int]) -> Distribution:
    buckets, below = [], 0
    for bound, count in zip(BOUNDS, row, strict=False):
        below += count
        buckets.append((str(bound / SECOND), float(below)))
    buckets.append(("+Inf", float(below + row[len(BOUNDS)])))
    return Distribution(buckets, row[-1] / SECOND)


@dataclass(frozen=True, slots=True)
class Sample:
    """The member at one moment, taken in the loop's thread. Times in nanoseconds."""

    now: int
    node: str
    fencing: str
    state: str = JOINING
    lease_remaining: int = 0
    lease_ttl: int = 0
    watch_lag: int = 0
    no_space: bool = False
    locks: list[LockRow] = field(default_factory=list)
    snapshots: tuple[SnapshotRecord, ...] = ()
    warnings: tuple[str, ...] | None = None  # the worker's; None: it has not begun


def member_values(sample: Sample) -> Values:
    """What the member says of itself. Locks of other members are theirs to show."""
    held: dict[Labels, Value] = dict.fromkeys(USES, 0)
    waiters: dict[Labels, Value] = dict.fromkeys(USES, 0)
    oldest: dict[Labels, Value] = dict.fromkeys(USES, 0.0)
    for row in sample.locks:
        labels = (MODE_NAMES[row.mode], kind(row.resource))
        if row.node != sample.node:
            continue
        if row.waiting:
            waiters[labels] = _number(waiters.get(labels)) + 1
            oldest[labels] = max(_number(oldest.get(labels)), (sample.now - row.since) / SECOND)
        else:
            held[labels] = _number(held.get(labels)) + 1
    found: Values = {
        "locks_held": held,
        "lock_waiters": waiters,
        "lock_oldest_wait_seconds": oldest,
        "lease_remaining_seconds": {(): sample.lease_remaining / SECOND},
        "lease_ttl_seconds": {(): sample.lease_ttl / SECOND},
        "member_state": {(state,): float(state == sample.state) for state in STATES},
        "etcd_watch_lag_revisions": {(): sample.watch_lag},
        "etcd_alarm": {(alarm,): float(sample.no_space) for alarm in ALARMS},
        "fencing": {(sample.fencing,): 1.0},
        "io_flusher_enabled": {(): float(_granted(sample, "PR_SET_IO_FLUSHER"))},
        "memory_locked": {(): float(_granted(sample, "memory not locked"))},
        "snapshot_state": {},
        "snapshot": {},
    }
    for record in sample.snapshots:
        for state in SNAPSHOT_STATES:
            found["snapshot_state"][record.name, state] = float(state == record.state)
        found["snapshot"][record.name, record.store, record.path, str(record.writable).lower()] = 1.0
    return found


def _granted(sample: Sample, complaint: str) -> bool:
    """Whether the worker has begun and does not complain of this (worker.process)."""
    return sample.warnings is not None and not any(complaint in warning for warning in sample.warnings)


def _number(value: Value | None) -> float:
    return value if isinstance(value, float | int) else 0.0


def page_values(words: memoryview, now: int, snapshots: tuple[SnapshotRecord, ...]) -> Values:
    """What the worker has counted."""
    rows = {(device, op): row for (device, op), row in counters.IO.items()}
    found: Values = {
        "io_seconds": {labels: _row(words, row) for labels, row in rows.items()},
        "io_bytes": {labels: words[row + counters.BYTES] for labels, row in rows.items()},
        "io_errors": {labels: words[at] for labels, at in counters.IO_ERRORS.items()},
        "io_inflight": {(): words[counters.INFLIGHT]},
        "io_waiting": {(): words[counters.WAITING]},
        "io_oldest_inflight_seconds": {(): _age(now, words[counters.OLDEST])},
        "io_stalled": {(): words[counters.STALLED]},
        "io_rejected": _rejected(words),
        "backend_io_seconds": {labels: _row(words, row) for labels, row in counters.BACKEND.items()},
        "nbd_connections": {(): words[counters.CONNECTIONS]},
        "nbd_protocol_errors": {(): words[counters.PROTOCOL_ERRORS]},
        "cow_copies": {(): words[counters.COPIES]},
        "cow_copy_bytes": {(): words[counters.COPY_BYTES]},
        "backend_oldest_inflight_seconds": {
            (backend,): _age(now, words[at]) for backend, at in counters.BACKEND_OLDEST.items()
        },
        "cow_copy_seconds": {(): _row(words, counters.COPY)},
        "cow_copy_stage_seconds": {(stage,): _row(words, row) for stage, row in counters.COPY_STAGES.items()},
        "cow_commit_batch_exceptions": {(): _row(words, counters.BATCH, LOG2_COUNTS, 1)},
        "cow_commit_seconds": {(stage,): _row(words, row) for stage, row in counters.COMMIT.items()},
        "cow_metadata_reads": {(reason,): words[at] for reason, at in counters.REREADS.items()},
        "cow_metadata_read_exceptions": {(): words[counters.REREAD_ENTRIES]},
        "snapshot_invalidations": {(reason,): words[at] for reason, at in counters.INVALIDATIONS.items()},
        "metadata_corruption": {(kind,): words[at] for kind, at in counters.CORRUPTIONS.items()},
        "worker_heartbeat_age_seconds": {(): _age(now, words[counters.HEARTBEAT])},
        "direct_io": {(): words[counters.DIRECT]},
        "lock_acquisitions": {
            (mode, resource, "cached", "granted"): words[at] for (resource, mode), at in counters.CACHED.items()
        },
    }
    slots = snapshot_slots(words)
    for record in snapshots:
        slot = slots.get(record.store)
        if slot is not None:
            found.setdefault("cow_used_bytes", {})[record.name,] = slot.allocated * SECTOR
            found.setdefault("cow_metadata_bytes", {})[record.name,] = slot.metadata * SECTOR
            found.setdefault("cow_size_bytes", {})[record.name,] = slot.total * SECTOR
            found.setdefault("cow_exceptions", {})[record.name,] = slot.exceptions
    return found


def _age(now: int, then: int) -> float:
    """Seconds since ``then``; 0: it has not been."""
    return max(0, now - then) / SECOND if then else 0.0


def _rejected(words: memoryview) -> dict[Labels, Value]:
    """late_read: read past the deadline, thrown away and repeated; the others are answered with an error."""
    answered = {
        reason: sum(words[at] for (_, _, name), at in counters.IO_ERRORS.items() if name == error)
        for reason, error in (("fenced", "EBADE"), ("stopping", "ESHUTDOWN"))
    }
    return {("late_read",): words[counters.REJECTED_LATE_READS], **{(why,): count for why, count in answered.items()}}


def _row(words: memoryview, row: int, shown: range = LOG2_TIMES, unit: int = SECOND) -> Distribution:
    """Fold a row's log2 buckets into ``shown``; what lies below the first is counted in it."""
    histogram = words[row + counters.HISTOGRAM : row + counters.ROW].tolist()
    buckets = [(str(2**k / unit), float(sum(histogram[: k + 1]))) for k in shown]
    return Distribution([*buckets, ("+Inf", float(sum(histogram)))], words[row + counters.SUM] / unit)


@dataclass(frozen=True, slots=True)
class Slot:
    """A snapshot's place in the counters page. Sectors of 512 bytes."""

    allocated: int
    total: int
    metadata: int
    exceptions: int
    state: str


def snapshot_slots(words: memoryview) -> dict[str, Slot]:
    """Return the slots in use, by the store's UUID."""
    found = {}
    for index in range(counters.SNAPSHOT_SLOTS):
        first = counters.SNAPSHOTS + index * counters.SNAPSHOT_WORDS
        slot = words[first : first + counters.SNAPSHOT_WORDS].tolist()
        number = f"{slot[counters.UUID_HIGH] << 64 | slot[counters.UUID_LOW]:032x}"
        if number.strip("0"):
            uuid = "-".join((number[:8], number[8:12], number[12:16], number[16:20], number[20:]))
            state = counters.STATES[min(slot[counters.STATE], len(counters.STATES) - 1)]
            found[uuid] = Slot(
                slot[counters.ALLOCATED],
                slot[counters.TOTAL],
                slot[counters.METADATA],
                slot[counters.EXCEPTIONS],
                state,
            )
    return found


class CsnapCollector(Collector):
    """Every family on every scrape, with samples or without. ``sample`` may be called from any thread."""

    def __init__(
        self, registry: CollectorRegistry, observations: Observations, words: memoryview, sample: Callable[[], Sample]
    ) -> None:
        self._observations, self._words, self._sample = observations, words, sample
        registry.register(self)

    def describe(self) -> Iterator[Metric]:
        return (_metric(family, {}) for family in FAMILIES)

    def collect(self) -> Iterator[Metric]:
        sample = self._sample()
        merged: Values = {"build": {(__version__, platform.python_version()): 1.0}}
        sources = (
            self._observations.values(),
            member_values(sample),
            page_values(self._words, sample.now, sample.snapshots),
        )
        for source in sources:
            for name, values in source.items():
                merged.setdefault(name, {}).update(values)
        return (_metric(family, merged.get(family.name, {})) for family in FAMILIES)


def _metric(family: Family, values: dict[Labels, Value]) -> Metric:
    name = PREFIX + family.name
    metric: Metric
    if family.kind == HISTOGRAM:
        histogram = metric = HistogramMetricFamily(name, family.text, labels=family.labels)
        for labels, value in values.items():
            assert isinstance(value, Distribution)
            histogram.add_metric(labels, value.buckets, value.total)
    elif family.kind == COUNTER:
        counter = metric = CounterMetricFamily(name, family.text, labels=family.labels)
        for labels, value in values.items():
            counter.add_metric(labels, _number(value))
    elif family.kind == GAUGE:
        gauge = metric = GaugeMetricFamily(name, family.text, labels=family.labels)
        for labels, value in values.items():
            gauge.add_metric(labels, _number(value))
    else:
        info = metric = InfoMetricFamily(name, family.text, labels=())
        for labels in values:
            info.add_metric((), dict(zip(family.labels, labels, strict=True)))
    return metric
