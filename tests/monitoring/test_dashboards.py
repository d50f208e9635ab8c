"""Dashboards: generated, valid queries of metrics that exist, and nothing that is measured is left out."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from snapd.daemon.families import FAMILIES, PREFIX
from tests.monitoring.promtool import RECORDED, ROOT, RULES, promtool, recorded, series, strangers

NAMES = ("fleet", "volume", "host")


def dashboard(name: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((ROOT / "grafana" / "dashboards" / f"{name}.json").read_text())
    return made


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def expressions(name: str, window: str = "5m") -> Iterator[str]:
    """Yield each panel's expressions as Grafana would send them, with every variable at "all"."""
    for panel in panels(name):
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", window)
            yield re.sub(r"\$(cluster|volume|host)\b", ".*", text)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grafana_generate", ROOT / "grafana" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_dashboards_are_the_generators(generator: ModuleType) -> None:
    """Nobody changed one without the other, and there is no other."""
    made = {f"{one.name}.json": generator.text(one) for one in generator.DASHBOARDS}
    assert made == {path.name: path.read_text() for path in (ROOT / "grafana" / "dashboards").iterdir()}
    assert set(made) == {f"{name}.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_prometheus_parses_every_expression(name: str, tmp_path: Path) -> None:
    """They are given to promtool as recording rules (JSON is YAML)."""
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions(name))]
    path = tmp_path / "panels.json"
    path.write_text(json.dumps({"groups": [{"name": name, "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("name", NAMES)
def test_panels_ask_for_what_daemons_expose(name: str) -> None:
    """Names and labels of metrics are the registry's, names of recorded series those of a recording rule."""
    for text in expressions(name):
        assert not strangers(text), text
        assert set(RECORDED.findall(text)) <= recorded(), text


@pytest.mark.parametrize("name", NAMES)
def test_a_legend_names_labels_that_its_expression_leaves(name: str) -> None:
    """A label that was summed away is an empty legend."""
    for panel in panels(name):
        for target in panel["targets"]:
            grouped = re.findall(r"^(?:\w+\([^(]*)?(?:sum|max|count) by \(([^)]*)\)", target["expr"])
            for labels in grouped[:1]:
                assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= set(labels.split(", ")), panel["title"]


def test_everything_measured_is_shown() -> None:
    """Each family of the registry is in a panel, or in a recording rule that is in a panel."""
    text = "\n".join(target["expr"] for name in NAMES for panel in panels(name) for target in panel["targets"])
    rules = "".join(path.read_text() for path in RULES if path.name == "csnap.rules.yml")
    shown = {family.name for name, family in series().items() if re.search(rf"\b{name}\b", text + rules)}
    assert {family.name for family in FAMILIES} - shown == set(), PREFIX
    assert recorded() == set(RECORDED.findall(text))


def test_every_alert_has_a_panel_that_leads_to_its_section() -> None:
    """And panels name alerts that are there."""
    alerts = set(re.findall(r"- alert: (\w+)", "".join(path.read_text() for path in RULES)))
    described = " ".join(panel.get("description", "") for name in NAMES for panel in panels(name))
    links = re.findall(r"(Csnap\w+) \(docs/runbook\.md#(\w+)\)", described)
    assert {alert for alert, _ in links} == alerts
    assert all(anchor == alert.lower() for alert, anchor in links)


def test_an_alert_links_to_a_dashboard_that_has_its_panel() -> None:
    """The one that it names, with that dashboard's variables and no other."""
    depths = dict(zip(NAMES, (1, 2, 3), strict=True))
    alerts = (ROOT / "grafana" / "rules" / "csnap.alerts.yml").read_text()
    links = re.findall(r'- alert: (\w+)\n(?:(?!- alert).*\n)*? +dashboard_url: "/d/csnap-(\w+)([^"]*)"', alerts)
    assert len(links) == alerts.count("- alert: ")
    for alert, name, query in links:
        assert any(f"{alert} (" in panel.get("description", "") for panel in panels(name)), alert
        wanted = [f"var-{label}={{{{ $labels.{label} }}}}" for label in ("cluster", "volume", "host")[: depths[name]]]
        assert query == ("" if alert == "CsnapAbsent" else "?" + "&".join(wanted)), alert


@pytest.mark.parametrize("name", NAMES)
def test_the_story_is_told_in_one_order(name: str) -> None:
    """Right, fast, filling, waiting; panels of a dashboard have an id each and do not overlap."""
    made = dashboard(name)
    rows = [panel["title"] for panel in made["panels"] if panel["type"] == "row"]
    assert rows == ["Is it right?", "Is it fast?", "Is it filling?", "Who waits for whom?"]
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells


@pytest.mark.parametrize(("name", "depth"), [("fleet", 1), ("volume", 2), ("host", 3)])
def test_each_variable_selects(name: str, depth: int) -> None:
    """A dashboard's variables are used by all of its expressions, and no other variable is."""
    made = dashboard(name)
    variables = [one["name"] for one in made["templating"]["list"]]
    assert variables == ["datasource", *("cluster", "volume", "host")[:depth]]
    for panel in panels(name):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used == set(variables[1:])
