"""Writes the dashboards: ``python -m grafana.generate`` makes ``grafana/dashboards/*.json`` anew; a test compares them.

Three, from far to near: the fleet (a line is a volume), a volume (a line is a host), a host (a line is a label).
Each tells its story in the same four rows: is it right, is it fast, is it filling, who waits for whom.

Links lead on: from a line to the dashboard that is nearer, from a panel to its alerts' sections of the runbook, and
from an alert (``dashboard_url`` in ``grafana/rules``) to its panel by ``viewPanel=``, which is the panel's number: its
row's, from 1, times 100, and its place in the row. So a panel that is added at the end of a row moves no other's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana.panels.fleet import FLEET
from grafana.panels.host import ONE_HOST
from grafana.panels.parts import Dashboard, Panel
from grafana.panels.volume import ONE_VOLUME

DASHBOARDS = (FLEET, ONE_VOLUME, ONE_HOST)
DIRECTORY = Path(__file__).parent / "dashboards"
SCHEMA_VERSION = 39  # Grafana 10.4 and later; it migrates older ones by itself
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUNBOOK = "docs/runbook.md"
"""The dashboards' hidden constant ``runbook``: Ansible's role monitoring puts an address there, or who imports them."""
COLUMNS = 24
WIDTH, HEIGHT = 8, 7
ROWS = ("Is it right?", "Is it fast?", "Is it filling?", "Who waits for whom?")
IN_ROW = 100
VARIABLES = ("cluster", "volume", "host")

OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"calcs": ["lastNotNull", "max"], "displayMode": "table", "placement": "bottom", "showLegend": True},
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
        "textMode": "value_and_name",
        "wideLayout": True,
    },
}
"""What Grafana's types require of a panel's options."""
CUSTOM: dict[str, Any] = {"fillOpacity": 5, "lineWidth": 1, "showPoints": "never", "spanNulls": False}
"""A gap is a gap: a daemon that was not there."""

LINK = {
    "icon": "external link",
    "tooltip": "",
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
}
NEARER = {
    "fleet": (
        "/d/csnap-volume?var-cluster=${__field.labels.cluster}&var-volume=${__field.labels.volume}",
        {"cluster", "volume"},
    ),
    "volume": ("/d/csnap-host?${cluster:queryparam}&${volume:queryparam}&var-host=${__field.labels.host}", {"host"}),
}
"""Where a line of this dashboard leads, and the labels that it needs for it."""


def selector(depth: int) -> str:
    return ",".join(f'{name}=~"${name}"' for name in VARIABLES[:depth])


def expression(text: str, depth: int) -> str:
    return text.replace("SEL", selector(depth))


def field_json(panel: Panel, dashboard: str) -> dict[str, Any]:
    """Return how values are shown: unit, axis, limits, and where a line leads."""
    made: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": [{"color": color, "value": at} for at, color in panel.steps]},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.kind == "timeseries":
        made["custom"] = CUSTOM | {"thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"}}
    for key, value in (("min", panel.low), ("max", panel.high), ("noValue", panel.empty or None)):
        if value is not None:
            made[key] = value
    url, needed = NEARER.get(dashboard, ("", set()))
    if url and all(
        needed <= {name for name in VARIABLES if f"{{{{{name}}}}}" in legend} for _, legend in panel.queries
    ):
        title = f"csnap: {url.partition('?')[0].rpartition('-')[2]}"
        made["links"] = [{"title": title, "url": url + "&${__url_time_range}"}]
    return made


def panel_json(panel: Panel, number: int, x: int, y: int, dashboard: Dashboard) -> dict[str, Any]:
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": f"Normal: {panel.normal}" + (f" Alerts: {', '.join(panel.alerts)}." if panel.alerts else ""),
        "datasource": SOURCE,
        "gridPos": {"h": HEIGHT, "w": WIDTH, "x": x, "y": y},
        "fieldConfig": {"defaults": field_json(panel, dashboard.name), "overrides": []},
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression(text, dashboard.depth),
                "legendFormat": legend,
            }
            for index, (text, legend) in enumerate(panel.queries)
        ],
    }
    if panel.alerts:
        made["links"] = [
            LINK
            | {
                "type": "link",
                "title": f"Runbook: {name}",
                "url": f"${{runbook:raw}}#{name.lower()}",
                "tags": [],
                "targetBlank": True,
                "includeVars": False,
                "keepTime": False,
            }
            for name in panel.alerts
        ]
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


def panels_json(dashboard: Dashboard) -> list[dict[str, Any]]:
    """Return the rows and, below each, its panels, three in a line."""
    panels: list[dict[str, Any]] = []
    y = 0
    for number, (title, row) in enumerate(zip(ROWS, dashboard.rows, strict=True), 1):
        grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {"id": number * IN_ROW, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        )
        y += 1
        for index, panel in enumerate(row):
            across, down = index * WIDTH % COLUMNS, y + index * WIDTH // COLUMNS * HEIGHT
            panels.append(panel_json(panel, number * IN_ROW + index + 1, across, down, dashboard))
        y += -(-len(row) * WIDTH // COLUMNS) * HEIGHT
    return panels


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    runbook = {"name": "runbook", "type": "constant", "query": RUNBOOK, "hide": 2, "skipUrlSync": True}
    others = LINK | {"type": "dashboards", "title": "csnap", "targetBlank": False, "tags": ["csnap"]}
    return {
        "uid": f"csnap-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["csnap"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "links": [others],
        "templating": {"list": [source, runbook, *(variable(index) for index in range(dashboard.depth))]},
        "panels": panels_json(dashboard),
    }


def text(dashboard: Dashboard) -> str:
    return json.dumps(dashboard_json(dashboard), indent=1) + "\n"


if __name__ == "__main__":
    for made in DASHBOARDS:
        (DIRECTORY / f"{made.name}.json").write_text(text(made))
