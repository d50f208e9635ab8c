"""Generations: how a store finds out that etcd was set back in time.

Every live store's sidecar and record have one. The transaction that takes a snapshot raises that of every live record.
Each host writes it into the sidecar of each live store, with FUA, before it admits I/O under that table
(volume/table.py). So as soon as anything was written without a copy into the older snapshot, its device says that a
younger one exists.

    record >= sidecar    fine: not raised yet, or a crash between the two
    record <  sidecar    etcd was set back to before a snapshot was taken: what was copied out since went into a store
                         that this etcd does not know, and the older one lacks it. Refused (volume/cow.py)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from snapd.lockspace.keys import Keys
from snapd.lockspace.kv import Operation, Put
from snapd.lockspace.records import SnapshotRecord

LIVE = ("active", "overflow", "deleting")
"""States of snapshots that are written to: one that is being deleted works until it is gone."""


def next_generation(records: Iterable[SnapshotRecord]) -> int:
    """One that no record and so no sidecar has."""
    return 1 + max((record.generation for record in records), default=0)


def raised(keys: Keys, records: Iterable[SnapshotRecord], generation: int) -> tuple[Operation, ...]:
    """Puts that give every live record at least ``generation``. Only under a table grant: nobody else changes them."""
    return tuple(
        Put(keys.snapshot(record.name), replace(record, generation=generation).to_bytes())
        for record in records
        if record.state in LIVE and record.generation < generation
    )
