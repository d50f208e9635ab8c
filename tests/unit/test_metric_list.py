"""The metrics that dashboards, alerts and people may rely on: names, types and labels. Taking one away breaks them."""

from __future__ import annotations

import pytest

from snapd.daemon.families import COUNTER, FAMILIES, GAUGE, HISTOGRAM, INFO
from snapd.daemon.metrics import BOUNDS
from snapd.units import SECOND

PROMISED = {
    # locks
    "lock_wait_seconds": (HISTOGRAM, "mode resource"),
    "lock_hold_seconds": (HISTOGRAM, "mode resource"),
    "lock_acquisitions": (COUNTER, "mode resource source result"),
    "locks_held": (GAUGE, "mode resource"),
    "lock_waiters": (GAUGE, "mode resource"),
    "lock_oldest_wait_seconds": (GAUGE, "mode resource"),
    "lock_demotions": (COUNTER, "from to reason"),
    "lock_demotion_seconds": (HISTOGRAM, "resource"),
    # lease and etcd
    "lease_remaining_seconds": (GAUGE, ""),
    "lease_ttl_seconds": (GAUGE, ""),
    "lease_renew_seconds": (HISTOGRAM, ""),
    "lease_renew_failures": (COUNTER, ""),
    "member_state": (GAUGE, "state"),
    "etcd_request_seconds": (HISTOGRAM, "op code"),
    "etcd_watch_lag_revisions": (GAUGE, ""),
    "etcd_alarm": (GAUGE, "alarm"),
    # fencing
    "fence_events": (COUNTER, "target method result"),
    "fencing": (INFO, "method"),
    "io_rejected": (COUNTER, "reason"),
    # I/O
    "io_seconds": (HISTOGRAM, "device op"),
    "io_bytes": (COUNTER, "device op"),
    "io_errors": (COUNTER, "device op errno"),
    "io_inflight": (GAUGE, ""),
    "io_waiting": (GAUGE, ""),
    "io_oldest_inflight_seconds": (GAUGE, ""),
    "io_stalled": (GAUGE, ""),
    "backend_io_seconds": (HISTOGRAM, "backend op"),
    "backend_oldest_inflight_seconds": (GAUGE, "backend"),
    "nbd_connections": (GAUGE, ""),
    "nbd_protocol_errors": (COUNTER, ""),
    # COW
    "cow_copies": (COUNTER, ""),
    "cow_copy_bytes": (COUNTER, ""),
    "cow_copy_seconds": (HISTOGRAM, ""),
    "cow_copy_stage_seconds": (HISTOGRAM, "stage"),
    "cow_commit_batch_exceptions": (HISTOGRAM, ""),
    "cow_commit_seconds": (HISTOGRAM, "stage"),
    "cow_metadata_reads": (COUNTER, "reason"),
    "cow_used_bytes": (GAUGE, "snapshot"),
    "cow_metadata_bytes": (GAUGE, "snapshot"),
    "cow_size_bytes": (GAUGE, "snapshot"),
    "snapshot_state": (GAUGE, "snapshot state"),
    "snapshot": (INFO, "snapshot store cow writable"),
    "snapshot_invalidations": (COUNTER, "reason"),
    "metadata_corruption": (COUNTER, "what"),
    # process
    "build": (INFO, "version python"),
    "io_flusher_enabled": (GAUGE, ""),
    "memory_locked": (GAUGE, ""),
}

BY_NAME = {family.name: family for family in FAMILIES}


@pytest.mark.parametrize("name", PROMISED)
def test_what_is_promised_is_there(name: str) -> None:
    """Under its exact name, of its type, with these labels and a sentence of help."""
    family = BY_NAME[name]
    assert (family.kind, " ".join(family.labels)) == PROMISED[name]
    assert family.text.endswith(".")


def test_lock_waits_have_buckets_from_50_us_to_30_s() -> None:
    """50 us x 2^n up to 6.6 s, then 10 and 30 s: a cached grant and a dead holder are both told apart."""
    assert BOUNDS[0] == 50_000 and BOUNDS[17] == 50_000 * 2**17 < 6.6 * SECOND < BOUNDS[17] * 1.01
    assert BOUNDS[18:] == (10 * SECOND, 30 * SECOND)


def test_known_labels_fit_their_family() -> None:
    """One value for each label, no combination twice."""
    for family in FAMILIES:
        assert all(len(values) == len(family.labels) for values in family.known), family.name
        assert len(set(family.known)) == len(family.known), family.name
