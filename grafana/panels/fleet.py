"""The fleet: a line is a volume."""

from __future__ import annotations

from grafana.panels.parts import (
    AT_SNAPSHOT,
    AT_VOLUME,
    BYTE_RATE,
    ERRORS_NORMAL,
    FILL_NORMAL,
    FILL_STEPS,
    FULL_IN_NORMAL,
    FULL_IN_STEPS,
    LOCK_WAIT_NORMAL,
    NONE_AT_ALL,
    NUMBER,
    OLDEST_WAIT_NORMAL,
    RATE,
    SECONDS,
    SHARE,
    SLOW_LOCK_STEPS,
    VOLUME,
    Dashboard,
    graph,
    quantile,
    rate,
    stat,
)

RIGHT = (
    stat(
        "Alerts that fire",
        "None.",
        ('sum by (alertname) (ALERTS{SEL,alertstate="firing"})', "{{alertname}}"),
        steps=NONE_AT_ALL,
    ),
    stat(
        "Daemons that do not answer",
        "None; one at a time during an update.",
        (f'count by ({VOLUME}) (up{{SEL,job="csnap"}} == 0)', AT_VOLUME),
        alerts=("CsnapDown", "CsnapAbsent", "CsnapRestartLoop"),
        steps=NONE_AT_ALL,
    ),
    graph(
        "Members by state",
        NUMBER,
        "All active; joining and leaving for seconds. Stalled: a host without etcd; fenced: one that others recovered.",
        ("sum by (state) (csnap_member_state{SEL})", "{{state}}"),
        alerts=("CsnapStalled", "CsnapSelfFenced"),
    ),
    stat(
        "Lost snapshots",
        "0 for each volume that has snapshots.",
        (
            f'sum by ({VOLUME}) (max by ({VOLUME}, snapshot) (csnap_snapshot_state{{SEL,state=~"invalid|overflow"}}))',
            AT_VOLUME,
        ),
        alerts=("CsnapSnapshotInvalid",),
        steps=NONE_AT_ALL,
    ),
    stat(
        "Versions",
        "One, with the number of daemons that run it; two during an update.",
        ("count by (version) (csnap_build_info{SEL})", "{{version}}"),
        alerts=("CsnapVersionSkew",),
    ),
    stat(
        "Fencing methods",
        "One, with the number of daemons that have it. Unsafe is for tests and single hosts.",
        ("count by (method) (csnap_fencing_info{SEL})", "{{method}}"),
        alerts=("CsnapUnsafeFencing",),
    ),
    stat(
        "etcd refuses writes",
        "0. At 1 no lock is granted in that cluster.",
        ("max by (cluster, alarm) (csnap_etcd_alarm{SEL})", "{{cluster}} {{alarm}}"),
        alerts=("CsnapEtcdNoSpace",),
        steps=NONE_AT_ALL,
    ),
)
FAST = (
    graph(
        "Requests",
        RATE,
        "What the clients do. A line that falls to 0 while its clients want something is a volume that hangs.",
        (rate("csnap_io_seconds_count", VOLUME), AT_VOLUME),
    ),
    graph(
        "Requests, 99th percentile",
        SECONDS,
        "As slow as the LUN, and a copy-out slower after a snapshot was taken: compare with yesterday's.",
        (quantile(0.99, "csnap_io_seconds", VOLUME), AT_VOLUME),
    ),
    graph(
        "Errors",
        RATE,
        ERRORS_NORMAL,
        (rate("csnap_io_errors_total", VOLUME), AT_VOLUME),
        alerts=("CsnapIoErrors",),
    ),
)
FILLING = (
    graph(
        "COW devices",
        SHARE,
        FILL_NORMAL,
        ("csnap:cow_fill:ratio{SEL}", f"{AT_VOLUME} {AT_SNAPSHOT}"),
        alerts=("CsnapCowFilling", "CsnapCowAlmostFull"),
        steps=FILL_STEPS,
        high=1,
    ),
    graph(
        "Full in",
        SECONDS,
        FULL_IN_NORMAL,
        ("csnap:cow_full:seconds{SEL}", f"{AT_VOLUME} {AT_SNAPSHOT}"),
        alerts=("CsnapCowFullSoon",),
        steps=FULL_IN_STEPS,
    ),
    graph(
        "Copied out",
        BYTE_RATE,
        "High after a snapshot was taken, then falling: each chunk is copied once.",
        (rate("csnap_cow_copy_bytes_total", VOLUME), AT_VOLUME),
    ),
)
WAITING = (
    graph(
        "Oldest wait for a lock",
        SECONDS,
        OLDEST_WAIT_NORMAL,
        (f"max by ({VOLUME}) (csnap_lock_oldest_wait_seconds{{SEL}})", AT_VOLUME),
        alerts=("CsnapLockWaitOverTtl",),
    ),
    graph(
        "Lock waits, 99th percentile, worst host",
        SECONDS,
        LOCK_WAIT_NORMAL,
        (f"max by ({VOLUME}) (csnap:lock_wait:p99_seconds{{SEL}})", AT_VOLUME),
        alerts=("CsnapLockWaitSlow",),
        steps=SLOW_LOCK_STEPS,
    ),
    graph(
        "Locks given back to others",
        RATE,
        "Near 0 where each machine's disk is used on one host; high where hosts write the same regions in turn.",
        (rate("csnap_lock_demotions_total", VOLUME, ',reason="asked"'), AT_VOLUME),
    ),
)
FLEET = Dashboard("fleet", "csnap: fleet", 1, (RIGHT, FAST, FILLING, WAITING))
