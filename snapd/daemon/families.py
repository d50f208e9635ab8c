"""Every metric family of csnap, in one table. docs/metrics.md lists the same; a test compares them.

Names are without the prefix ``csnap_``; a counter's without its ``_total``. Base units. Labels are bounded: modes,
kinds of resources, operations, devices, snapshots, results; never a chunk, a key or a client.
"""

from __future__ import annotations

from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"
PREFIX = "csnap_"


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, GAUGE, text, labels)


def _histogram(name: str, text: str, *labels: str) -> Family:
    return Family(name, HISTOGRAM, text, labels)


LOCKS = (
    _histogram("lock_wait_seconds", "From asking for a lock to its grant.", "mode", "resource"),
    _histogram("lock_hold_seconds", "From a grant to the release or demotion.", "mode", "resource"),
    _counter(
        "lock_acquisitions",
        "Uses of locks: cached (no message) or granted by etcd.",
        "mode",
        "resource",
        "source",
        "result",
    ),
    _gauge("locks_held", "Locks that this member holds.", "mode", "resource"),
    _gauge("lock_waiters", "Locks that this member waits for.", "resource"),
    _gauge("lock_oldest_wait_seconds", "Age of this member's oldest waiting ticket; 0: none."),
    _counter(
        "lock_demotions", "Locks given back because somebody waited or the work was done.", "from", "to", "reason"
    ),
    _histogram("lock_demotion_seconds", "From being asked for a lock to having given it back.", "resource"),
)
LEASE = (
    _gauge("lease_remaining_seconds", "Until the deadline past which this host submits nothing."),
    _gauge("lease_ttl_seconds", "As etcd granted it; 0 before the first grant."),
    _histogram("lease_renew_seconds", "Round trip of a successful keepalive."),
    _counter("lease_renew_failures", "Keepalives that failed."),
    _gauge("member_state", "1 for the state that this member is in.", "state"),
    _histogram("etcd_request_seconds", "Requests to etcd.", "op", "code"),
    _gauge("etcd_watch_lag_revisions", "Own transactions that the watch has not shown yet."),
    _gauge("etcd_alarm", "1: etcd refuses writes (as seen by the last transaction).", "alarm"),
)
FENCING = (
    _counter("fence_events", "Attempts to fence a dead member.", "target", "method", "result"),
    Family("fencing", INFO, "The configured method; unsafe fences nobody.", ("method",)),
    _counter("io_rejected", "Results thrown away because the lease's deadline had passed.", "reason"),
)
IO = (
    _histogram("io_seconds", "Client requests from their arrival to their answer.", "device", "op"),
    _counter("io_bytes", "Bytes of client requests.", "device", "op"),
    _counter("io_errors", "Client requests answered with an error.", "device", "op", "errno"),
    _gauge("io_inflight", "Client requests received and not answered."),
    _gauge("io_waiting", "Parts of requests that wait for a lock, for space or for a re-read."),
    _gauge("io_oldest_inflight_seconds", "Age of the oldest unanswered request; 0: none."),
    _gauge("io_stalled", "1: the worker has stopped at the deadline."),
    _histogram("backend_io_seconds", "Operations on origin and COW devices, from io_submit on.", "backend", "op"),
    _gauge("nbd_connections", "Clients connected."),
    _counter("nbd_protocol_errors", "Connections dropped because of what the client sent."),
)
COW = (
    _counter("cow_copies", "Chunks copied out."),
    _counter("cow_copy_bytes", "Bytes copied out."),
    _histogram("cow_copy_seconds", "A copy-out from its start to its publication."),
    _histogram("cow_commit_batch_exceptions", "Exceptions in a group commit."),
    _histogram("cow_commit_seconds", "Stages of a group commit.", "stage"),
    _counter("cow_metadata_reads", "Times that a store's metadata was re-read.", "reason"),
    _counter("cow_metadata_read_exceptions", "Exceptions found by reading metadata."),
    _gauge("cow_used_bytes", "Allocated on the COW device, metadata included.", "snapshot"),
    _gauge("cow_metadata_bytes", "Of that: header and exception areas.", "snapshot"),
    _gauge("cow_size_bytes", "Size of the COW device.", "snapshot"),
    _gauge("cow_exceptions", "Exceptions known to this host.", "snapshot"),
    _gauge("snapshot_state", "1 for the state that the snapshot is in.", "snapshot", "state"),
    Family("snapshot", INFO, "A snapshot of the volume.", ("snapshot", "store", "cow", "writable")),
    _counter("snapshot_invalidations", "Snapshots that this host found lost.", "reason"),
    _counter("metadata_corruption", "Metadata found that contradicts itself or the device.", "what"),
)
PROCESS = (
    Family("build", INFO, "The running version.", ("version", "python")),
    _gauge("worker_heartbeat_age_seconds", "Since the last turn of the worker's loop."),
    _gauge("direct_io", "1: every device is open with O_DIRECT; 0: the page cache is used."),
    _gauge("io_flusher_enabled", "1: the kernel knows that the worker is in the block I/O path (PR_SET_IO_FLUSHER)."),
    _gauge("memory_locked", "1: the worker's memory cannot be swapped out."),
)
FAMILIES = LOCKS + LEASE + FENCING + IO + COW + PROCESS
