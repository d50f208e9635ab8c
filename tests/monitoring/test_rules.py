"""Rules: valid, of metrics that exist, tested by promtool; each alert with a section of the runbook."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snapd.lockspace.ports import ACTIVE, FENCED, JOINING, STALLED
from snapd.lockspace.records import SNAPSHOT_STATES
from tests.monitoring.live import NOT_HERE
from tests.monitoring.promtool import RECORDED, ROOT, RULES, promtool, recorded, strangers

ALERTS = (ROOT / "grafana" / "rules" / "csnap.alerts.yml").read_text()
BODIES = dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert: |\Z)", ALERTS, re.DOTALL))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
SECTIONS = dict(re.findall(r"^## (Csnap\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.DOTALL | re.MULTILINE))
SCENARIOS = sorted(Path(__file__).parent.glob("*.yml"))


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_prometheus_accepts_the_rules(path: Path) -> None:
    """promtool parses every expression and every template, and finds nothing to complain of."""
    assert "SUCCESS" in promtool("check", "rules", path)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_not_before(path: Path) -> None:
    """The scenarios beside this file: series with times, and exactly the alerts that fire."""
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_alert_is_in_a_scenario() -> None:
    """And no scenario is about one that is not there any more."""
    text = "".join(path.read_text() for path in SCENARIOS)
    assert set(re.findall(r"\bCsnap\w+", text)) == set(BODIES)


def test_every_alert_fires_in_a_real_cluster_or_it_is_said_why_not() -> None:
    """The live tests wait for each, but for those that they name with the reason."""
    waited = re.compile(r"wait_fired\(([^)]*)\)")
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_live_*.py")]
    provoked = {name for text in texts for names in waited.findall(text) for name in re.findall(r"Csnap\w+", names)}
    assert provoked | set(NOT_HERE) == set(BODIES)
    assert not provoked & set(NOT_HERE)


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_ask_for_what_daemons_expose(path: Path) -> None:
    """Names and labels of metrics are the registry's, names of recorded series those of a recording rule."""
    text = path.read_text()
    assert not strangers(re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE))
    assert set(RECORDED.findall(text)) <= recorded()


def test_states_in_the_rules_are_states() -> None:
    """A misspelt state would be an alert that never fires."""
    text = "".join(path.read_text() for path in RULES)
    named = {state for states in re.findall(r'state=~?"([a-z|]+)"', text) for state in states.split("|")}
    assert named <= {JOINING, ACTIVE, STALLED, FENCED, *SNAPSHOT_STATES}


@pytest.mark.parametrize("alert", BODIES)
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_where_to_read_on(alert: str) -> None:
    """Severity, summary, description and the link."""
    body = BODIES[alert]
    assert re.search(r"^ +severity: (critical|warning)$", body, re.MULTILINE)
    assert re.search(r'^ +summary: "[^"]{10,}"$', body, re.MULTILINE)
    assert re.search(r'^ +description: "[^"]{10,}"$', body, re.MULTILINE)
    assert f'runbook_url: "docs/runbook.md#{alert.lower()}"' in body


def test_every_alert_has_a_section_of_the_runbook_and_no_other_has() -> None:
    """In the alerts' order."""
    assert list(SECTIONS) == list(BODIES)


@pytest.mark.parametrize("alert", SECTIONS)
def test_a_section_says_what_it_means_what_to_look_at_and_what_to_do(alert: str) -> None:
    """In this order; its links to other alerts lead somewhere."""
    section = SECTIONS[alert]
    assert re.fullmatch(r".*\*\*Means:\*\*.+\*\*Look at:\*\*.+\*\*Do:\*\*.+", section, re.DOTALL)
    for name, anchor in re.findall(r"\[(Csnap\w+)\]\(#(\w+)\)", section):
        assert name in BODIES and anchor == name.lower()


def test_the_runbook_names_metrics_that_exist() -> None:
    """Also those outside of alerts."""
    assert not strangers(RUNBOOK, prose=True)
    assert set(RECORDED.findall(RUNBOOK)) <= recorded()
