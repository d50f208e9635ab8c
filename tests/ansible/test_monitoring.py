"""The role monitoring, on this machine and in a directory: what it writes is what Prometheus takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ansible.playbooks import Run, play
from tests.ansible.runner import COLLECTION

SOURCE = COLLECTION.parent / "grafana"
KEYS = ("ca", "cert", "key")
pytestmark = pytest.mark.timeout(400)  # runs of Ansible, on a busy machine

PLAYBOOK = COLLECTION / "playbooks/monitoring.yml"


class Site:
    """An inventory of two csnap hosts, three of etcd, and a Prometheus in ``etc``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.etc = directory / "etc"
        self.grafana = directory / "grafana"
        self.boards = self.grafana / "dashboards"
        for name in KEYS:
            (directory / name).write_text(f"secret {name}")
        for one in (self.etc, self.grafana / "provisioning/dashboards"):
            one.mkdir(parents=True)
        hosts = {f"host-{letter}": {"ansible_host": f"10.0.0.{n}"} for n, letter in enumerate("abc", 11)}
        volumes = [{"name": "vmstore"}, {"name": "home", "metrics_listen": "10.0.0.99:9943"}]
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory = {
            "csnap": {
                "hosts": {name: hosts[name] for name in ("host-a", "host-b")},
                "vars": {"csnap_volumes": volumes, "csnap_metrics_listen": "0.0.0.0:9942"},
            },
            "etcd": {"hosts": hosts},
            "monitoring": {"hosts": {"watch": here}},
        }
        self.inventory = directory / "inventory.yml"
        self.inventory.write_text(json.dumps(inventory))

        self.told = self.done = Run(0, "", {}, {})

    def play(self, *arguments: str, check: bool = True, **variables: Any) -> Run:
        given = {
            "monitoring_source": str(SOURCE),
            "monitoring_manage_config": True,
            "monitoring_prometheus_directory": str(self.etc),
            "monitoring_prometheus_group": "root",
            "monitoring_prometheus_service": "",
            "monitoring_cluster": "prod",
            "monitoring_csnap_targets": {"host-b/home": "proxy:443"},
            "monitoring_documents_url": "https://docs.example/csnap/",
            "monitoring_grafana_url": "https://grafana.example",
            "monitoring_scrape_configs": [{"job_name": "node", "static_configs": [{"targets": ["10.0.0.11:9100"]}]}],
            "monitoring_alertmanagers": ["10.0.0.5:9093"],
            "monitoring_grafana": True,
            "monitoring_grafana_service": "",
            "monitoring_grafana_dashboards": str(self.boards),
            "monitoring_grafana_provisioning": str(self.grafana / "provisioning"),
            **{f"monitoring_etcd_{name}": str(self.directory / name) for name in KEYS},
            **variables,
        }
        return play(self.directory, "-i", self.inventory, PLAYBOOK, "-e", json.dumps(given), *arguments, check=check)

    def config(self, name: str = "prometheus.yml") -> Any:
        return yaml.safe_load((self.etc / name).read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Written once, after a run that only told."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.told = site.play("--check", "--diff", monitoring_promtool="")
    assert not any(site.etc.iterdir())
    assert not site.boards.exists()
    site.done = site.play("--diff", monitoring_promtool="")
    yield site


def test_check_mode_tells_what_is_done(site: Site) -> None:
    """It writes nothing, and counts the changes that the run then makes; no key is shown by either."""
    assert site.told.changed == site.done.changed
    assert "secret" not in site.told.output + site.done.output


def test_the_second_run_changes_nothing(site: Site) -> None:
    """Also with promtool checking whatever is written."""
    assert site.play().changed == {"watch": 0}


def test_promtool_takes_what_it_writes(site: Site) -> None:
    """The configuration with its rules, and the jobs alone, which are the same."""
    for name in KEYS:  # promtool reads them
        (site.etc / f"csnap/etcd.{name}").write_text((site.directory / name).read_text())
    text = (site.etc / "prometheus.yml").read_text()
    without_keys = site.etc / "without-keys.yml"
    without_keys.write_text("\n".join(line for line in text.splitlines() if "_file:" not in line))
    subprocess.run(["promtool", "check", "config", without_keys], check=True, capture_output=True)
    csnap, etcd, _ = site.config()["scrape_configs"]
    assert site.config("csnap/scrape.yml")["scrape_configs"] == [csnap, etcd]


def test_targets_and_their_labels(site: Site) -> None:
    """Every host and volume is a target with the labels that the rules group by; a target can be given."""
    csnap, etcd, _ = site.config()["scrape_configs"]
    found = {one["targets"][0]: one["labels"] for one in csnap["static_configs"]}
    assert found == {
        "10.0.0.11:9942": {"cluster": "prod", "volume": "vmstore", "host": "host-a"},
        "10.0.0.12:9942": {"cluster": "prod", "volume": "vmstore", "host": "host-b"},
        "10.0.0.99:9943": {"cluster": "prod", "volume": "home", "host": "host-a"},
        "proxy:443": {"cluster": "prod", "volume": "home", "host": "host-b"},
    }
    assert csnap["job_name"] == "csnap"  # the alerts' up{job="csnap"}
    assert [one["targets"][0] for one in etcd["static_configs"]] == [f"10.0.0.{n}:2379" for n in (11, 12, 13)]


def test_etcd_is_scraped_with_keys(site: Site) -> None:
    """They are on the Prometheus host, readable by its group alone, and the job names them."""
    job = site.config()["scrape_configs"][1]
    assert job["scheme"] == "https"
    key = Path(job["tls_config"]["key_file"])
    assert key.read_text() == "secret key"
    assert key.stat().st_mode & 0o777 == 0o640


def test_links_and_a_site_s_own_jobs(site: Site) -> None:
    """A site's addresses stand before the links; its jobs and Alertmanagers are in the configuration."""
    text = (site.etc / "csnap/csnap.alerts.yml").read_text()
    assert 'runbook_url: "https://docs.example/csnap/runbook.md#csnapcowfilling"' in text
    assert 'dashboard_url: "https://grafana.example/d/csnap-volume?' in text
    assert (site.etc / "csnap/csnap.rules.yml").read_text() == (SOURCE / "rules/csnap.rules.yml").read_text()
    config = site.config()
    assert [job["job_name"] for job in config["scrape_configs"]] == ["csnap", "etcd", "node"]
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["10.0.0.5:9093"]


def test_dashboards(site: Site) -> None:
    """Grafana gets every dashboard, whose links lead to the site's documents, and a provider that finds them."""
    for one in site.boards.iterdir():
        there, source = json.loads(one.read_text()), json.loads((SOURCE / "dashboards" / one.name).read_text())
        (runbook,) = [variable for variable in source["templating"]["list"] if variable["name"] == "runbook"]
        assert runbook["query"] == "docs/runbook.md"
        runbook["query"] = "https://docs.example/csnap/runbook.md"
        assert there == source
    assert {one.name for one in site.boards.iterdir()} == {one.name for one in (SOURCE / "dashboards").iterdir()}
    provider = yaml.safe_load((site.grafana / "provisioning/dashboards/csnap.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == str(site.boards)


def test_a_rule_that_prometheus_would_refuse_is_not_put_in_place(site: Site) -> None:
    """promtool stops it, and the good one stays."""
    before = (site.etc / "csnap/csnap.rules.yml").read_text()
    broken = site.directory / "source"
    shutil.copytree(SOURCE / "rules", broken / "rules")
    (broken / "rules/csnap.rules.yml").write_text("groups: [{name: x, rules: [{record: y, expr: 'sum('}]}]\n")
    run = site.play(check=False, monitoring_source=str(broken))
    assert run.failed == {"watch": 1}
    assert "failed to validate" in run.output
    assert (site.etc / "csnap/csnap.rules.yml").read_text() == before


def test_a_wrong_argument_is_named(site: Site) -> None:
    """The argument specification refuses it before anything is done."""
    run = site.play(check=False, monitoring_csnap_scheme="gopher")
    assert "monitoring_csnap_scheme" in run.output
    assert run.failed == {"watch": 1}
    assert run.changed == {"watch": 0}
