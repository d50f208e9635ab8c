"""Every metric family of csnap, in one table. docs/metrics.md lists the same; a test compares them.

Names are without the prefix ``csnap_``; a counter's without its ``_total``. Base units. Labels are bounded: modes,
kinds of resources, operations, devices, snapshots, results; never a chunk, a key or a client.

Where all combinations of labels are known, each is there from the start, at 0: an increase from nothing to 1 is none
to Prometheus, and the first failed keepalive is the one that matters. Open are who was fenced, and snapshots' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM, INFO = "counter", "gauge", "histogram", "info"
PREFIX = "csnap_"


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()
    """Values of the labels that are shown before anything was observed; of the counters page all are."""


def _counter(name: str, text: str, *labels: str, known: Sequence[tuple[str, ...]] = ()) -> Family:
    return Family(name, COUNTER, text, labels, tuple(known))


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, GAUGE, text, labels)


def _histogram(name: str, text: str, *labels: str, known: Sequence[tuple[str, ...]] = ()) -> Family:
    return Family(name, HISTOGRAM, text, labels, tuple(known))


NO_LABELS = ((),)
USES = (("CR", "table"), ("EX", "table"), ("CR", "region"), ("EX", "region"), ("EX", "tail"))
"""Modes and kinds of resources that there are. EX of the table: a snapshot is taken, deleted or invalidated."""
RESOURCES = ("table", "region", "tail")
GRANTED, WITHDRAWN = "granted", "withdrawn"
DEMOTIONS = (("CR", "NL"), ("EX", "NL"), ("EX", "CR"))
ASKED, OWN, UPGRADE = "asked", "own", "upgrade"
ETCD_REQUESTS = ("txn", "range", "lease_grant", "lease_keepalive", "lease_revoke")
ALARMS = ("NOSPACE",)

LOCKS = (
    _histogram("lock_wait_seconds", "From asking for a lock to its grant.", "mode", "resource", known=USES),
    _histogram("lock_hold_seconds", "From a grant to the release or demotion.", "mode", "resource", known=USES),
    _counter(
        "lock_acquisitions",
        "Uses of locks: cached (no message) or granted by etcd; withdrawn: given up while it was waited for.",
        "mode",
        "resource",
        "source",
        "result",
        known=[(*use, "granted", result) for use in USES for result in (GRANTED, WITHDRAWN)],
    ),
    _gauge("locks_held", "Locks that this member holds.", "mode", "resource"),
    _gauge("lock_waiters", "Locks that this member waits for.", "mode", "resource"),
    _gauge("lock_oldest_wait_seconds", "Age of this member's oldest waiting ticket; 0: none.", "mode", "resource"),
    _counter(
        "lock_demotions",
        "Locks given back: asked for by others, own work done, or given up to get the exclusive mode.",
        "from",
        "to",
        "reason",
        known=[(*demotion, reason) for demotion in DEMOTIONS for reason in (ASKED, OWN)] + [("CR", "NL", UPGRADE)],
    ),
    _histogram(
        "lock_demotion_seconds",
        "From asking the worker for a lock to its release in etcd.",
        "resource",
        known=[(resource,) for resource in RESOURCES],
    ),
)
LEASE = (
    _gauge("lease_remaining_seconds", "Until the deadline past which this host submits nothing."),
    _gauge("lease_ttl_seconds", "As etcd granted it; 0 before the first grant."),
    _histogram("lease_renew_seconds", "Round trip of a successful keepalive.", known=NO_LABELS),
    _counter("lease_renew_failures", "Keepalives that failed.", known=NO_LABELS),
    _gauge("member_state", "1 for the state that this member is in.", "state"),
    _histogram("etcd_request_seconds", "Requests to etcd.", "op", "code", known=[(op, "ok") for op in ETCD_REQUESTS]),
    _gauge("etcd_watch_lag_revisions", "Own transactions that the watch has not shown yet."),
    _gauge("etcd_alarm", "1: etcd refuses writes (as seen by the last transaction).", "alarm"),
)
FENCING = (
    _counter("fence_events", "Attempts to fence a dead member.", "target", "method", "result"),
    Family("fencing", INFO, "The configured method; unsafe fences nobody.", ("method",)),
    _counter("io_rejected", "Results and requests refused to clients to keep the data safe.", "reason"),
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
    _gauge("backend_oldest_inflight_seconds", "Age of the oldest operation in flight on the disks.", "backend"),
    _gauge("nbd_connections", "Clients connected."),
    _counter("nbd_protocol_errors", "Connections dropped because of what the client sent."),
)
COW = (
    _counter("cow_copies", "Chunks copied out."),
    _counter("cow_copy_bytes", "Bytes copied out."),
    _histogram("cow_copy_seconds", "A copy-out from its start to its publication."),
    _histogram("cow_copy_stage_seconds", "Stages of a copy-out before its commit.", "stage"),
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
