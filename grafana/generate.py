"""Writes the dashboards: ``python grafana/generate.py`` makes ``grafana/dashboards/*.json`` anew; a test compares them.

Three, from far to near: the fleet (a line is a volume), a volume (a line is a host), a host (a line is a label).
Each tells its story in the same four rows: is it right, is it fast, is it filling, who waits for whom. ``SEL`` in an
expression stands for the dashboard's variables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "dashboards"
SCHEMA_VERSION = 39  # Grafana 10.4 and later; it migrates older ones by itself
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
WIDTH, HEIGHT = 8, 7
ROWS = ("Is it right?", "Is it fast?", "Is it filling?", "Who waits for whom?")
VARIABLES = ("cluster", "volume", "host")

OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "auto",
        "wideLayout": True,
    },
}
"""What Grafana's types require of a panel's options; its defaults, but for a tooltip that shows every line."""

SECONDS, BYTES, RATE, SHARE, BYTE_RATE, NUMBER = "s", "bytes", "ops", "percentunit", "Bps", "short"


@dataclass(frozen=True, slots=True)
class Panel:
    """``queries``: expression and legend. ``alerts``: those that look at the same; the description names them."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    alerts: tuple[str, ...] = ()
    kind: str = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``depth``: how many of the variables select. ``rows``: the panels, in the order of ROWS."""

    name: str
    title: str
    depth: int
    rows: tuple[tuple[Panel, ...], ...]


def graph(title: str, unit: str, *queries: tuple[str, str], alerts: tuple[str, ...] = ()) -> Panel:
    return Panel(title, unit, queries, alerts)


def stat(title: str, unit: str, *queries: tuple[str, str], alerts: tuple[str, ...] = ()) -> Panel:
    return Panel(title, unit, queries, alerts, "stat")


def rate(name: str, by: str, matchers: str = "") -> str:
    return f"sum by ({by}) (rate({name}{{SEL{matchers}}}[$__rate_interval]))"


def quantile(q: float, name: str, by: str, matchers: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', f'{by}, le', matchers)})"


def mean(name: str, by: str) -> str:
    return f"{rate(f'{name}_sum', by)} / {rate(f'{name}_count', by)}"


VOLUME = "cluster, volume"
AT_VOLUME = "{{cluster}}/{{volume}}"
AT_SNAPSHOT = "{{snapshot}}"

FLEET = Dashboard(
    "fleet",
    "csnap: fleet",
    1,
    (
        (
            stat("Alerts that fire", NUMBER, ('sum by (alertname) (ALERTS{SEL,alertstate="firing"})', "{{alertname}}")),
            stat(
                "Daemons that do not answer",
                NUMBER,
                (f'count by ({VOLUME}) (up{{SEL,job="csnap"}} == 0)', AT_VOLUME),
                alerts=("CsnapDown", "CsnapAbsent", "CsnapRestartLoop"),
            ),
            graph(
                "Members by state",
                NUMBER,
                ("sum by (state) (csnap_member_state{SEL})", "{{state}}"),
                alerts=("CsnapStalled", "CsnapSelfFenced"),
            ),
            stat(
                "Lost snapshots",
                NUMBER,
                (
                    f"sum by ({VOLUME}) (max by ({VOLUME}, snapshot)"
                    ' (csnap_snapshot_state{SEL,state=~"invalid|overflow"}))',
                    AT_VOLUME,
                ),
                alerts=("CsnapSnapshotInvalid",),
            ),
            stat(
                "Versions",
                NUMBER,
                ("count by (version) (csnap_build_info{SEL})", "{{version}}"),
                alerts=("CsnapVersionSkew",),
            ),
            stat(
                "Fencing methods",
                NUMBER,
                ("count by (method) (csnap_fencing_info{SEL})", "{{method}}"),
                alerts=("CsnapUnsafeFencing",),
            ),
            stat(
                "etcd refuses writes",
                NUMBER,
                ("max by (cluster, alarm) (csnap_etcd_alarm{SEL})", "{{cluster}} {{alarm}}"),
                alerts=("CsnapEtcdNoSpace",),
            ),
        ),
        (
            graph("Requests", RATE, (rate("csnap_io_seconds_count", VOLUME), AT_VOLUME)),
            graph("Requests, 99th percentile", SECONDS, (quantile(0.99, "csnap_io_seconds", VOLUME), AT_VOLUME)),
            graph("Errors", RATE, (rate("csnap_io_errors_total", VOLUME), AT_VOLUME), alerts=("CsnapIoErrors",)),
        ),
        (
            graph(
                "COW devices",
                SHARE,
                ("csnap:cow_fill:ratio{SEL}", f"{AT_VOLUME} {AT_SNAPSHOT}"),
                alerts=("CsnapCowFilling", "CsnapCowAlmostFull"),
            ),
            graph(
                "Full in",
                SECONDS,
                ("csnap:cow_full:seconds{SEL}", f"{AT_VOLUME} {AT_SNAPSHOT}"),
                alerts=("CsnapCowFullSoon",),
            ),
            graph("Copied out", BYTE_RATE, (rate("csnap_cow_copy_bytes_total", VOLUME), AT_VOLUME)),
        ),
        (
            graph(
                "Oldest wait for a lock",
                SECONDS,
                (f"max by ({VOLUME}) (csnap_lock_oldest_wait_seconds{{SEL}})", AT_VOLUME),
                alerts=("CsnapLockWaitOverTtl",),
            ),
            graph(
                "Lock waits, 99th percentile, worst host",
                SECONDS,
                (f"max by ({VOLUME}) (csnap:lock_wait:p99_seconds{{SEL}})", AT_VOLUME),
                alerts=("CsnapLockWaitSlow",),
            ),
            graph("Locks given back to others", RATE, (rate("csnap_lock_demotions_total", VOLUME), AT_VOLUME)),
        ),
    ),
)

AT_HOST = "{{host}}"
ONE_VOLUME = Dashboard(
    "volume",
    "csnap: volume",
    2,
    (
        (
            graph(
                "Members by state",
                NUMBER,
                ("csnap_member_state{SEL} == 1", "{{host}} {{state}}"),
                alerts=("CsnapStalled", "CsnapSelfFenced"),
            ),
            graph(
                "Lease left, of a renewal",
                SHARE,
                ("csnap:lease_remaining:ratio{SEL}", AT_HOST),
                alerts=("CsnapLeaseRunningOut",),
            ),
            graph(
                "Keepalives that failed",
                RATE,
                (rate("csnap_lease_renew_failures_total", "host"), AT_HOST),
                alerts=("CsnapLeaseRenewFailing",),
            ),
            graph(
                "Fencing",
                NUMBER,
                ("sum by (target, method, result) (csnap_fence_events_total{SEL})", "{{target}} {{method}} {{result}}"),
                alerts=("CsnapHostFenced", "CsnapFencingFailed"),
            ),
            stat(
                "Snapshots by state",
                NUMBER,
                ("max by (snapshot, state) (csnap_snapshot_state{SEL}) == 1", "{{snapshot}} {{state}}"),
                alerts=("CsnapSnapshotInvalid",),
            ),
            stat(
                "Snapshots",
                NUMBER,
                ("max by (snapshot, cow, writable) (csnap_snapshot_info{SEL})", "{{snapshot}} {{cow}}"),
            ),
            graph(
                "Corrupt metadata",
                NUMBER,
                ("sum by (host, what) (csnap_metadata_corruption_total{SEL})", "{{host}} {{what}}"),
                alerts=("CsnapMetadataCorrupt",),
            ),
        ),
        (
            graph(
                "Requests, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_io_seconds", "host, op"), "{{host}} {{op}}"),
            ),
            graph("Bytes", BYTE_RATE, (rate("csnap_io_bytes_total", "host, op"), "{{host}} {{op}}")),
            graph(
                "Disks, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_backend_io_seconds", "backend, op"), "{{backend}} {{op}}"),
            ),
            graph(
                "Oldest request",
                SECONDS,
                ("max by (host) (csnap_io_oldest_inflight_seconds{SEL})", AT_HOST),
                alerts=("CsnapIoStuck",),
            ),
            graph(
                "Errors",
                RATE,
                (rate("csnap_io_errors_total", "host, op, errno"), "{{host}} {{op}} {{errno}}"),
                alerts=("CsnapIoErrors",),
            ),
            graph(
                "etcd, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_etcd_request_seconds", "host"), AT_HOST),
                alerts=("CsnapEtcdNoSpace",),
            ),
        ),
        (
            graph(
                "COW devices",
                SHARE,
                ("csnap:cow_fill:ratio{SEL}", AT_SNAPSHOT),
                alerts=("CsnapCowFilling", "CsnapCowAlmostFull"),
            ),
            graph("Full in", SECONDS, ("csnap:cow_full:seconds{SEL}", AT_SNAPSHOT), alerts=("CsnapCowFullSoon",)),
            graph("Filling by", BYTE_RATE, ("csnap:cow_fill:bytes_per_second{SEL}", AT_SNAPSHOT)),
            graph(
                "Used",
                BYTES,
                ("max by (snapshot) (csnap_cow_used_bytes{SEL})", AT_SNAPSHOT),
                ("max by (snapshot) (csnap_cow_size_bytes{SEL})", "{{snapshot}} size"),
            ),
            graph("Chunks copied out", RATE, (rate("csnap_cow_copies_total", "host"), AT_HOST)),
            graph(
                "Bytes to the disks for a byte written",
                NUMBER,
                ("csnap:cow_write_amplification:ratio5m{SEL}", AT_VOLUME),
            ),
        ),
        (
            graph(
                "Oldest wait for a lock",
                SECONDS,
                ("csnap_lock_oldest_wait_seconds{SEL}", AT_HOST),
                alerts=("CsnapLockWaitOverTtl",),
            ),
            graph(
                "Lock waits, 99th percentile",
                SECONDS,
                ("csnap:lock_wait:p99_seconds{SEL}", AT_HOST),
                alerts=("CsnapLockWaitSlow",),
            ),
            graph("Waiting", NUMBER, ("sum by (host, resource) (csnap_lock_waiters{SEL})", "{{host}} {{resource}}")),
            graph(
                "Uses of locks that took no message",
                SHARE,
                ("csnap:lock_cached:ratio5m{SEL}", AT_HOST),
            ),
            graph(
                "Locks given back", RATE, (rate("csnap_lock_demotions_total", "host, reason"), "{{host}} {{reason}}")
            ),
            graph(
                "Metadata re-reads",
                RATE,
                ("csnap:cow_metadata_reads:rate5m{SEL}", AT_HOST),
                alerts=("CsnapRereadStorm",),
            ),
        ),
    ),
)

ONE_HOST = Dashboard(
    "host",
    "csnap: host",
    3,
    (
        (
            stat("State", NUMBER, ("csnap_member_state{SEL} == 1", "{{volume}} {{state}}"), alerts=("CsnapStalled",)),
            graph(
                "Lease",
                SECONDS,
                ("csnap_lease_remaining_seconds{SEL}", "{{volume}} remaining"),
                ("csnap_lease_ttl_seconds{SEL}", "{{volume}} TTL"),
                alerts=("CsnapLeaseRunningOut",),
            ),
            graph(
                "Keepalives",
                SECONDS,
                (quantile(0.5, "csnap_lease_renew_seconds", "volume"), "{{volume}} median"),
                (quantile(0.99, "csnap_lease_renew_seconds", "volume"), "{{volume}} 99th percentile"),
                alerts=("CsnapLeaseRenewFailing",),
            ),
            stat(
                "As it should be: 1",
                NUMBER,
                ("csnap_direct_io{SEL}", "{{volume}} O_DIRECT"),
                ("csnap_io_flusher_enabled{SEL}", "{{volume}} I/O flusher"),
                ("csnap_memory_locked{SEL}", "{{volume}} memory locked"),
            ),
            stat(
                "As it should be: 0",
                NUMBER,
                ("csnap_io_stalled{SEL}", "{{volume}} stalled"),
                ("csnap_etcd_alarm{SEL}", "{{volume}} {{alarm}}"),
                ("sum by (volume, reason) (csnap_io_rejected_total{SEL})", "{{volume}} rejected, {{reason}}"),
                ("sum by (volume) (csnap_nbd_protocol_errors_total{SEL})", "{{volume}} protocol errors"),
                ("sum by (volume) (csnap_snapshot_invalidations_total{SEL})", "{{volume}} invalidations"),
                alerts=("CsnapEtcdNoSpace",),
            ),
            graph("Worker's loop, last turn", SECONDS, ("csnap_worker_heartbeat_age_seconds{SEL}", "{{volume}}")),
        ),
        (
            graph("Requests", RATE, (rate("csnap_io_seconds_count", "device, op"), "{{device}} {{op}}")),
            graph(
                "Requests, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_io_seconds", "device, op"), "{{device}} {{op}}"),
            ),
            graph("Bytes", BYTE_RATE, (rate("csnap_io_bytes_total", "device, op"), "{{device}} {{op}}")),
            graph(
                "Under way",
                NUMBER,
                ("csnap_io_inflight{SEL}", "{{volume}} requests"),
                ("csnap_io_waiting{SEL}", "{{volume}} parts that wait"),
                ("csnap_nbd_connections{SEL}", "{{volume}} clients"),
            ),
            graph(
                "Oldest request",
                SECONDS,
                ("csnap_io_oldest_inflight_seconds{SEL}", "{{volume}}"),
                ("csnap_backend_oldest_inflight_seconds{SEL}", "{{volume}} {{backend}}"),
                alerts=("CsnapIoStuck",),
            ),
            graph(
                "Disks, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_backend_io_seconds", "backend, op"), "{{backend}} {{op}}"),
            ),
        ),
        (
            graph("Exceptions known", NUMBER, ("csnap_cow_exceptions{SEL}", "{{volume}} {{snapshot}}")),
            graph("Metadata", BYTES, ("csnap_cow_metadata_bytes{SEL}", "{{volume}} {{snapshot}}")),
            graph("Copied out", BYTE_RATE, (rate("csnap_cow_copy_bytes_total", "volume"), "{{volume}}")),
            graph(
                "A copy-out, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_cow_copy_seconds", "volume"), "{{volume}}"),
                (quantile(0.99, "csnap_cow_copy_stage_seconds", "volume, stage"), "{{volume}} {{stage}}"),
            ),
            graph(
                "A commit's stages, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_cow_commit_seconds", "stage"), "{{stage}}"),
            ),
            graph(
                "Exceptions in a commit, mean",
                NUMBER,
                ("csnap:cow_commit_exceptions:mean5m{SEL}", "{{volume}}"),
            ),
        ),
        (
            graph(
                "Lock waits, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_lock_wait_seconds", "mode, resource"), "{{mode}} {{resource}}"),
                alerts=("CsnapLockWaitSlow",),
            ),
            graph(
                "Locks held for, mean",
                SECONDS,
                (mean("csnap_lock_hold_seconds", "mode, resource"), "{{mode}} {{resource}}"),
            ),
            graph(
                "Giving a lock back, 99th percentile",
                SECONDS,
                (quantile(0.99, "csnap_lock_demotion_seconds", "resource"), "{{resource}}"),
            ),
            graph(
                "Locks held and waited for",
                NUMBER,
                ("sum by (mode, resource) (csnap_locks_held{SEL})", "{{mode}} {{resource}}"),
                ("sum by (resource) (csnap_lock_waiters{SEL})", "waiting for {{resource}}"),
            ),
            graph(
                "Metadata re-reads",
                RATE,
                (rate("csnap_cow_metadata_reads_total", "reason"), "{{reason}}"),
                (rate("csnap_cow_metadata_read_exceptions_total", "volume"), "exceptions found"),
                alerts=("CsnapRereadStorm",),
            ),
            graph(
                "etcd",
                RATE,
                (rate("csnap_etcd_request_seconds_count", "op, code"), "{{op}} {{code}}"),
                ("max by (volume) (csnap_etcd_watch_lag_revisions{SEL})", "{{volume}} watch lag"),
            ),
        ),
    ),
)

DASHBOARDS = (FLEET, ONE_VOLUME, ONE_HOST)


def selector(depth: int) -> str:
    return ",".join(f'{name}=~"${name}"' for name in VARIABLES[:depth])


def expression(text: str, depth: int) -> str:
    return text.replace("SEL", selector(depth))


def panel_json(panel: Panel, number: int, x: int, y: int, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression(text, depth),
                "legendFormat": legend,
            }
            for index, (text, legend) in enumerate(panel.queries)
        ],
    }
    if panel.alerts:
        made["description"] = "Alerts: " + ", ".join(
            f"{name} (docs/runbook.md#{name.lower()})" for name in panel.alerts
        )
    return made


def variable(index: int) -> dict[str, Any]:
    name = VARIABLES[index]
    query = f"label_values(csnap_build_info{{{selector(index)}}}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "allValue": ".*",
        "refresh": 2,  # when the time range changes
        "sort": 1,
    }


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in zip(ROWS, dashboard.rows, strict=True):
        grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        )
        y += 1
        for index, panel in enumerate(row):
            across, down = index * WIDTH % COLUMNS, y + index * WIDTH // COLUMNS * HEIGHT
            panels.append(panel_json(panel, len(panels) + 1, across, down, dashboard.depth))
        y += -(-len(row) * WIDTH // COLUMNS) * HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    others = {
        "type": "dashboards",
        "title": "csnap",
        "icon": "external link",
        "tooltip": "",
        "targetBlank": False,
        "tags": ["csnap"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }
    return {
        "uid": f"csnap-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["csnap"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [others],
        "templating": {"list": [source, *(variable(index) for index in range(dashboard.depth))]},
        "panels": panels,
    }


def text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard_json(dashboard), indent=1) + "\n"


if __name__ == "__main__":
    for made in DASHBOARDS:
        (DIRECTORY / f"{made.name}.json").write_text(text(made))
