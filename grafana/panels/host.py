"""One host: a line is what a label tells apart."""

from __future__ import annotations

from grafana.panels.parts import (
    BYTE_RATE,
    BYTES,
    GREEN,
    LOCK_WAIT_NORMAL,
    NONE_AT_ALL,
    NUMBER,
    OLDEST_REQUEST_NORMAL,
    RATE,
    RED,
    REREAD_STEPS,
    SECONDS,
    SLOW_LOCK_STEPS,
    STUCK_STEPS,
    Dashboard,
    graph,
    mean,
    quantile,
    rate,
    stat,
)

RIGHT = (
    stat(
        "State",
        "Active, for each volume.",
        ("csnap_member_state{SEL} == 1", "{{volume}} {{state}}"),
        alerts=("CsnapStalled",),
    ),
    graph(
        "Lease",
        SECONDS,
        "A saw whose teeth do not go below half of the TTL's line. At 0 the host stops submitting I/O.",
        ("csnap_lease_remaining_seconds{SEL}", "{{volume}} remaining"),
        ("csnap_lease_ttl_seconds{SEL}", "{{volume}} TTL"),
        alerts=("CsnapLeaseRunningOut",),
        low=None,
    ),
    graph(
        "Keepalives",
        SECONDS,
        "Below 100 ms. Slow for this host alone: its network to etcd, or too little CPU.",
        (quantile(0.5, "csnap_lease_renew_seconds", "volume"), "{{volume}} median"),
        (quantile(0.99, "csnap_lease_renew_seconds", "volume"), "{{volume}} 99th percentile"),
    ),
    stat(
        "As it should be: 1",
        "1, each. 0 costs safety under memory pressure, or speed; csnap doctor says what to do.",
        ("csnap_direct_io{SEL}", "{{volume}} O_DIRECT"),
        ("csnap_io_flusher_enabled{SEL}", "{{volume}} I/O flusher"),
        ("csnap_memory_locked{SEL}", "{{volume}} memory locked"),
        steps=((None, RED), (1, GREEN)),
    ),
    stat(
        "As it should be: 0",
        "0, each. Counts are since the daemon's start.",
        ("csnap_io_stalled{SEL}", "{{volume}} stalled"),
        ("csnap_etcd_alarm{SEL}", "{{volume}} {{alarm}}"),
        ("sum by (volume, reason) (csnap_io_rejected_total{SEL})", "{{volume}} rejected, {{reason}}"),
        ("sum by (volume) (csnap_nbd_protocol_errors_total{SEL})", "{{volume}} protocol errors"),
        ("sum by (volume) (csnap_snapshot_invalidations_total{SEL})", "{{volume}} invalidations"),
        alerts=("CsnapEtcdNoSpace",),
        steps=NONE_AT_ALL,
    ),
    graph(
        "Worker's loop, last turn",
        SECONDS,
        "Below a third of a second: it turns four times a second at least. A line that climbs is a worker that hangs.",
        ("csnap_worker_heartbeat_age_seconds{SEL}", "{{volume}}"),
    ),
)
FAST = (
    graph(
        "Requests",
        RATE,
        "What this host's clients do.",
        (rate("csnap_io_seconds_count", "device, op"), "{{device}} {{op}}"),
    ),
    graph(
        "Requests, 99th percentile",
        SECONDS,
        "As slow as the LUN; writes to the origin a copy-out slower after a snapshot was taken.",
        (quantile(0.99, "csnap_io_seconds", "device, op"), "{{device}} {{op}}"),
    ),
    graph(
        "Bytes",
        BYTE_RATE,
        "What this host's clients do.",
        (rate("csnap_io_bytes_total", "device, op"), "{{device}} {{op}}"),
    ),
    graph(
        "Under way",
        NUMBER,
        "Requests as many as the clients' queues are deep; parts that wait near 0.",
        ("csnap_io_inflight{SEL}", "{{volume}} requests"),
        ("csnap_io_waiting{SEL}", "{{volume}} parts that wait"),
        ("csnap_nbd_connections{SEL}", "{{volume}} clients"),
    ),
    graph(
        "Oldest request",
        SECONDS,
        OLDEST_REQUEST_NORMAL,
        ("csnap_io_oldest_inflight_seconds{SEL}", "{{volume}}"),
        ("csnap_backend_oldest_inflight_seconds{SEL}", "{{volume}} {{backend}}"),
        alerts=("CsnapIoStuck",),
        steps=STUCK_STEPS,
    ),
    graph(
        "Disks, 99th percentile",
        SECONDS,
        "Milliseconds or less, and as on the other hosts. Slower than theirs: this host's paths.",
        (quantile(0.99, "csnap_backend_io_seconds", "backend, op"), "{{backend}} {{op}}"),
    ),
)
FILLING = (
    graph(
        "Exceptions known",
        NUMBER,
        "As on the other hosts, or a little behind: a host learns of theirs when it needs them. 64 bytes each.",
        ("csnap_cow_exceptions{SEL}", "{{volume}} {{snapshot}}"),
    ),
    graph(
        "Metadata",
        BYTES,
        "16 bytes for each exception, in areas of a chunk.",
        ("csnap_cow_metadata_bytes{SEL}", "{{volume}} {{snapshot}}"),
    ),
    graph(
        "Copied out",
        BYTE_RATE,
        "High after a snapshot was taken, then falling.",
        (rate("csnap_cow_copy_bytes_total", "volume"), "{{volume}}"),
    ),
    graph(
        "A copy-out, 99th percentile",
        SECONDS,
        "A read and three writes at the disks' speed, some milliseconds; the stage that stands out is the slow one.",
        (quantile(0.99, "csnap_cow_copy_seconds", "volume"), "{{volume}}"),
        (quantile(0.99, "csnap_cow_copy_stage_seconds", "volume, stage"), "{{volume}} {{stage}}"),
    ),
    graph(
        "A commit's stages, 99th percentile",
        SECONDS,
        "The COW device's speed: flush is its cache, write the entries.",
        (quantile(0.99, "csnap_cow_commit_seconds", "stage"), "{{stage}}"),
    ),
    graph(
        "Exceptions in a commit, mean",
        NUMBER,
        "1 for one writer; grows with the number of writers, which then share the cost.",
        ("csnap:cow_commit_exceptions:mean5m{SEL}", "{{volume}}"),
    ),
)
WAITING = (
    graph(
        "Lock waits, 99th percentile",
        SECONDS,
        LOCK_WAIT_NORMAL,
        (quantile(0.99, "csnap_lock_wait_seconds", "mode, resource"), "{{mode}} {{resource}}"),
        alerts=("CsnapLockWaitSlow",),
        steps=SLOW_LOCK_STEPS,
    ),
    graph(
        "Locks held for, mean",
        SECONDS,
        "Long: a lock is kept until somebody asks for it. Short: it is fought for.",
        (mean("csnap_lock_hold_seconds", "mode, resource"), "{{mode}} {{resource}}"),
    ),
    graph(
        "Giving a lock back, 99th percentile",
        SECONDS,
        "The time of what is in flight under it, and two round trips to etcd. Long here: others wait for this host.",
        (quantile(0.99, "csnap_lock_demotion_seconds", "resource"), "{{resource}}"),
    ),
    graph(
        "Locks held and waited for",
        NUMBER,
        "Held: a region for every run of the origin that this host works in. Waited for: near 0.",
        ("sum by (mode, resource) (csnap_locks_held{SEL})", "{{mode}} {{resource}}"),
        ("sum by (resource) (csnap_lock_waiters{SEL})", "waiting for {{resource}}"),
    ),
    graph(
        "Metadata re-reads",
        RATE,
        "Near 0. Counter: another host had appended; untrusted: after a recovery.",
        (rate("csnap_cow_metadata_reads_total", "reason"), "{{reason}}"),
        (rate("csnap_cow_metadata_read_exceptions_total", "volume"), "exceptions found"),
        alerts=("CsnapRereadStorm",),
        steps=REREAD_STEPS,
    ),
    graph(
        "etcd",
        RATE,
        "Keepalives, and little else while hosts do not share regions; code ok, a lag of 0.",
        (rate("csnap_etcd_request_seconds_count", "op, code"), "{{op}} {{code}}"),
        ("max by (volume) (csnap_etcd_watch_lag_revisions{SEL})", "{{volume}} watch lag"),
    ),
)
ONE_HOST = Dashboard("host", "csnap: host", 3, (RIGHT, FAST, FILLING, WAITING))
