"""The counters page: what the worker counts and the control process exposes.

One shared page of 64-bit words. The worker alone writes, plain ``words[i] += n`` (0.09 us; a metrics
library costs 1.3 us a call); the control process reads when it is scraped. A word is written in one
store, so a reader sees old or new; two words may be of different moments, which metrics tolerate.

A *row* is ops, bytes, sum of nanoseconds, then a histogram: bucket ``k`` counts durations (or
sizes) whose ``bit_length()`` is k, i.e. below 2**k.
"""

from __future__ import annotations

import errno

BUCKETS = 44  # below 2**43 ns: 2.4 hours
ROW = 3 + BUCKETS
OPS, BYTES, SUM, HISTOGRAM = 0, 1, 2, 3

DEVICES = ("origin", "snapshot")
OPERATIONS = ("read", "write", "flush", "trim", "zero")
BACKENDS = ("origin", "cow")
BACKEND_OPERATIONS = ("read", "write", "flush")
REREAD_REASONS = ("load", "counter", "untrusted")
CORRUPTION_KINDS = (
    "header",  # header or sidecar
    "entry_out_of_range",
    "entry_on_metadata",
    "entry_used_twice",  # an old or a new chunk
    "entries_vanished",  # fewer than were known, or than the counter says
    "no_terminator",
)
"""What can be wrong with the metadata of a store in use (FormatError.kind)."""
LOSSES = ("full", "device_error", "corrupt", "header")
"""Why a snapshot is lost; header: it said so itself (valid=0)."""
ERRNOS = {errno.EIO: "EIO", errno.ENOSPC: "ENOSPC", errno.EPERM: "EPERM", errno.EINVAL: "EINVAL",
          errno.ESHUTDOWN: "ESHUTDOWN", errno.EBADE: "EBADE"}  # fmt: skip
"""Errors of client requests that are told apart: of the device; beyond the end; not allowed; malformed; while
stopping; of a host that was fenced. All else is OTHER."""
OTHER = "other"

_next = 0


def _take(count: int) -> int:
    global _next
    first = _next
    _next += count
    return first


HEARTBEAT = _take(1)  # boottime ns of the worker's last turn of its loop
INFLIGHT = _take(1)  # client requests received and not answered
OLDEST = _take(1)  # boottime ns at which the oldest of them was received; 0: none
WAITING = _take(1)  # parts of requests that wait for a lock, space or a re-read
STALLED = _take(1)  # 1: past the lease deadline
CONNECTIONS = _take(1)
PROTOCOL_ERRORS = _take(1)
COPIES = _take(1)
COPY_BYTES = _take(1)
COMMITS = _take(1)
COMMIT_ENTRIES = _take(1)
INVALIDATIONS = {reason: _take(1) for reason in LOSSES}
CORRUPTIONS = {kind: _take(1) for kind in CORRUPTION_KINDS}
REJECTED_LATE_READS = _take(1)  # read, but past the deadline: thrown away and repeated
DIRECT = _take(1)  # 1: every device is open with O_DIRECT
CACHED = {use: _take(1) for use in (("table", "CR"), ("region", "CR"), ("region", "EX"), ("tail", "EX"))}
"""Lock uses that needed no message: the hold was cached. A use is, of the table: a client request; of a region: a
read of one part that falls through the stack (CR), a copy-out (EX); of a tail: a batch of exceptions."""
REREADS = {reason: _take(1) for reason in REREAD_REASONS}
REREAD_ENTRIES = _take(1)

IO_ERRORS = {
    (device, op, name): _take(1) for device in DEVICES for op in OPERATIONS for name in (*ERRNOS.values(), OTHER)
}
IO = {(device, op): _take(ROW) for device in DEVICES for op in OPERATIONS}
BACKEND = {(device, op): _take(ROW) for device in BACKENDS for op in BACKEND_OPERATIONS}
BACKEND_OLDEST = {backend: _take(1) for backend in BACKENDS}
"""Boottime ns at which the oldest operation in flight was handed to the kernel; 0: none is."""
BACKEND_OF = {row: backend for (backend, _), row in BACKEND.items()}
COPY = _take(ROW)  # a copy-out from its start to its publication
COPY_STAGES = {stage: _take(ROW) for stage in ("read", "write")}
"""Of the chunks that were written in one operation: from the first's start until all were read, and until written."""
COMMIT = {stage: _take(ROW) for stage in ("flush", "write")}
BATCH = _take(ROW)  # exceptions in a group commit

SNAPSHOT_SLOTS = 16
SNAPSHOT_WORDS = 8
SNAPSHOTS = _take(SNAPSHOT_SLOTS * SNAPSHOT_WORDS)
"""Per slot: uuid high, uuid low, allocated sectors, total sectors, metadata sectors, exceptions, state, spare.
A slot with uuid 0 is free. Sectors are of 512 bytes, as in the kernel's status line."""
UUID_HIGH, UUID_LOW, ALLOCATED, TOTAL, METADATA, EXCEPTIONS, STATE = range(7)
STATES = ("creating", "active", "overflow", "invalid", "deleting")

WORDS = _next
PAGE_BYTES = -(-WORDS * 8 // 4096) * 4096


def note(words: memoryview, row: int, count: int, nanoseconds: int) -> None:
    """Count one operation of ``count`` bytes (or entries) that took ``nanoseconds`` into a row."""
    words[row] += 1
    words[row + BYTES] += count
    words[row + SUM] += nanoseconds
    words[row + HISTOGRAM + min(nanoseconds.bit_length(), BUCKETS - 1)] += 1


def note_error(words: memoryview, device: str, operation: str, error: int) -> None:
    """Count a client request that is answered with ``error``, an errno."""
    words[IO_ERRORS[device, operation, ERRNOS.get(error, OTHER)]] += 1


def note_together(words: memoryview, row: int, operations: int, nanoseconds: int) -> None:
    """Count ``operations`` that took ``nanoseconds`` each into a row."""
    words[row] += operations
    words[row + SUM] += operations * nanoseconds
    words[row + HISTOGRAM + min(nanoseconds.bit_length(), BUCKETS - 1)] += operations
