"""Dashboards: generated, valid queries of metrics that exist, and nothing that is measured is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grafana import generate
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


def test_the_committed_dashboards_are_the_generators() -> None:
    """Nobody changed one without the other, and there is no other."""
    made = {f"{one.name}.json": generate.text(one) for one in generate.DASHBOARDS}
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


def sections() -> set[str]:
    """Return the anchors of the runbook's sections."""
    text = (ROOT / "docs" / "runbook.md").read_text()
    return {name.lower() for name in re.findall(r"^## (\S+)$", text, re.MULTILINE)}


def alerts_of(panel: dict[str, Any]) -> list[str]:
    return [link["title"].removeprefix("Runbook: ") for link in panel.get("links", [])]


def test_every_alert_has_a_panel_that_leads_to_its_section() -> None:
    """By a link whose address begins with the dashboard's constant; a panel's description names the same alerts."""
    alerts = set(re.findall(r"- alert: (\w+)", "".join(path.read_text() for path in RULES)))
    shown = [panel for name in NAMES for panel in panels(name)]
    assert {alert for panel in shown for alert in alerts_of(panel)} == alerts
    for panel in shown:
        assert re.findall(r"Csnap\w+", panel["description"]) == alerts_of(panel)
        for link, alert in zip(panel.get("links", []), alerts_of(panel), strict=True):
            base, _, anchor = link["url"].partition("#")
            assert base == "${runbook:raw}" and anchor == alert.lower() and anchor in sections()


def test_an_alert_links_to_its_panel() -> None:
    """In the dashboard that it names, with that dashboard's variables and no other; the panel names the alert."""
    depths = dict(zip(NAMES, (1, 2, 3), strict=True))
    alerts = (ROOT / "grafana" / "rules" / "csnap.alerts.yml").read_text()
    found = re.findall(
        r'- alert: (\w+)\n(?:(?!- alert).*\n)*? +dashboard_url: "/d/csnap-(\w+)\?([^"]*)viewPanel=(\d+)"', alerts
    )
    assert len(found) == alerts.count("- alert: ")
    for alert, name, query, number in found:
        (panel,) = [panel for panel in panels(name) if panel["id"] == int(number)]
        assert alert in alerts_of(panel), (alert, panel["title"])
        wanted = [f"var-{label}={{{{ $labels.{label} }}}}&" for label in ("cluster", "volume", "host")[: depths[name]]]
        assert query == ("" if alert == "CsnapAbsent" else "".join(wanted)), alert


@pytest.mark.parametrize("name", NAMES)
def test_a_line_leads_nearer(name: str) -> None:
    """From a volume to its dashboard, from a host to its own: a line that says which it is has the link, no other."""
    label, target = {"fleet": ("volume", "volume"), "volume": ("host", "host"), "host": ("", "")}[name]
    for panel in panels(name):
        links = panel["fieldConfig"]["defaults"].get("links", [])
        if label and all(f"{{{{{label}}}}}" in one["legendFormat"] for one in panel["targets"]):
            (link,) = links
            assert link["url"].startswith(f"/d/csnap-{target}?")
            assert f"var-{label}=${{__field.labels.{label}}}" in link["url"]
        else:
            assert links == []


@pytest.mark.parametrize("name", NAMES)
def test_a_panel_says_what_is_normal_and_its_limits_are_coloured(name: str) -> None:
    """In so many words; colours change where the alerts' thresholds are, from the lowest up; only shares have a top."""
    for panel in panels(name):
        assert re.match(r"Normal: \w.{3,}\.", panel["description"]), panel["title"]
        field = panel["fieldConfig"]["defaults"]
        at = [step["value"] for step in field["thresholds"]["steps"]]
        assert at[0] is None and at[1:] == sorted(at[1:])
        rules = (ROOT / "grafana" / "rules" / "csnap.alerts.yml").read_text()
        if panel["type"] == "timeseries":
            assert all(re.search(rf"[<>] {value:g}\b", rules) for value in at[1:]), panel["title"]
        assert field["unit"] in {"s", "bytes", "ops", "percentunit", "Bps", "short"}
        assert "max" not in field or field["unit"] == "percentunit"


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
    assert variables == ["datasource", "runbook", *("cluster", "volume", "host")[:depth]]
    for panel in panels(name):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert used == set(variables[2:])
