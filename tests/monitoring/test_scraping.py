"""A real Prometheus scrapes two real daemons under load and faults: what the dashboards and alerts ask for is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.host import free_ports
from snapd.units import KIB, MIB
from tests.monitoring.promtool import RULES
from tests.monitoring.test_dashboards import NAMES, expressions
from tests.support.daemons import Daemon, Hosts
from tests.support.etcd_server import wait_for
from tests.support.nbd_client import NbdClient
from tests.support.traffic import Traffic

INTERVAL = "1s"
WINDOW = "10s"
LIMIT = 60.0  # seconds until Prometheus has seen what happened, on a busy machine
STOP_LIMIT = 20.0

OF_FAULTS = {"csnap_lease_renew_failures_total", "csnap_fence_events_total", "up", "ALERTS"}
"""What has no samples while all is well; ``up`` is compared with 0."""


class Prometheus:
    """Debian's, with the project's rules, in a directory of its own, on loopback."""

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        for path in RULES:
            shutil.copy(path, directory)
        scraped = [
            {"targets": [at], "labels": {"cluster": "c1", "volume": "vol", "host": name}}
            for name, at in targets.items()
        ]
        config = {
            "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
            "rule_files": [path.name for path in RULES],
            "scrape_configs": [{"job_name": "csnap", "static_configs": scraped}],
        }
        (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = directory / "prometheus.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={self.address}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        print(self._log.read_text(errors="replace")[-2000:])

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with self._opener.open(f"http://{self.address}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, what: str, **parameters: str) -> dict[str, Any]:
        with self._opener.open(
            f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}", timeout=20
        ) as answer:
            body: dict[str, Any] = json.loads(answer.read())
        assert body["status"] == "success"
        data: dict[str, Any] = body["data"]
        return data

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that are numbers; an expression that fails raises."""
        return [one for one in self.ask("query", query=expression)["result"] if one["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]


def address(host: Daemon) -> str:
    status = host.status()
    assert status is not None
    return str(status["metrics"])


@pytest.fixture
def cluster() -> Iterator[Hosts]:
    with Hosts(2) as made:
        made.start()
        yield made


@pytest.fixture
def prometheus(cluster: Hosts, tmp_path: Path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, {host.name: address(host) for host in cluster})
    try:
        wait_for(server.ready, "Prometheus is ready", LIMIT)
        yield server
    finally:
        server.close()


@pytest.mark.timeout(400)
def test_panels_and_alerts_have_their_data(cluster: Hosts, prometheus: Prometheus) -> None:
    """Every panel shows something under load or, those of faults, under faults; no rule fails; alerts fire.

    The faults: a read beyond the end, an etcd that hangs, a host that is killed.
    """
    silent = {text for name in NAMES for text in expressions(name, WINDOW)}

    def speak(but: set[str]) -> bool:
        silent.difference_update([text for text in silent if prometheus.query(text)])
        return all(set(re.findall(r"[a-zA-Z_]+", text)) & but for text in silent)

    cluster[0].csnap("snapshot", "create", "CONFIG", "s1", "--cow", cluster.cow("c1"))
    with Traffic(cluster) as traffic:
        traffic.write_everywhere()

        def all_speak() -> bool:
            with NbdClient(cluster[1].socket, "snapshot/s1") as client:
                client.read(0, 64 * KIB)
            return speak(but=OF_FAULTS)

        try:
            wait_for(all_speak, "every panel has data, but for those of faults", LIMIT)
        finally:
            print("silent:", *sorted(silent), sep="\n")
    assert prometheus.firing() <= {
        "CsnapLockWaitSlow",
        "CsnapLeaseRunningOut",
        "CsnapLeaseRenewFailing",
    }  # a slow machine

    with NbdClient(cluster[0].socket) as client:
        assert client.do(0, offset=64 * MIB, length=4096)
    wait_for(lambda: "CsnapIoErrors" in prometheus.firing(), "the error is an alert", LIMIT)

    cluster.etcd.pause()
    hung = {"CsnapLeaseRenewFailing", "CsnapLeaseRunningOut", "CsnapStalled"}
    wait_for(lambda: hung <= prometheus.firing(), "the hosts without etcd are alerts", LIMIT)
    cluster.etcd.resume()
    wait_for(lambda: "CsnapStalled" not in prometheus.firing(), "they go on", LIMIT)

    cluster[1].kill()
    wait_for(lambda: "CsnapHostFenced" in prometheus.firing(), "the host that was fenced is an alert", LIMIT)
    wait_for(lambda: speak(but=set()), "every panel has had data", LIMIT)
    rules = prometheus.rules()
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]
