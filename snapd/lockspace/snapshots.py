"""The table of snapshots, from the ``s/<name>`` records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from snapd.errors import FormatError
from snapd.lockspace.kv import KeyValue
from snapd.lockspace.records import SnapshotRecord
from snapd.messages import SnapshotSpec


def records_of(kvs: Iterable[KeyValue], bad: Callable[[FormatError], None]) -> list[SnapshotRecord]:
    """Every record that makes sense, newest first; those being created last. ``bad`` is told the others."""
    records = []
    for kv in kvs:
        try:
            records.append(SnapshotRecord.from_bytes(kv.key, kv.value))
        except FormatError as error:
            bad(error)
    return sorted(records, key=lambda record: (record.state == "creating", -record.place))


def spec_of(record: SnapshotRecord) -> SnapshotSpec:
    return SnapshotSpec(record.name, record.store, record.path, record.state, record.writable, record.generation)


def table_of(kvs: Iterable[KeyValue], bad: Callable[[FormatError], None]) -> tuple[SnapshotSpec, ...]:
    """What the worker is told with the table: all but what is still being created; what is being deleted works on."""
    records = (record for record in records_of(kvs, bad) if record.state != "creating")
    return tuple(
        spec_of(replace(record, state="active") if record.state == "deleting" else record) for record in records
    )
