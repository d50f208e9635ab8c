"""Dashboards are what Grafana's own types say: JSON Schemas generated from them (tools/grafana-schema)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.monitoring.promtool import ROOT

SCHEMAS = Path(__file__).parent / "schema"
DASHBOARDS = sorted((ROOT / "grafana" / "dashboards").glob("*.json"))


def validator(name: str) -> Draft7Validator:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def faults(dashboard: dict[str, Any]) -> list[str]:
    """Return what the schemas do not allow: of the dashboard, and of each panel's options and field configuration."""
    found = [f"{list(error.path)}: {error.message}" for error in validator("dashboard").iter_errors(dashboard)]
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            options = validator(f"{panel['type']}-options").iter_errors(panel["options"])
            custom = panel["fieldConfig"]["defaults"].get("custom", {})
            custom_faults = validator("timeseries-custom").iter_errors(custom)
            found += [f"{panel['title']}: {error.message}" for error in (*options, *custom_faults)]
    return found


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_fits_grafanas_types(path: Path) -> None:
    """Every field is one that Grafana knows, of the type that it expects, and none that it requires is missing."""
    assert faults(json.loads(path.read_text())) == []


def test_the_schemas_refuse_what_grafana_would_not_understand() -> None:
    """A misspelt field, a wrong type and a missing option are found, wherever they are."""
    made = json.loads(DASHBOARDS[0].read_text())
    panel = next(one for one in made["panels"] if one["type"] == "timeseries")
    panel["titel"] = panel["options"].pop("legend")
    panel["gridPos"]["x"] = "0"
    made["refreshes"] = True
    assert len(faults(made)) >= 3
