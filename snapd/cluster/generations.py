"""Generations: how a store finds out that etcd was set back in time.

Every live store's sidecar and record have one. A snapshot that is taken announces the next one in its ``creating``
record, puts it into the sidecars, and raises the records in the transaction that takes it. So the sidecars of the older
snapshots are newer than any backup of etcd that does not know the younger one, and such a store is refused: what was
copied out since went into a store that this etcd does not know, and the older one lacks it.

    record >= sidecar                    fine: a crash between the two, or never raised
    record <  sidecar, announced         fine: a snapshot is being taken
    record <  sidecar, not announced     etcd was set back
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Delete, Operation, Put
from snapd.lockspace.records import SnapshotRecord

LIVE = ("active", "overflow", "deleting")
"""States of snapshots that are written to: one that is being deleted works until it is gone."""


def live(records: Iterable[SnapshotRecord]) -> list[SnapshotRecord]:
    return [record for record in records if record.state in LIVE]


def next_generation(records: Iterable[SnapshotRecord]) -> int:
    """One that no record has announced and so no sidecar has."""
    return 1 + max((record.generation for record in records), default=0)


def raised(keys: Keys, records: Iterable[SnapshotRecord], generation: int) -> tuple[Operation, ...]:
    """Puts that give every live record at least ``generation``. To be sent only if the records are unchanged."""
    return tuple(
        Put(keys.snapshot(record.name), replace(record, generation=generation).to_bytes())
        for record in live(records)
        if record.generation < generation
    )


def undoing(keys: Keys, records: Iterable[SnapshotRecord], creating: SnapshotRecord) -> tuple[Operation, ...]:
    """A snapshot is not taken after all: its record goes, and the sidecars may have what it announced."""
    return Delete(keys.snapshot(creating.name)), *raised(keys, records, creating.generation)
